import os

import pytest

from robot_rl.errors import StorageError, UnknownName
from robot_rl.storage import garbage
from robot_rl.storage.columns import CACHE_FILE
from robot_rl.storage.episode import EpisodeHeader, EpisodeWriter
from robot_rl.storage.store import Store


@pytest.fixture
def store(tmp_path, ros, record_short):
    """One of everything: what must stay, and what may go."""
    root = tmp_path / 'store'
    for number in range(2):
        path = record_short(root, id=f'e{number}')
        (path / CACHE_FILE).write_bytes(b'x' * 100)
    with EpisodeWriter(root, EpisodeHeader(id='thrown')) as writer:
        ros.write(writer, '/note', ros.string('x'), 10)
        writer.discard()
    with EpisodeWriter(root, EpisodeHeader(id='data')) as writer:
        ros.write(writer, '/note', ros.string('x'), 10)
    EpisodeWriter(root, EpisodeHeader(id='empty')).close()
    (root / '.incoming-e9').mkdir()
    (root / '.incoming-e9' / 'streams.mcap').write_bytes(b'half')
    (root / 'e1' / 'notes.txt').write_text('by a person')
    return Store(root)


def files(store):
    return {
        str(file.relative_to(store.root))
        for file in store.root.rglob('*')
        if file.is_file() and '.index' not in file.parts
    }


def test_what_is_listed_goes_and_nothing_else(store):
    before = files(store)
    listed = garbage.garbage(store)
    assert {(item.path.name, item.kind) for item in listed} == {
        ('thrown.discarded', 'discarded'),
        ('empty.partial', 'empty'),
        ('.incoming-e9', 'leftover'),
        ('e0', 'columns'),
        ('e1', 'columns'),
    }
    assert files(store) == before  # listing changes nothing
    told = {str((i.path / name).relative_to(store.root)) for i in listed for name in i.files}
    sizes = sum((store.root / name).stat().st_size for name in told)
    assert sum(item.bytes for item in listed) == sizes
    assert garbage.delete(store, listed) == []
    assert before - files(store) == told
    assert files(store) == {
        'e0/episode.json', 'e0/streams.mcap', 'e1/episode.json', 'e1/streams.mcap',
        'e1/notes.txt', 'data.partial/episode.json', 'data.partial/streams.mcap',
            'data.partial/episode.json.reserve',  # goes when it is recovered
    }  # fmt: skip
    assert garbage.garbage(store) == []


def test_what_is_being_recorded_is_not_listed(store):
    for item in garbage.garbage(store):
        garbage.delete(store, [item])
    with EpisodeWriter(store.root, EpisodeHeader(id='live')):
        assert garbage.garbage(store) == []
    assert [item.path.name for item in garbage.garbage(store)] == ['live.partial']


def test_a_cut_file_that_may_hold_a_chunk_is_not_called_empty(store):
    path = store.root / 'data.partial' / 'streams.mcap'
    path.write_bytes(b'\0' * 1000)
    assert 'data.partial' not in {item.path.name for item in garbage.garbage(store)}


def test_episodes_go_only_by_name_and_leave_every_query(store):
    listed = garbage.episodes(store, ['e0'])
    assert set(listed[0].files) == {'episode.json', 'streams.mcap', CACHE_FILE}
    assert garbage.delete(store, listed) == []
    assert [header.id for header in store.episodes()] == ['e1']
    assert not (store.root / 'e0').exists()
    with pytest.raises(UnknownName, match="unknown episode 'e0'"):
        garbage.episodes(store, ['e0'])


@pytest.mark.parametrize('change', ['new file', 'changed file', 'new folder'])
def test_what_changed_since_it_was_listed_stays(store, change):
    listed = garbage.episodes(store, ['e1'])
    path = store.root / 'e1'
    if change == 'new folder':
        (path / 'rewards').mkdir()
        (path / 'rewards' / 'r.npy').write_bytes(b'sketched while the question stood')
    else:
        name = 'notes.txt' if change == 'changed file' else 'new'
        (path / name).write_text('a second thought')
    before = files(store)
    (line,) = garbage.delete(store, listed)
    assert line == f'{path}: changed since it was listed; left as it is'
    assert files(store) == before


def test_a_recording_that_begins_after_the_listing_stays(store):
    listed = [i for i in garbage.garbage(store) if i.kind == 'empty']
    for name in listed[0].files:
        (listed[0].path / name).unlink()
    listed[0].path.rmdir()
    with EpisodeWriter(store.root, EpisodeHeader(id='empty')) as writer:
        (line,) = garbage.delete(store, listed)
        assert 'in use by another process' in line and writer.path.is_dir()


def test_dying_while_deleting_leaves_what_the_next_time_lists(store, monkeypatch):
    listed = garbage.episodes(store, ['e1'])

    def dies(item, path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(garbage, '_delete_files', dies)
        with pytest.raises(KeyboardInterrupt):
            garbage.delete(store, listed)
    assert [header.id for header in store.episodes()] == ['e0'] and store.damaged == {}
    listed = garbage.garbage(store)
    assert '.deleting-e1' in {item.path.name for item in listed}
    assert garbage.delete(store, listed) == []
    assert [name for name in os.listdir(store.root) if name.startswith('.')] == ['.index']


def test_nothing_is_followed_out_of_the_store(store, tmp_path):
    outside = tmp_path / 'outside'
    outside.mkdir()
    (outside / 'file').write_text('precious')
    (store.root / 'link.discarded').symlink_to(outside)
    (store.root / 'thrown.discarded' / 'rewards').symlink_to(outside)
    garbage.delete(store, garbage.garbage(store))
    assert (outside / 'file').read_text() == 'precious'
    assert not (store.root / 'thrown.discarded').exists()


def test_a_store_that_cannot_be_cleared_says_so(store, monkeypatch):
    def refuses(self):
        raise PermissionError(13, 'Permission denied', str(self))

    monkeypatch.setattr(garbage.Path, 'unlink', refuses)
    listed = [item for item in garbage.garbage(store) if item.kind == 'columns']
    with pytest.raises(StorageError, match=r'steps.npz: cannot be deleted \(Permission denied\)'):
        garbage.delete(store, listed)
