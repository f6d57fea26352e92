import os
import shutil
import subprocess
import sys
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_rl.errors import StorageError
from robot_rl.storage import archives, rewards, transfer
from robot_rl.storage.checksums import check
from robot_rl.storage.columns import CACHE_FILE
from robot_rl.storage.episode import EpisodeHeader, EpisodeWriter, read_header, write_header
from robot_rl.storage.store import Store
from robot_rl.storage.transfer import import_archive, merge


@pytest.fixture
def stores(tmp_path):
    """Two stores, here and there, in folders with a space and an umlaut."""
    return Store(tmp_path / 'hi er'), Store(tmp_path / 'drüben')


def snapshot(root):
    """Return {name: bytes} of every file of a store but its index."""
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in root.rglob('*')
        if file.is_file() and '.index' not in file.parts
    }


def add_reward(path, name):
    about = {'task': 'reach', 'kind': 'sketch', 'author': name, 'created_ns': 0}
    rewards.add(path, *rewards.prepare([0.0, 1.0], about | {'id': name}))


def export(store, archive, query=''):
    return archives.export([store.root / h.id for h in store.episodes(query)], archive)


def test_an_archive_carries_whole_episodes_and_no_caches(stores, tmp_path, record_short):
    here, there = stores
    record_short(here.root, id='a', commit={'tags': ['x']})
    record_short(here.root, id='b', messages=3)
    record_short(here.root, id='left', task='other')
    add_reward(here.root / 'a', 'r1')
    (here.root / 'a' / CACHE_FILE).write_bytes(b'cache')
    archive = tmp_path / 'a.tar'
    assert export(here, archive, 'task=made_up/reach') == (['a', 'b'], [])
    done = import_archive(there, archive)
    assert done == (['a', 'b'], [], {}, [])
    expected = snapshot(here.root)
    for name in list(expected):
        if name.startswith('left/') or name.endswith(CACHE_FILE):
            del expected[name]
    assert snapshot(there.root) == expected
    assert there.episodes() == here.episodes('task=made_up/reach')
    assert import_archive(there, archive) == ([], ['a', 'b'], {}, [])
    assert snapshot(there.root) == expected
    with pytest.raises(StorageError, match=r'a.tar: exists already'):
        export(here, archive)


def test_exports_to_one_archive_at_once_leave_one_whole_one(stores, tmp_path, record_short):
    here, there = stores
    for number in range(40):
        record_short(here.root, id=f'e{number}')
    (tmp_path / 'a.tar.partial').write_text('of somebody else')
    archive = tmp_path / 'a.tar'
    command = [sys.executable, '-m', 'robot_rl.cli.main', 'episodes', 'export', archive]
    command += ['--store', here.root]
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    told = [worker.communicate(timeout=60)[1] for worker in workers]
    assert 0 in [worker.returncode for worker in workers]
    for worker, line in zip(workers, told, strict=True):
        assert worker.returncode == 0 or f'{archive}: ' in line
    assert len(import_archive(there, archive).added) == 40
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ['a.tar', 'a.tar.partial']
    assert (tmp_path / 'a.tar.partial').read_text() == 'of somebody else'


def test_tar_and_sha256sum_read_an_archive(stores, tmp_path, record_short):
    here, _ = stores
    record_short(here.root, id='a')
    export(here, tmp_path / 'a.tar')
    out = tmp_path / 'out'
    out.mkdir()
    subprocess.run(['tar', 'xf', tmp_path / 'a.tar', '-C', out], check=True)
    done = subprocess.run(
        ['sha256sum', '-c', 'SHA256SUMS'], cwd=out, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ['a/episode.json: OK', 'a/streams.mcap: OK']


@pytest.mark.parametrize('kind', ['gz', 'xz'])
def test_a_compressed_archive_is_read(stores, tmp_path, record_short, kind):
    here, there = stores
    record_short(here.root, id='a')
    export(here, tmp_path / 'a.tar')
    packed = tmp_path / f'a.tar.{kind}'
    with tarfile.open(packed, f'w:{kind}') as new, tarfile.open(tmp_path / 'a.tar') as old:
        for member in old:
            new.addfile(member, old.extractfile(member))
    assert import_archive(there, packed).added == ['a']


@pytest.mark.parametrize('name', [b'\xff', 'ü'.encode(), b'a\x0bb c', b'a\x85'])
def test_a_file_of_any_name_is_carried(stores, tmp_path, record_short, name):
    here, there = stores
    path = record_short(here.root, id='a')
    with open(os.fsencode(path) + b'/' + name, 'wb') as file:
        file.write(b'a note of somebody')
    export(here, tmp_path / 'a.tar')
    assert import_archive(there, tmp_path / 'a.tar').added == ['a']
    assert snapshot(there.root) == snapshot(here.root)


def test_a_damaged_episode_is_not_exported_and_is_told(stores, tmp_path, record_short):
    here, _ = stores
    record_short(here.root, id='a')
    streams = record_short(here.root, id='b') / 'streams.mcap'
    streams.write_bytes(streams.read_bytes()[:-1])
    ids, (damage,) = export(here, tmp_path / 'a.tar')
    assert ids == ['a'] and damage.file == streams
    with tarfile.open(tmp_path / 'a.tar') as tar:
        assert not any(name.startswith('b/') for name in tar.getnames())


@pytest.fixture(scope='module')
def archive(tmp_path_factory, ros):
    root = tmp_path_factory.mktemp('archive')
    with EpisodeWriter(root, EpisodeHeader(id='a')) as writer:
        writer.write('/n', 'x/msg/X', 'uint8 x', bytes(range(256)) * 9, 1, None, 1)
        writer.commit()
    export(Store(root), root / 'a.tar')
    return (root / 'a.tar').read_bytes()


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cut=st.booleans(), place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_of_a_damaged_archive_nothing_wrong_is_taken_in(
    archive, tmp_path_factory, cut, place, flip
):
    root = tmp_path_factory.mktemp('import')
    data, at = bytearray(archive), int(len(archive) * place)
    if cut:
        del data[at:]
    else:
        data[at] ^= flip
    (root / 'a.tar').write_bytes(data)
    store = Store(root / 'store')
    try:
        done = import_archive(store, root / 'a.tar')
    except StorageError as error:
        assert '\n' not in str(error) and 'a.tar: ' in str(error)
        assert snapshot(store.root) == {}
    else:  # in the padding of the archive
        assert done.added == ['a'] and check(store.root / 'a').damaged == ()


@pytest.mark.parametrize(
    'name', ['../out', '/etc/out', 'a/../../out', 'a', '.hidden/x', 'a//x', 'a/./x', '\\x/y']
)
def test_an_archive_writes_nothing_elsewhere(tmp_path, name):
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        tar.addfile(tarfile.TarInfo(name))
    store = Store(tmp_path / 'deep' / 'store')
    with pytest.raises(StorageError, match=r'a.tar: cannot be unpacked'):
        import_archive(store, tmp_path / 'a.tar')
    assert sorted(os.listdir(tmp_path)) == ['a.tar', 'deep']
    assert snapshot(store.root) == {}


def test_links_and_foreign_files_are_refused(tmp_path):
    store = Store(tmp_path / 'store')
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        link = tarfile.TarInfo('a/streams.mcap')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        tar.addfile(link)
    with pytest.raises(StorageError, match='is no file of an episode'):
        import_archive(store, tmp_path / 'a.tar')
    (tmp_path / 'text').write_text('no archive')
    with pytest.raises(StorageError, match=r'text: cannot be unpacked .*is it what episodes'):
        import_archive(store, tmp_path / 'text')
    with pytest.raises(StorageError, match=r'absent: cannot be unpacked \(No such file'):
        import_archive(store, tmp_path / 'absent')
    assert snapshot(store.root) == {}


def test_a_merge_copies_what_is_new_and_leaves_the_other_store_alone(stores, record_short):
    here, there = stores
    record_short(here.root, id='a')
    record_short(there.root, id='b')
    with EpisodeWriter(there.root, EpisodeHeader(id='thrown')) as writer:
        writer.discard()
    EpisodeWriter(there.root, EpisodeHeader(id='cut')).close()
    (there.root / 'rotten').mkdir()
    (there.root / 'rotten' / 'episode.json').write_text('{')
    before = snapshot(there.root)
    done = merge(here, there.root)
    assert (done.added, done.same, done.renamed) == (['b', 'thrown'], [], {})
    assert [line.split(': ')[0] for line in done.refused] == [
        str(there.root / 'cut.partial'), str(there.root / 'rotten' / 'episode.json'),
    ]  # fmt: skip
    assert snapshot(there.root) == before
    assert sorted(p.name for p in here.root.iterdir() if p.name != '.index') == [
        'a', 'b', 'thrown.discarded'
    ]  # fmt: skip
    assert [h.id for h in here.episodes()] == ['a', 'b']
    with pytest.raises(StorageError, match='merged with itself'):
        merge(here, here.root)


def test_the_same_episode_twice_is_one_with_the_annotations_of_both(stores, record_short):
    here, there = stores
    record_short(here.root, id='a')
    shutil.copytree(here.root / 'a', there.root / 'a')
    here.tag('a', add=['ours'])
    there.tag('a', add=['theirs'])
    there.label('a', True)
    add_reward(here.root / 'a', 'anna')
    add_reward(there.root / 'a', 'ben')
    assert merge(here, there.root) == ([], ['a'], {}, [])
    (header,) = here.episodes('success=true tag=ours,theirs')
    assert header.id == 'a'
    assert {p.name for p in (here.root / 'a' / 'rewards').iterdir()} == {
        'anna.npy', 'anna.json', 'ben.npy', 'ben.json'
    }  # fmt: skip
    assert check(here.root / 'a')[:2] == ((), ())
    # What was said here stays.
    here.label('a', False)
    merge(here, there.root)
    assert read_header(here.root / 'a').success is False


def test_a_damaged_reward_of_the_same_episode_is_left_where_it_is(stores, record_short):
    here, there = stores
    record_short(here.root, id='a')
    shutil.copytree(here.root / 'a', there.root / 'a')
    add_reward(there.root / 'a', 'anna')
    add_reward(there.root / 'a', 'ben')
    values = there.root / 'a' / 'rewards' / 'ben.npy'
    values.write_bytes(b'VALUES')
    done = merge(here, there.root)
    assert done.same == ['a']
    (line,) = done.refused
    assert line.startswith(f'{values}: SHA-256 ')
    assert sorted(p.name for p in (here.root / 'a' / 'rewards').iterdir()) == [
        'anna.json', 'anna.npy'
    ]  # fmt: skip
    assert check(here.root / 'a').damaged == ()


def test_an_episode_that_replaces_a_damaged_one_is_found_as_it_is(stores, record_short, tmp_path):
    here, there = stores
    record_short(here.root, id='a')
    shutil.copytree(here.root / 'a', there.root / 'a')
    here.tag('a', add=['old'])
    there.tag('a', add=['new'])
    (here.root / 'a').rename(tmp_path / 'away')  # and nobody asks before the merge
    assert merge(here, there.root).added == ['a']
    assert here.episodes('tag=new').ids == ['a'] and here.episodes('tag=old').ids == []


def test_two_episodes_of_one_id_are_both_kept_and_a_third_time_is_none_more(stores, record_short):
    here, there = stores
    record_short(here.root, id='a', messages=3)
    record_short(there.root, id='a', messages=4)
    done = merge(here, there.root)
    ((old, new),) = done.renamed.items()
    assert (done.added, done.same, done.refused, old) == ([], [], [], 'a')
    assert new.startswith('a-')
    counts = {h.id: h.topics['/note'].count for h in here.episodes()}
    assert counts == {'a': 3, new: 4}
    assert read_header(here.root / new).extra == {'id_elsewhere': 'a'}
    assert check(here.root / new).damaged == ()
    assert merge(here, there.root) == ([], ['a'], {}, [])
    # And back, until both have both: each keeps its own under the short name.
    back = merge(there, here.root)
    assert (back.added, back.same, list(back.renamed)) == ([], [new], ['a'])
    assert merge(here, there.root) == ([], ['a', back.renamed['a']], {}, [])
    assert merge(there, here.root) == ([], ['a', new], {}, [])
    assert len(here.episodes()) == len(there.episodes()) == 2


def test_the_same_streams_by_another_policy_are_another_episode(stores, record_short):
    here, there = stores
    record_short(here.root, id='a')
    shutil.copytree(here.root / 'a', there.root / 'a')
    path = there.root / 'a'
    write_header(path, read_header(path).replace(policy='another'))
    assert list(merge(here, there.root).renamed) == ['a']


def test_a_damaged_episode_is_not_copied(stores, record_short):
    here, there = stores
    streams = record_short(there.root, id='a') / 'streams.mcap'
    streams.write_bytes(streams.read_bytes()[:-5] + b'12345')
    (line,) = merge(here, there.root).refused
    assert line.startswith(f'{streams}: SHA-256 ')
    assert snapshot(here.root) == {}


def test_dying_while_copying_leaves_no_half_of_an_episode(stores, record_short, monkeypatch):
    here, there = stores
    record_short(there.root, id='a')
    with monkeypatch.context() as patch:
        patch.setattr(transfer.shutil, 'rmtree', lambda *_, **__: None)  # nobody tidies up

        def dies(path, header):
            raise KeyboardInterrupt

        patch.setattr(transfer, 'write_header', dies)
        with pytest.raises(KeyboardInterrupt):
            merge(here, there.root)
    assert here.episodes() == [] and here.damaged == {}
    assert merge(here, there.root).added == ['a']
    assert snapshot(here.root) == snapshot(there.root)


MERGE = """
import sys
from robot_rl.errors import StorageError
from robot_rl.storage.store import Store
from robot_rl.storage.transfer import merge
try:
    print(len(merge(Store(sys.argv[1]), sys.argv[2]).added))
except StorageError as error:
    print(error)
"""


def test_merges_at_once_give_each_episode_once(stores, record_short):
    here, there = stores
    for number in range(20):
        record_short(there.root, id=f'e{number}')
    command = [sys.executable, '-c', MERGE, here.root, there.root]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = [worker.communicate(timeout=60)[0].strip() for worker in workers]
    assert sum(int(line) for line in told if line.isdigit()) == 20
    assert all('in use by another process' in line for line in told if not line.isdigit())
    assert len(here.episodes()) == 20
