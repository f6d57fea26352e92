import contextlib
import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_rl.errors import SpecError, StorageError, UnknownName
from robot_rl.storage import garbage
from robot_rl.storage import index as index_module
from robot_rl.storage import store as store_module
from robot_rl.storage.episode import EpisodeReader, EpisodeWriter, read_header, write_header
from robot_rl.storage.index import Index
from robot_rl.storage.query import KEYS
from robot_rl.storage.store import INDEX_FILE, Store
from robot_rl.storage.streams import Required

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
    'id=e4,e5,e99 source=policy,teleop',
    'intervened=true',
    'intervened=false,unknown',
    'intervened=unknown source=policy',
    'reward=sketch',
    'reward=sketch:anna',
    'reward=sketch:bob,predicted:model-1',
    'reward=predicted tag=a',
    'reward=predicted:anna',
    'reward=none success=true',
    'reward=none,sketch:anna',
    'flagged=true',
    'flagged=false tag=a',
    'flagged=true,false',
]
REWARDS = {  # by the episode's number
    0: [('sketch', 'anna'), ('sketch', 'bob')],
    3: [('predicted', 'model-1')],
    4: [('sketch', 'anna'), ('sketch', 'anna'), ('predicted', 'model-2')],
    17: [('predicted', 'model-1'), ('sketch', 'bob')],
}


def rewarded(path):
    """Return 'kind' and 'kind:author' of what the sidecars in an episode say, or 'none'."""
    said = [json.loads(file.read_text()) for file in path.glob('rewards/*.json')]
    names = {name for s in said for name in (s['kind'], f'{s["kind"]}:{s["author"]}')}
    return names or {'none'}


def matches(header, query, rewards):
    """Judge one header, and the names of its rewards, by a query, without SQL."""
    days = {'1970-01-02': 1, '1970-01-03': 2, '1970-01-03T12:00': 2.5, '1970-01-04': 3}
    truth = {'true': True, 'false': False, 'unknown': None}
    for word in query.split():
        key, value = word.split('=')
        values = value.split(',')
        if key == 'tag':
            good = all(tag in header.tags for tag in values)
        elif key == 'reward':
            good = any(value in rewards for value in values)
        elif key == 'flagged':
            short = any(topic.got < 0.9 * topic.expected for topic in header.topics.values())
            good = str(short).lower() in values
        elif key == 'after':
            good = header.start_time_ns >= days[value] * DAY_NS
        elif key == 'before':
            good = header.start_time_ns < days[value] * DAY_NS
        elif key == 'success':
            good = header.success in [truth[value] for value in values]
        elif key == 'intervened':
            said = None if header.interventions is None else header.interventions > 0
            good = said in [truth[value] for value in values]
        else:
            good = str(getattr(header, key)) in values
        if not good:
            return False
    return True


def add(store, header, short=False, **fields):
    with EpisodeWriter(store.root, header(**fields)) as writer:
        if short:  # for a second nothing comes where ten messages should
            writer.run_from(0, {'/a': Required('std_msgs/msg/String', 10.0)})
            writer.run_until(10**9)
        return writer.commit()


@pytest.fixture
def store(tmp_path, header, rng):
    """A store of 24 varied episodes, without streams that matter."""
    store = Store(tmp_path / 'epi sodes')
    for number in range(24):
        add(
            store,
            header,
            short=number % 7 == 0,
            id=f'e{number}',
            task=str(rng.choice(['reach', 'stack'])),
            source=str(rng.choice(['policy', 'teleop'])),
            policy=str(rng.choice(['p1', 'p2', ''])),
            operator=str(rng.choice(['anna', 'bob'])),
            world=str(rng.choice(['sim', 'real'])),
            result=str(rng.choice(['success', 'truncated'])),
            success=[True, False, None][number % 3],
            seed=number % 5,
            interventions=[None, 0, 2, 1][number % 4],
            tags=[['a'], ['a', 'b'], ['b'], []][number % 4],
            start_time_ns=number * DAY_NS // 6,
        )
        for kind, author in REWARDS.get(number, []):
            store.add_reward(f'e{number}', [0, 1], task='stack', kind=kind, author=author)
    return store


def answers(store):
    return {query: [header.id for header in store.episodes(query)] for query in QUERIES}


def test_every_query_equals_a_walk_over_the_headers(store):
    headers = [read_header(path) for path in store.root.glob('e*')]
    headers.sort(key=lambda header: header.start_time_ns)
    for query in QUERIES:
        rewards = {header.id: rewarded(store.root / header.id) for header in headers}
        expected = [header for header in headers if matches(header, query, rewards[header.id])]
        assert store.episodes(query) == expected, query
    assert len(store.episodes()) == 24
    asked = {word.split('=')[0] for query in QUERIES for word in query.split()}
    assert asked == set(KEYS)


def test_counts_equal_a_walk_over_the_headers(store, header):
    add(store, header, id='odd', task='reach', end_time_ns=1, start_time_ns=9, success=True)
    long = {'start_time_ns': 0, 'end_time_ns': 2**63 - 1, 'interventions': 2**62}
    for name in ('long', 'longer'):  # nothing that a header may say breaks them
        add(store, header, id=name, task='long', **long)
    headers = [read_header(path) for path in store.root.glob('[elo]*')]
    for query in QUERIES:
        expected = {}
        for h in headers:
            if matches(h, query, rewarded(store.root / h.id)):
                expected.setdefault((h.task, h.source), []).append(h)
        found = store.counts(query)
        assert list(found) == sorted(expected), query
        for key, group in expected.items():
            assert found[key] == (
                len(group),
                pytest.approx(sum((h.duration_s or 0) / 3600 for h in group)),
                sum(h.success is True for h in group),
                sum(h.success is False for h in group),
                sum(h.interventions or 0 for h in group),
            ), (query, key)


def test_a_query_that_finds_few_looks_at_those_only(store, monkeypatch):
    store.episodes()
    looked = []
    stamp = store_module.header_stamp
    monkeypatch.setattr(
        store_module, 'header_stamp', lambda root, id: looked.append(id) or stamp(root, id)
    )
    assert not store.look_again('id=e3,e4') and looked == ['e3', 'e4']


def test_what_is_found_is_a_sequence_whose_headers_are_read_when_asked_for(store, header):
    found = store.episodes('task=reach')
    headers = list(found)
    assert found.ids == [h.id for h in headers]
    assert (found[0], found[-1], len(found)) == (headers[0], headers[-1], len(headers))
    assert found[1:3] == headers[1:3] and found[::-1] == headers[::-1]
    assert list(reversed(found)) == headers[::-1]
    with pytest.raises(IndexError):
        found[len(found)]
    store.label(found.ids[0], success=None)
    assert found[0].success is None  # as it is now
    assert found[0] == read_header(store.root / found.ids[0])
    shutil.rmtree(store.root / found.ids[0])
    store.episodes()
    with pytest.raises(StorageError, match='cannot be read'):
        found[0]
    assert not store.episodes('task=nothing')
    assert len(store.episodes(id=[str(number) for number in range(40_000)])) == 0


def test_a_name_that_no_episode_has_is_told_with_the_nearest_one(store):
    assert store.hints('task=reach tag=a reward=sketch:anna success=unknown') == []
    assert store.hints('') == store.hints('policy= seed=99 id=e99') == []
    assert store.hints('task=rech,stack reward=predicted:model-11', tag='curated') == [
        "no episode has task 'rech'; did you mean 'reach'?",
        "no episode has reward 'predicted:model-11'; did you mean 'predicted:model-1' or "
        "'predicted:model-2' or 'predicted'?",
        "no episode has tag 'curated'; known: a, b",
    ]


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


def test_an_index_deleted_beneath_an_open_store_is_made_anew(store, header):
    before = answers(store)
    for file in store.root.glob(f'{INDEX_FILE}*'):
        file.unlink()
    Store(store.root).tag('e0', add=['fresh'])
    assert [h.id for h in store.episodes('tag=fresh')] == ['e0']
    store.tag('e0', remove=['fresh'])
    assert answers(store) == answers(Store(store.root)) == before


def test_a_folder_that_rests_is_not_scanned_and_a_change_is_seen(store, header, monkeypatch):
    monkeypatch.setattr(store_module, '_SETTLED_NS', -1)  # as if the changes were long ago
    before, scans = answers(store), []
    listed = os.listdir
    monkeypatch.setattr(os, 'listdir', lambda path: scans.append(path) or listed(path))
    other = Store(store.root)
    assert answers(store) == answers(other) == before
    assert scans == []  # nor by another one: the index knows
    wait_for_another_time_of_change(store.root)
    add(store, header, id='new', tags=['new'])
    assert other.episodes('tag=new').ids == store.episodes('tag=new').ids == ['new']
    assert len(scans) == 1
    # While one clears the index, another one must not take it for whole.
    cleared = store._index.scanned()
    other._index.clear()
    store._index.set_scanned(cleared)
    assert len(store.episodes()) == 25


def wait_for_another_time_of_change(root):
    before = root.stat().st_mtime_ns
    while root.stat().st_mtime_ns == before:
        os.utime(root)


def test_a_damaged_reward_is_told_until_it_is_mended(store):
    file = next((store.root / 'e3' / 'rewards').glob('*.json'))
    whole = file.read_text()
    store.reindex()
    file.write_text(whole[:20])
    store.reindex()
    for reader in (store, store, Store(store.root)):
        assert reader.episodes('reward=predicted:model-1').ids == ['e17']
        (said,) = reader.damaged.items()
        assert said[0] == f'e3/rewards/{file.name}' and 'not valid JSON' in said[1]
        assert len(reader.episodes()) == 24
    file.write_text(whole)
    assert store.episodes('reward=predicted:model-1').ids == ['e3', 'e17']
    assert (store.damaged, store._index.notes()) == ({}, [])


def test_rewards_that_were_copied_in_are_seen_after_a_refresh(store):
    shutil.copytree(store.root / 'e3' / 'rewards', store.root / 'e5' / 'rewards')
    store.refresh('e5')
    assert store.episodes('reward=predicted:model-1').ids == ['e3', 'e5', 'e17']


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


def test_a_folder_with_a_name_that_is_no_utf_8_leaves_the_store_alone(store):
    before = answers(store)
    os.mkdir(os.fsencode(store.root) + b'/\xff\xfe')
    assert answers(store) == answers(Store(store.root)) == before
    assert store.reindex() == 24 and store.damaged == {}


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


@pytest.mark.parametrize(
    ('damage', 'said'),
    [
        ('"task": "\\ud800"', 'surrogates not allowed'),
        ('"extra": {"a": NaN}', 'Out of range float values'),
        ('"extra": {"a": 1e999}', 'Out of range float values'),
        ('"extra": ' + '[' * 5000 + ']' * 5000, 'maximum recursion depth exceeded'),
    ],
)
def test_a_header_that_python_reads_and_nobody_can_write_leaves_the_store_alone(
    store, damage, said
):
    before = answers(store)
    file = store.root / 'e0' / 'episode.json'
    whole = file.read_text()
    file.write_text(f'{whole.rstrip().removesuffix("}")}, {damage}}}')
    store.reindex()
    assert list(store.damaged) == ['e0']
    assert (
        store.damaged['e0'].startswith(f'{file}: not valid JSON (') and said in store.damaged['e0']
    )
    assert [h.id for h in store.episodes()] == [id for id in before[''] if id != 'e0']
    with pytest.raises(StorageError, match='not valid JSON'):
        store.open('e0')
    file.write_text(whole)
    assert answers(store) == before


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


def read_only(store, monkeypatch):
    """Close a store and open it as one that cannot be written."""
    store._index._connection.close()
    monkeypatch.setattr(os, 'access', lambda *args: False)
    return Store(store.root)


def test_the_index_of_a_store_that_cannot_be_written_serves(store, monkeypatch):
    store.label('e3', success=True)
    before, headers = answers(store), list(store.episodes())
    reader, file = read_only(store, monkeypatch), store.root / INDEX_FILE
    kept = file.read_bytes()
    for name in ('EpisodeReader', 'read_header'):
        monkeypatch.setattr(store_module, name, lambda path: pytest.fail(f'it reads {path}'))
    assert answers(reader) == before and list(reader.episodes()) == headers
    assert file.read_bytes() == kept and [*file.parent.iterdir()] == [file]


@pytest.mark.parametrize('state', ['written to', 'damaged', 'older', 'absent'])
def test_an_index_that_is_not_whole_does_not_serve(store, monkeypatch, state):
    before = answers(store)
    store._index._connection.close()
    file = store.root / INDEX_FILE
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        if state in ('written to', 'older'):
            connection.execute("UPDATE episodes SET task = 'other'")
        if state == 'older':
            connection.execute('PRAGMA user_version = 1')
            connection.close()
        elif state == 'damaged':
            data = file.read_bytes()
            file.write_bytes(data[: len(data) // 2].ljust(len(data), b'\0'))
        elif state == 'absent':
            file.unlink()
        reader = read_only(store, monkeypatch)
        assert answers(reader) == before and not reader.episodes('task=other')


def test_what_came_after_the_index_was_written_is_found(store, header, monkeypatch):
    before = store.episodes().ids
    reader = read_only(store, monkeypatch)
    EpisodeWriter(store.root, header(id='new', start_time_ns=10**18)).commit()
    shutil.rmtree(store.root / 'e3')
    expected = [*(id for id in before if id != 'e3'), 'new']
    assert reader.episodes().ids == read_only(store, monkeypatch).episodes().ids == expected


def test_what_is_being_recorded_is_not_labelled_under_its_recorder(store, header):
    with EpisodeWriter(store.root, header(id='live')) as writer:
        for change in (
            lambda: store.label('live.partial', True),
            lambda: store.tag('live.partial', add=['x']),
            lambda: store.add_reward('live.partial', [1], task='t', kind='sketch', author='a'),
        ):
            with pytest.raises(StorageError, match=r'live\.partial: in use by another process'):
                change()
        writer.commit()
    assert store.label('live', True).success is True  # and what is said afterwards stays
    EpisodeWriter(store.root, header(id='cut')).close()
    assert store.label('cut.partial', False).success is False


def test_a_store_on_a_full_disk_is_read_and_can_be_cleared(store, header, monkeypatch):
    before, opened = answers(store), index_module.Index._open

    def open_full(index):
        opened(index)
        if index._path:  # no page more than there are, as on a full disk
            index._connection.execute('PRAGMA max_page_count = 1')

    monkeypatch.setattr(index_module.Index, '_open', open_full)
    for file in store.root.glob(f'{INDEX_FILE}*'):
        file.unlink()
    full = Store(store.root)
    assert answers(full) == before
    (listed,) = garbage.episodes(full, full.episodes('id=e3').ids)
    assert listed.path == store.root / 'e3'
    with pytest.raises(StorageError, match=r'cannot be written .*full.*make room on the disk'):
        full.reindex()
    monkeypatch.setattr(index_module.Index, '_open', opened)
    assert answers(Store(store.root)) == before  # there is room again


def test_an_index_that_only_another_user_may_write_serves_readers(store, monkeypatch):
    before, opened = answers(store), index_module.Index._open

    def open_foreign(index):
        opened(index)
        if index._path:
            index._connection.execute('PRAGMA query_only = 1')

    monkeypatch.setattr(index_module.Index, '_open', open_foreign)
    monkeypatch.setattr(store_module, '_SETTLED_NS', -1)
    os.utime(store.root)
    foreign = Store(store.root)
    assert answers(foreign) == before
    # A change that the others would not hear of is refused.
    with pytest.raises(StorageError, match='see to the rights of the file'):
        foreign.label('e0', None)
    assert answers(store) == before


actions = st.lists(
    st.tuples(
        st.sampled_from(['add', 'label', 'tag', 'untag', 'reward', 'remove', 'query']),
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
        elif action == 'reward' and path.exists():
            about = {'kind': 'sketch', 'author': 'anna' if number % 2 else 'bob'}
            store.add_reward(path.name, [number], task='reach', **about)
        elif action in ('tag', 'untag') and path.exists():
            store.tag(path.name, **{'add' if action == 'tag' else 'remove': ['a', 'b']})
        elif action == 'remove' and path.exists():
            shutil.rmtree(path)
            store.episodes()  # ids are not used again; who puts another in its place refreshes
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
        about = {'task': 'busy', 'kind': 'sketch', 'author': name}
        store.add_reward('shared', [number], **about)
        store.add_reward(header.id, [number], **about)
""")
READER = textwrap.dedent("""
    import os, sys
    from robot_rl.storage.store import Store
    root, done = sys.argv[1:]
    store, seen, ended = Store(root), {}, False
    while not ended:
        ended = os.path.exists(done)  # one more time after the end
        for query in ('task=busy', 'reward=sketch:a', 'reward=sketch:b task=busy'):
            found = store.episodes(query)
            assert seen.get(query, set()) <= set(found.ids), query
            assert len(list(found)) == len(found)
            seen[query] = set(found.ids)
    assert not store.damaged
    print(*(len(ids) for ids in seen.values()))
""")


def test_two_writers_and_ten_readers_at_once(tmp_path, header):
    root, done = tmp_path / 'store', tmp_path / 'done'
    add(Store(root), header, id='shared')
    writers = [subprocess.Popen([sys.executable, '-c', WRITER, str(root), name]) for name in 'ab']
    readers = [
        subprocess.Popen(
            [sys.executable, '-c', READER, str(root), str(done)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(10)
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    done.touch()
    assert [reader.communicate(timeout=120)[0] for reader in readers] == ['30 16 15\n'] * 10
    store = Store(root)
    expected = {f'{name}-{number}' for name in 'ab' for number in range(15)}
    assert {h.id for h in store.episodes('task=busy')} == expected
    assert len(store.episodes('task=busy success=true')) == 16
    values = [store.open('shared').reward(r.id)[0] for r in store.open('shared').rewards()]
    assert sorted(values) == sorted([*range(15)] * 2)
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


def test_many_that_open_a_new_index_at_once_wait_for_each_other(tmp_path):
    """Once "database is locked": SQLite does not wait where two switch a new file to WAL."""

    def open_index(folder, start, problems):
        start.wait()
        try:
            Index(folder / 'index.sqlite').ids()
        except StorageError as problem:
            problems.append(problem)

    for number in range(60):
        start, problems = threading.Barrier(8), []
        arguments = (tmp_path / str(number), start, problems)
        openers = [threading.Thread(target=open_index, args=arguments) for _ in range(8)]
        for opener in openers:
            opener.start()
        for opener in openers:
            opener.join()
        assert not problems


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


SPOILT = {
    'damaged': lambda file: file.write_bytes(file.read_bytes()[:-40]),
    'newer': lambda file: file.write_text(
        file.read_text().replace('"schema_version": 3', '"schema_version": 9')
    ),
    'gone': lambda file: file.unlink(),
}


@pytest.mark.parametrize('what', SPOILT)
def test_a_header_that_is_spoilt_later_is_noticed_where_it_is_read(store, what):
    """The index went on to tell what the header had been."""
    assert store.episodes('id=e3')[0].seed == 3 and not store.look_again()
    SPOILT[what](store.root / 'e3' / 'episode.json')
    with pytest.raises(StorageError, match=r'e3.episode\.json'):
        list(Store(store.root).episodes('id=e3'))
    assert 'e3' not in store.episodes().ids and 'episode.json' in store.damaged['e3']


def test_a_header_that_another_one_took_the_place_of_is_noticed(store):
    ids = store.episodes('seed=77').ids
    write_header(store.root / 'e3', read_header(store.root / 'e3').replace(seed=77))
    assert store.look_again()
    assert ids == [] and store.episodes('seed=77').ids == ['e3'] and store.damaged == {}
    store.label('e3', True)  # a change by a Store needs no second look
    assert not store.look_again()
