import hashlib
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_rl.errors import StorageError
from robot_rl.storage.checksums import check, derived_files, primary_files
from robot_rl.storage.columns import CACHE_FILE
from robot_rl.storage.episode import read_header, write_header
from robot_rl.storage.store import Store


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


def test_a_manifest_with_no_name_of_a_file_is_damage(tmp_path, record_short):
    path = record_short(tmp_path, id='e')
    header = read_header(path)
    write_header(path, header.replace(files=[header.files[0].replace(file='a\0b')]))
    ((_, problem),) = check(path).damaged
    assert problem == 'the manifest names a file outside of the episode'


def test_reward_sequences_are_checked_against_their_sidecars(tmp_path, record_short):
    path = record_short(tmp_path)
    about = {'task': 'reach', 'kind': 'sketch', 'author': 'anna', 'id': 'r1'}
    Store(tmp_path).add_reward(path.name, np.arange(4), **about)
    values = path / 'rewards' / 'r1.npy'
    sidecar, said = values.with_suffix('.json'), values.with_suffix('.json').read_text()
    assert check(path)[:2] == ((), ())
    np.save(values, np.arange(1, 5, dtype=np.float32))
    assert [damage.file for damage in check(path).damaged] == [values]
    # JSON with the right hash as well, which no reader takes for a sidecar.
    for text in ('[]', said.replace('author', 'autor'), said.replace('r1', 'r2')):
        sidecar.write_text(text)
        assert [damage.file for damage in check(path).damaged] == [sidecar]


@pytest.fixture
def annotated(tmp_path, record_short):
    """An episode with a reward sequence; return its directory."""
    path = record_short(tmp_path, id='e', tags=('Übung',))
    Store(tmp_path).add_reward('e', [0.25, 0.5], task='t', kind='sketch', author='anna',
                               times_ns=[1, 2])  # fmt: skip
    return path


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), sidecar=st.booleans())
def test_a_flipped_bit_of_the_header_or_a_sidecar_is_found_also_where_it_is_valid_json(
    annotated, place, bit, sidecar
):
    (file,) = annotated.glob('rewards/*.json') if sidecar else [annotated / 'episode.json']
    whole = file.read_bytes()
    data = bytearray(whole)
    data[int(place * len(data))] ^= 1 << bit
    try:
        file.write_bytes(data)
        assert file in {damage.file for damage in check(annotated).damaged}
    finally:
        file.write_bytes(whole)
    assert check(annotated).damaged == ()


def test_a_success_that_was_turned_over_is_damage_until_somebody_says_it(annotated, tmp_path):
    file = annotated / 'episode.json'
    turned = file.read_bytes().replace(b'"success": null', b'"success": true')
    file.write_bytes(turned)
    (damage,) = check(annotated).damaged
    assert str(damage) == f'{file}: differs from its own checksum: damaged, or changed by hand'
    Store(tmp_path).label('e', True)
    assert check(annotated).damaged == ()


def test_a_tag_does_not_make_good_what_is_damaged(annotated, tmp_path):
    file = annotated / 'episode.json'
    turned = file.read_bytes().replace(b'"success": null', b'"success": true')
    file.write_bytes(turned)
    with pytest.raises(StorageError, match=r'differs from its own checksum.*episodes label'):
        Store(tmp_path).tag('e', add=['x'])
    assert file.read_bytes() == turned and len(check(annotated).damaged) == 1


def test_a_header_without_a_checksum_of_its_own_is_one_of_before(annotated):
    file = annotated / 'episode.json'
    data = file.read_bytes()
    digest = hashlib.sha256(data[: data.index(b',\n "checksum"')] + b'\n}').hexdigest()
    assert json.loads(data)['checksum'] == digest  # as anybody would compute it
    file.write_text(json.dumps({k: v for k, v in json.loads(data).items() if k != 'checksum'}))
    assert check(annotated).damaged == ()
