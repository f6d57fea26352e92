import hashlib
import json

import numpy as np
import pytest

from robot_rl.storage.checksums import check, derived_files, primary_files
from robot_rl.storage.columns import CACHE_FILE
from robot_rl.storage.episode import read_header, write_header


def test_a_whole_episode_is_checked_byte_for_byte(tmp_path, record_short):
    path = record_short(tmp_path)
    found = check(path)
    assert (found.damaged, found.unverifiable) == ((), ())
    assert found.bytes == (path / 'streams.mcap').stat().st_size


@pytest.mark.parametrize('place', [0.0, 0.37, 0.9999])
def test_one_flipped_bit_is_found(tmp_path, record_short, place):
    path = record_short(tmp_path) / 'streams.mcap'
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)
    (damage,) = check(path.parent).damaged
    assert damage.file == path
    assert hashlib.sha256(data).hexdigest()[:12] in damage.problem


def test_a_cut_a_missing_file_and_a_damaged_header_are_told(tmp_path, record_short):
    path = record_short(tmp_path)
    streams = path / 'streams.mcap'
    size = streams.stat().st_size
    streams.write_bytes(streams.read_bytes()[:100])
    assert str(check(path).damaged[0]) == f'{streams}: 100 bytes, {size} were stored'
    streams.unlink()
    assert 'No such file' in str(check(path).damaged[0])
    (path / 'episode.json').write_text('{')
    (damage,) = check(path).damaged
    assert damage.file == path / 'episode.json' and 'not valid JSON' in damage.problem
    assert '\n' not in damage.problem


def test_data_of_an_older_episode_without_a_checksum_is_unverifiable_and_no_damage(
    tmp_path, record_short
):
    path = record_short(tmp_path)
    write_header(path, read_header(path).replace(files=()))
    found = check(path)
    assert found.damaged == () and found.unverifiable == (path / 'streams.mcap',)


def test_what_can_be_computed_again_is_no_primary_data_unless_the_manifest_says_so(
    tmp_path, record_short
):
    path = record_short(tmp_path)
    (path / CACHE_FILE).write_bytes(b'columns')
    (path / 'notes.txt').write_text('by a person')
    header = read_header(path)
    assert derived_files(path, header) == [CACHE_FILE]
    assert primary_files(path, header) == ['notes.txt', 'streams.mcap']
    steps = {'file': CACHE_FILE, 'sha256': hashlib.sha256(b'columns').hexdigest(), 'bytes': 7}
    write_header(path, header.replace(files=[steps]))
    assert derived_files(path, read_header(path)) == []
    assert check(path).damaged == ()


def test_a_manifest_that_leads_out_of_the_episode_is_damage(tmp_path, record_short):
    path = record_short(tmp_path)
    (tmp_path / 'secret').write_text('x')
    line = {'file': '../secret', 'sha256': hashlib.sha256(b'x').hexdigest(), 'bytes': 1}
    write_header(path, read_header(path).replace(files=[line]))
    assert 'outside of the episode' in check(path).damaged[0].problem


def test_reward_sequences_are_checked_against_their_sidecars(tmp_path, record_short):
    path = record_short(tmp_path)
    (path / 'rewards').mkdir()
    values = path / 'rewards' / 'r1.npy'
    np.save(values, np.arange(4, dtype=np.float32))
    sidecar = values.with_suffix('.json')
    sidecar.write_text(json.dumps({'sha256': hashlib.sha256(values.read_bytes()).hexdigest()}))
    assert check(path)[:2] == ((), ())
    np.save(values, np.arange(1, 5, dtype=np.float32))
    assert [damage.file for damage in check(path).damaged] == [values]
    sidecar.write_text('[]')
    assert [damage.file for damage in check(path).damaged] == [sidecar]
