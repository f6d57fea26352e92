import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_rl.errors import SpecError, StorageError, UnknownName
from robot_rl.storage import index as index_module
from robot_rl.storage.episode import EpisodeReader, EpisodeWriter, read_header
from robot_rl.storage.store import INDEX_FILE, Store

DAY_NS = 86_400 * 10**9
QUERIES = [
    '',
    'task=reach',
    'task=reach,stack',
    'task=nothing',
    'source=policy success=true',
    'success=false',
    'success=unknown',
    'success=false,unknown',
    'tag=a',
    'tag=a,b',
    'tag=a tag=b',
    'policy=p1 robot=made_up world=sim',
    'operator=anna',
    'result=truncated',
    'seed=3',
    'after=1970-01-03',
    'before=1970-01-03T12:00',
    'after=1970-01-02 before=1970-01-04 tag=b',
    'id=e4',
]


def matches(header, query):
    """Judge one header by a query, without SQL."""
    days = {'1970-01-02': 1, '1970-01-03': 2, '1970-01-03T12:00': 2.5, '1970-01-04': 3}
    truth = {'true': True, 'false': False, 'unknown': None}
    for word in query.split():
        key, value = word.split('=')
        values = value.split(',')
        if key == 'tag':
            good = all(tag in header.tags for tag in values)
        elif key == 'after':
            good = header.start_time_ns >= days[value] * DAY_NS
        elif key == 'before':
            good = header.start_time_ns < days[value] * DAY_NS
        elif key == 'success':
            good = header.success in [truth[value] for value in values]
        else:
            good = str(getattr(header, key)) in values
        if not good:
            return False
    return True


def add(store, header, **fields):
    with EpisodeWriter(store.root, header(**fields)) as writer:
        return writer.commit()


@pytest.fixture
def store(tmp_path, header, rng):
    """A store of 24 varied episodes, without streams that matter."""
    store = Store(tmp_path / 'epi sodes')
    for number in range(24):
        add(
            store,
            header,
            id=f'e{number}',
            task=str(rng.choice(['reach', 'stack'])),
            source=str(rng.choice(['policy', 'teleop'])),
            policy=str(rng.choice(['p1', 'p2', ''])),
            operator=str(rng.choice(['anna', 'bob'])),
            world=str(rng.choice(['sim', 'real'])),
            result=str(rng.choice(['success', 'truncated'])),
            success=[True, False, None][number % 3],
            seed=number % 5,
            tags=[['a'], ['a', 'b'], ['b'], []][number % 4],
            start_time_ns=number * DAY_NS // 6,
        )
    return store


def answers(store):
    return {query: [header.id for header in store.episodes(query)] for query in QUERIES}


def test_every_query_equals_a_walk_over_the_headers(store):
    headers = [read_header(path) for path in store.root.iterdir() if path.is_dir()]
    headers.sort(key=lambda header: header.start_time_ns)
    for query in QUERIES:
        expected = [header for header in headers if matches(header, query)]
        assert store.episodes(query) == expected, query
    assert len(store.episodes()) == 24


def test_a_deleted_damaged_or_older_index_gives_the_same_answers(store, monkeypatch):
    before = answers(store)
    files = [INDEX_FILE, f'{INDEX_FILE}-wal', f'{INDEX_FILE}-shm']
    for file in files:
        (store.root / file).unlink(missing_ok=True)
    assert answers(Store(store.root)) == before
    assert store.reindex() == 24
    assert answers(store) == before
    for file in files:
        (store.root / file).unlink(missing_ok=True)
    (store.root / INDEX_FILE).write_text('no database ' * 1000)
    assert answers(Store(store.root)) == before
    monkeypatch.setattr(index_module, '_VERSION', 99)
    monkeypatch.setattr(
        index_module, '_SCHEMA', index_module._SCHEMA.replace('version = 2', 'version = 99')
    )
    assert answers(Store(store.root)) == before


def test_an_index_damaged_inside_is_told_and_mended_by_reindex(store):
    before = answers(store)
    store._index._connection.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    store._index._connection.close()
    data = bytearray((store.root / INDEX_FILE).read_bytes())
    for page in range(4096, len(data), 4096):
        data[page : page + 16] = b'\xff' * 16
    (store.root / INDEX_FILE).write_bytes(data)
    broken = Store(store.root)
    with pytest.raises(StorageError, match=r'index\.sqlite: .*robot-rl episodes reindex'):
        broken.episodes()
    assert broken.reindex() == 24
    assert answers(broken) == before


def test_episodes_that_come_and_go_are_seen_at_the_next_query(store, header, tmp_path):
    other = Store(store.root)
    assert len(other.episodes('tag=new')) == 0
    add(store, header, id='new', tags=['new'])
    assert [h.id for h in other.episodes('tag=new')] == ['new']
    # Merging is a copy of directories.
    merged = Store(tmp_path / 'merged')
    shutil.copytree(store.root / 'new', merged.root / 'new')
    assert [h.id for h in merged.episodes()] == ['new']
    shutil.move(store.root / 'new', tmp_path / 'away')
    assert other.episodes('tag=new') == []


def test_unfinished_episodes_are_listed_apart_and_never_indexed(store, header):
    EpisodeWriter(store.root, header(id='running')).close()
    with EpisodeWriter(store.root, header(id='thrown')) as writer:
        writer.discard()
    assert [path.name for path in store.unfinished()] == ['running.partial', 'thrown.discarded']
    assert len(store.episodes()) == 24
    assert store.open('thrown.discarded').header.result == 'discarded'
    # Even a discarded episode can be labelled; it stays out of the index.
    assert store.label('thrown.discarded', success=False).success is False
    assert len(store.episodes()) == 24


def test_labels_and_tags_go_to_the_directory_and_to_the_index(store):
    assert store.label('e0', success=False).success is False
    assert 'e0' in [h.id for h in store.episodes('success=false')]
    assert store.label('e0', success=None).success is None
    tagged = store.tag('e0', add=['curated', 'b'], remove=['a', 'never-there'])
    assert tagged.tags == ('b', 'curated')
    assert [h.id for h in store.episodes('tag=curated')] == ['e0']
    assert read_header(store.root / 'e0') == tagged
    before = answers(store)
    store.reindex()
    assert answers(store) == before
    for bad in ('', 'two words', 'a,b', 'a\n'):
        with pytest.raises(SpecError, match='without spaces and commas'):
            store.tag('e1', add=[bad])
    assert read_header(store.root / 'e0') == tagged


def test_an_unknown_episode_gets_the_nearest_names(store):
    for call in (store.open, lambda id: store.label(id, True)):
        with pytest.raises(UnknownName, match="unknown episode 'e99'; did you mean 'e"):
            call('e99')
    with pytest.raises(UnknownName):
        store.open('../e1')


def test_a_damaged_episode_leaves_the_rest_of_the_store_alone(store):
    (store.root / 'e5' / 'episode.json').write_text('{"id": "e5", "tsk": ""}')
    (store.root / 'e6' / 'episode.json').unlink()
    shutil.copytree(store.root / 'e7', store.root / 'renamed')
    later = store.root / 'e8' / 'episode.json'
    later.write_text(json.dumps(json.loads(later.read_text()) | {'schema_version': 99}))
    assert len(store.episodes()) == 21
    assert set(store.damaged) == {'e5', 'e6', 'e8', 'renamed'}
    assert "e5/episode.json: tsk: unknown key; did you mean 'task'" in store.damaged['e5']
    assert 'e6/episode.json: cannot be read' in store.damaged['e6']
    assert 'schema_version' in store.damaged['e8'] and '99' in store.damaged['e8']
    assert 'holds episode e7; rename' in store.damaged['renamed']


def test_a_folder_that_cannot_be_used_is_told_in_one_line(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(StorageError, match=r'file/x: not a folder for episodes'):
        Store(tmp_path / 'file' / 'x')
    with pytest.raises(StorageError, match='absent: no folder of episodes here; --store names it'):
        Store(tmp_path / 'absent', create=False)
    assert not (tmp_path / 'absent').exists()


def test_a_store_that_cannot_be_written_is_read(store, monkeypatch):
    before = answers(store)
    for file in store.root.glob(f'{INDEX_FILE}*'):
        file.unlink()
    monkeypatch.setattr(os, 'access', lambda *args: False)

    opened = Path.open

    def refuse(path, mode='r', *args, **kwargs):
        if mode[0] != 'r':
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, 'open', refuse)
    reader = Store(store.root)
    assert answers(reader) == before
    with pytest.raises(StorageError, match=r'e0: cannot be changed \(Read-only'):
        reader.label('e0', True)
    assert not list(store.root.glob(f'{INDEX_FILE}*'))


actions = st.lists(
    st.tuples(
        st.sampled_from(['add', 'label', 'tag', 'untag', 'damage', 'remove', 'query']),
        st.integers(0, 5),
    ),
    max_size=25,
)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions=actions)
def test_whatever_happens_the_index_answers_as_a_new_one_would(actions, header, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp('store'))
    for action, number in actions:
        path = store.root / f'e{number}'
        if action == 'query':
            store.episodes()
        elif action == 'add' and not path.exists():
            add(store, header, id=path.name, seed=number, start_time_ns=number * DAY_NS)
        elif action == 'label' and path.exists():
            store.label(path.name, success=number % 2 == 0)
        elif action in ('tag', 'untag') and path.exists():
            store.tag(path.name, **{'add' if action == 'tag' else 'remove': ['a', 'b']})
        elif action == 'remove' and path.exists():
            shutil.rmtree(path)
    found = answers(store)
    for file in store.root.glob(f'{INDEX_FILE}*'):
        file.unlink()
    assert answers(Store(store.root)) == found


WRITER = textwrap.dedent("""
    import sys
    from robot_rl.storage.episode import EpisodeHeader, EpisodeWriter
    from robot_rl.storage.store import Store
    root, name = sys.argv[1:]
    store = Store(root)
    for number in range(15):
        header = EpisodeHeader(id=f'{name}-{number}', task='busy', source=name)
        with EpisodeWriter(root, header) as writer:
            writer.write('/note', 'x/msg/X', 'uint8 x', b'0001000000000', number)
            writer.commit(result='success')
        store.label(header.id, success=number % 2 == 0)
        store.tag('shared', add=[f'{name}-{number}'])
""")


def test_two_writers_and_a_reader_at_once(tmp_path, header):
    root = tmp_path / 'store'
    add(Store(root), header, id='shared')
    writers = [subprocess.Popen([sys.executable, '-c', WRITER, str(root), name]) for name in 'ab']
    store, seen = Store(root), 0
    while any(writer.poll() is None for writer in writers):
        now = len(store.episodes('task=busy'))
        assert now >= seen
        seen = now
    assert [writer.returncode for writer in writers] == [0, 0]
    expected = {f'{name}-{number}' for name in 'ab' for number in range(15)}
    assert {h.id for h in store.episodes('task=busy')} == expected
    assert len(store.episodes('task=busy success=true')) == 16
    # No tag of either was lost: both edited one header again and again.
    assert set(read_header(root / 'shared').tags) == expected
    assert set(store.episodes('id=shared')[0].tags) == expected
    found = answers(store)
    store.reindex()
    assert answers(store) == found
    assert EpisodeReader(root / 'a-0').damage() is None


def test_an_editor_that_dies_leaves_no_stale_index(store, monkeypatch):
    store.episodes()

    def dies(index, header):
        raise KeyboardInterrupt

    monkeypatch.setattr(index_module.Index, 'replace', dies)
    with pytest.raises(KeyboardInterrupt):
        store.tag('e3', add=['late'])
    monkeypatch.undo()
    assert 'late' in read_header(store.root / 'e3').tags
    assert [h.id for h in Store(store.root).episodes('tag=late')] == ['e3']
    assert store._index.notes() == []


OPENER = 'import sys; from robot_rl.storage.store import Store; Store(sys.argv[1]).episodes()'


def test_many_processes_open_a_new_index_at_once(store):
    openers = [
        subprocess.Popen(
            [sys.executable, '-c', OPENER, str(store.root)], stderr=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    errors = [opener.communicate()[1] for opener in openers]
    assert [opener.returncode for opener in openers] == [0] * 6, errors
