"""robot-rl episodes: what a person types, and what machines read."""

import io
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile

import pytest
import yaml

from robot_rl.cli.main import main
from robot_rl.errors import StorageError
from robot_rl.storage import column_file
from robot_rl.storage.episode import EpisodeHeader, EpisodeWriter, read_header
from robot_rl.storage.store import INDEX_FILE, Store
from robot_rl.storage.streams import Required


@pytest.fixture
def store(tmp_path, monkeypatch):
    root = tmp_path / 'my episodes'
    for number in range(3):
        header = EpisodeHeader(
            id=f'e{number}',
            task='ur5e/reach' if number else 'other',
            source='policy',
            success=[True, False, None][number],
            start_time_ns=number * 10**9,
        )
        with EpisodeWriter(root, header) as writer:
            writer.write('/n', 'x/msg/X', 'uint8 x', b'0001000', (number + 2) * 10**9, None, 1)
            writer.commit(result='truncated')
    monkeypatch.setenv('ROBOT_RL_STORE', str(root))
    return root


@pytest.fixture
def run(capsys):
    def call(*argv):
        code = main(['episodes', *argv])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_ls_prints_one_json_object_wherever_the_flags_stand(store, run):
    for argv in (
        ['ls', '--json', 'task=ur5e/reach', 'success=false'],
        ['ls', 'task=ur5e/reach', '--json', 'success=false'],
        ['ls', 'task=ur5e/reach', 'success=false', '--store', str(store), '--json'],
    ):
        code, out, err = run(*argv)
        data = json.loads(out)
        assert (code, err, data['count'], data['damaged']) == (0, '', 1, {})
        (episode,) = data['episodes']
        assert (episode['id'], episode['success'], episode['duration_s']) == ('e1', False, 2)
        assert episode['topics']['/n']['count'] == 1
        assert episode['path'] == str(store / 'e1')


def test_ls_prints_a_table_and_what_is_unfinished(store, run):
    EpisodeWriter(store, EpisodeHeader(id='cut')).close()
    code, out, _ = run('ls', 'source=policy')
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == [
        'id', 'task', 'source', 'policy', 'result', 'success', 'seconds', 'flag', 'tags'
    ]  # fmt: skip
    assert lines[1].split() == ['e0', 'other', 'policy', 'truncated', 'true', '2.0']
    assert lines[-2].startswith('3 episodes in') and lines[-1] == 'unfinished: cut.partial'


@pytest.mark.parametrize('action', ['ls', 'stats', 'verify'])
def test_a_name_that_no_episode_has_is_told_on_stderr(store, run, action):
    code, out, err = run(action, 'task=ur5e/reech', '--json')
    assert (code, err.count('\n')) == (0, 1) and json.loads(out)
    assert err == "robot-rl: no episode has task 'ur5e/reech'; did you mean 'ur5e/reach'?\n"
    assert run(action, 'task=ur5e/reach')[2] == ''


def test_show_tells_header_topics_and_damage(store, run):
    code, out, _ = run('show', 'e1', '--json')
    data = json.loads(out)
    assert (code, data['id'], data['damage']) == (0, 'e1', None)
    (store / 'e1' / 'streams.mcap').write_bytes(b'')
    code, out, _ = run('show', 'e1')
    assert code == 0 and 'cut off or damaged after 0 messages' in ' '.join(out.split())


def test_show_tells_the_world_that_was_drawn(store, run):
    world = {'randomisation': {'gain': [0.5, 1]}, 'domain': {'imperfections': {'gain': [0.75]}}}
    with EpisodeWriter(store, EpisodeHeader(id='e3', extra=world | {'lerobot': 'x'})) as writer:
        writer.commit()
    code, out, _ = run('show', 'e3')
    shown = yaml.safe_load(out)
    assert code == 0 and 'lerobot' not in shown
    assert {name: shown[name] for name in world} == world
    assert json.loads(run('show', 'e3', '--json')[1])['extra'] == world | {'lerobot': 'x'}
    assert 'domain' not in yaml.safe_load(run('show', 'e1')[1])


def test_label_and_tag_change_the_episode(store, run):
    assert run('label', 'e2', '--success', 'true')[0] == 0
    assert run('tag', 'e2', '+curated', '+b', '-absent')[0] == 0
    code, out, _ = run('tag', 'e2', '-b', '--json')
    assert (code, json.loads(out)['tags']) == (0, ['curated'])
    header = read_header(store / 'e2')
    assert (header.success, header.tags) == (True, ('curated',))
    assert json.loads(run('ls', '--json', 'tag=curated', 'success=true')[1])['count'] == 1


def test_what_cannot_be_judged_is_told_and_keeps_nothing_else_from_it(store, run, monkeypatch):
    for id, task in (('e3', 'lab/wave'), ('e4', 'ur5e/reach')):
        with EpisodeWriter(store, EpisodeHeader(id=id, task=task)) as writer:
            writer.write('/n', 'x/msg/X', 'uint8 x', b'0001000', 10**9, None, 1)
            writer.commit()
    asked = []
    monkeypatch.setattr(
        'robot_rl.imitation.data.judge',
        lambda store, task, query, refused: (
            asked.append(query) or [store.label(id, True) for id in store.episodes(query).ids]
        ),
    )
    code, out, err = run('judge', '--json')
    data = json.loads(out)
    assert (code, data['judged'], data['success']) == (1, 2, 2)
    assert asked == [['task=ur5e/reach', 'success=unknown']]  # e1 is judged already
    assert err.splitlines() == [f'robot-rl: not judged: {problem}' for problem in data['refused']]
    (line,) = data['refused']
    assert line.startswith("unknown task 'lab/wave'")
    assert json.loads(run('ls', 'success=unknown', '--json')[1])['count'] == 1


def test_reindex_counts(store, run):
    Store(store).episodes()
    (store / INDEX_FILE).write_bytes(b'x' * 5000)
    assert json.loads(run('reindex', '--json')[1]) == {'count': 3, 'damaged': {}}
    assert '3 episodes indexed' in run('reindex')[1]


def test_a_damaged_episode_is_told_on_stderr(store, run):
    (store / 'e1' / 'episode.json').write_text('')
    code, out, err = run('ls', '--json')
    assert (code, json.loads(out)['count']) == (0, 2)
    assert err.startswith('robot-rl: skipped: ') and err.count('\n') == 1


def test_stats_counts_by_task_and_source(store, run):
    data = json.loads(run('stats', '--json')[1])
    assert (data['episodes'], data['hours']) == (3, pytest.approx(3 * 2 / 3600))
    assert (data['successes'], data['failures'], data['success_rate']) == (1, 1, 0.5)
    assert [(row['task'], row['episodes'], row['success_rate']) for row in data['groups']] == [
        ('other', 1, 1.0),
        ('ur5e/reach', 2, 0.0),
    ]
    lines = run('stats', 'success=unknown')[1].splitlines()
    assert lines[1].split() == ['ur5e/reach', 'policy', '1', '0.001', '0', '0', '0', 'unknown']
    assert json.loads(run('stats', 'task=none', '--json')[1])['groups'] == []


def test_verify_has_a_line_for_each_damaged_file_and_code_1(store, run):
    code, out, err = run('verify')
    assert (code, err) == (0, '')
    assert out.startswith('3 episodes checked (') and '0 damaged files' in out
    streams = store / 'e1' / 'streams.mcap'
    streams.write_bytes(streams.read_bytes()[:-1] + b'x')
    (store / 'e2' / 'episode.json').write_text('{')  # after it was indexed
    code, out, _ = run('verify')
    lines = out.splitlines()
    assert code == 1 and len(lines) == 3
    assert lines[0].startswith(f'{streams}: SHA-256 ')
    assert lines[1].startswith(f'{store / "e2" / "episode.json"}: ')
    code, out, _ = run('verify', '--json', 'id=e1')
    data = json.loads(out)
    assert (code, data['checked'], data['unverifiable']) == (1, 1, [])
    assert [item['file'] for item in data['damaged']] == [str(streams)]
    assert run('verify', 'id=e0')[0] == 0


def test_recover_mends_what_was_cut_and_says_what_it_cannot(store, run):
    for id, messages in (('cut', 3), ('empty', 0)):
        with EpisodeWriter(store, EpisodeHeader(id=id)) as writer:
            for i in range(messages):
                writer.write('/n', 'x/msg/X', 'uint8 x', b'0001000', 10**9 + i, None, i + 1)
    with EpisodeWriter(store, EpisodeHeader(id='live')):
        code, out, err = run('recover', '--json')
    assert (code, json.loads(out)['recovered'], err.count('\n')) == (1, ['cut'], 1)
    assert err.startswith(f'robot-rl: {store / "empty.partial"}: no message reached the disk')
    (episode,) = json.loads(run('ls', 'id=cut', '--json')[1])['episodes']
    assert episode['topics']['/n']['count'] == 3 and episode['termination'].startswith('cut: ')
    code, _, err = run('recover', 'emtpy')
    assert (code, err.count('\n')) == (2, 1)
    assert "unknown unfinished episode 'emtpy'; did you mean 'empty'?" in err
    assert run('recover', 'empty')[0] == 1


def test_episodes_travel_by_archive_and_by_merge(store, run, tmp_path):
    archive, other = tmp_path / 'a r.tar', tmp_path / 'other'
    data = json.loads(run('export', str(archive), 'task=ur5e/reach', '--json')[1])
    assert data['episodes'] == ['e1', 'e2'] and data['bytes'] == archive.stat().st_size
    code, out, _ = run('import', str(archive), '--store', str(other))
    assert code == 0 and out.startswith(f'2 episodes taken into {other}, 0 there already')
    data = json.loads(run('merge', str(store), '--store', str(other), '--json')[1])
    assert (data['added'], data['same'], data['renamed']) == (['e0'], ['e1', 'e2'], {})
    with EpisodeWriter(tmp_path / 'third', EpisodeHeader(id='e0', task='another')) as writer:
        writer.commit()
    code, out, _ = run('merge', str(tmp_path / 'third'), '--store', str(other))
    assert code == 0 and out.startswith('e0 is another episode here; it became e0-')
    assert len(Store(other).episodes()) == 4


def test_gc_lists_asks_and_deletes_only_then(store, run, monkeypatch):
    with EpisodeWriter(store, EpisodeHeader(id='thrown')) as writer:
        writer.discard()
    thrown = store / 'thrown.discarded'
    code, out, _ = run('gc')  # nobody is there to be asked
    assert code == 0 and thrown.exists() and 'nothing was deleted' in out
    assert out.startswith(f'{thrown}  (0.0 MB; a recording that was discarded)')
    terminal = io.StringIO('n\ny\n')
    terminal.isatty = lambda: True
    monkeypatch.setattr('sys.stdin', terminal)
    assert 'nothing was deleted' in run('gc')[1] and thrown.exists()
    assert '1 to delete, 0.0 MB: deleted' in run('gc')[1] and not thrown.exists()
    code, out, err = run('gc', '--episodes', 'e0')  # and now the end of the input, as Ctrl-D gives
    assert (code, err) == (0, '') and 'nothing was deleted' in out and (store / 'e0').exists()
    data = json.loads(run('gc', '--episodes', 'task=ur5e/reach', '--json')[1])
    assert [item['path'] for item in data['listed']] == [str(store / 'e1'), str(store / 'e2')]
    assert data['deleted'] is False and (store / 'e1').exists()
    data = json.loads(run('gc', '--yes', 'e2', '--episodes', '--json')[1])
    assert data['deleted'] is True and not (store / 'e2').exists()
    assert run('gc', '--yes')[1] == 'nothing to delete\n'
    assert json.loads(run('ls', '--json')[1])['count'] == 2


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        (['ls', 'tsk=x'], "unknown query key 'tsk'; did you mean 'task'?"),
        (['ls', 'reach'], "'reach' is not of the form key=value"),
        (['ls', '--stor', 'x'], 'episodes ls: '),
        (['ls', '--store', 'absent'], 'absent: no folder of episodes here; --store names it'),
        (['list'], "unknown action of episodes 'list'"),
        (['show', 'e9'], "unknown episode 'e9'; known: e0, e1, e2"),
        (['show'], "episodes show: the episode's id is missing; see --help"),
        (['label', 'e1', '--success', 'perhaps'], 'episodes label: '),
        (['tag', 'e1', 'curated'], "'curated' is neither +tag (add) nor -tag (remove)"),
        (['tag', 'e1', '+a,b'], 'without spaces and commas'),
        (['tag', 'e1'], 'tag: what is to change? +tag adds, -tag removes'),
        (['recover', 'e1'], 'e1: was finished; there is nothing to recover'),
        (['export', 'x.tar', 'task=othr'], "no episode has task 'othr'; did you mean 'other'?"),
        (['gc', 'e1'], 'gc: episodes are deleted with --episodes only'),
        (['gc', '--episodes', '--yes'], 'gc: --episodes needs ids, or a query like tag=spoilt'),
        (['gc', '--episodes', '--yes', 'e9'], "unknown episode 'e9'"),
        (['export'], 'episodes export: the file or folder to make is missing; see --help'),
        (['merge'], 'episodes merge: the folder of the other store is missing'),
        (['export', 'x.tar', 'task=none'], 'no episode matches; nothing to export'),
        (['export', 'no/folder/x.tar'], 'no/folder/x.tar: cannot be written (No such file'),
        (['import', 'absent.tar'], 'absent.tar: cannot be unpacked (No such file'),
        (['merge', 'absent'], 'absent: no folder of episodes here'),
        (['verify', 'tsk=x'], "unknown query key 'tsk'"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(store, run, argv, said):
    before = {path: path.read_bytes() for path in store.rglob('*.json')}
    code, out, err = run(*argv)
    assert (code, out, err.count('\n')) == (2, '', 1), err
    assert err.startswith('robot-rl: ') and said in err
    assert {path: path.read_bytes() for path in store.rglob('*.json')} == before


def test_help_shows_an_example_and_every_action(run):
    code, out, _ = run('--help')
    assert code == 0 and 'example: robot-rl episodes ls --json' in out
    for action in (
        'ls', 'show', 'stats', 'judge', 'label', 'tag', 'verify', 'recover', 'export', 'import',
        'merge', 'gc', 'reindex',
    ):  # fmt: skip
        assert f'\n{action} ' in out
    with pytest.raises(SystemExit) as stop:
        run('ls', '--help')
    assert stop.value.code == 0


def test_neither_the_command_nor_storage_imports_anything_heavy():
    code = (
        'import sys, robot_rl.cli.episodes, robot_rl.storage.columns, robot_rl.storage.sampler; '
        'heavy = {"torch", "mujoco", "rclpy", "cv2", "onnxruntime"} & set(sys.modules); '
        'sys.exit(",".join(heavy) or None)'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def at_once():
    """Fail where something waits for what never comes."""
    former = signal.signal(signal.SIGALRM, lambda *_: pytest.fail('it waits'))
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


@pytest.mark.parametrize('kind', [stat.S_IFIFO, stat.S_IFSOCK])
@pytest.mark.parametrize(
    'name', ['note', 'streams.mcap', 'episode.json', 'rewards/r.json', 'rewards/r.npy']
)
def test_no_command_waits_for_a_pipe_in_an_episode(store, run, tmp_path, at_once, name, kind):
    about = {'id': 'r', 'task': 'a', 'kind': 'sketch', 'author': 'anna', 'times_ns': [1]}
    Store(store).add_reward('e1', [1.0], **about)
    file = store / 'e1' / name
    file.unlink(missing_ok=True)
    os.mknod(file, kind | 0o600)
    for argv in (
        ['verify'],
        ['export', str(tmp_path / 'a.tar')],
        ['export', str(tmp_path / 'a.hdf5'), '--format', 'robomimic'],
        ['merge', str(store), '--store', str(tmp_path / 'other')],
    ):
        code, out, err = run(*argv)
        assert code == 1
        assert sum(str(file) in line for line in (out + err).splitlines()) == 1
    assert {path.name for path in (tmp_path / 'other').iterdir()} == {'.index', 'e0', 'e2'}
    with tarfile.open(tmp_path / 'a.tar') as tar:
        assert {member.split('/')[0] for member in tar.getnames()} == {'e0', 'e2', 'SHA256SUMS'}
    assert run('show', 'e1')[0] == (2 if name == 'episode.json' else 0)
    assert run('ls')[0] == run('stats')[0] == run('gc', '--json')[0] == run('reindex')[0] == 0


def test_columns_that_are_a_pipe_are_not_waited_for(store, run, at_once, tmp_path):
    os.mkfifo(store / 'e1' / 'steps.npz')
    assert run('verify')[0] == run('export', str(tmp_path / 'a.tar'))[0] == 0
    assert run('merge', str(store), '--store', str(tmp_path / 'other'))[0] == 0
    (store / 'e0').rename(store / 'e0.partial')
    (store / 'e0.partial' / 'streams.mcap').unlink()
    os.mkfifo(store / 'e0.partial' / 'streams.mcap')
    code, _, err = run('recover')
    assert code == 1 and 'No regular file' in err
    with pytest.raises(StorageError, match=r'steps\.npz: damaged.*No regular file'):
        column_file.read(store / 'e1' / 'steps.npz')


def test_an_archive_with_a_pipe_is_refused(store, run, at_once, tmp_path):
    archive = tmp_path / 'a.tar'
    assert run('export', str(archive))[0] == 0
    with tarfile.open(archive, 'a') as tar:
        member = tarfile.TarInfo('e1/note')
        member.type = tarfile.FIFOTYPE
        tar.addfile(member)
    code, _, err = run('import', str(archive), '--store', str(tmp_path / 'other'))
    assert code == 2 and "'e1/note' is no file of an episode" in err


def test_a_query_that_is_quoted_as_a_whole_is_read_as_one(store, run):
    code, out, err = run('ls', 'task=ur5e/reach success=false', '--json')
    assert (code, err, [e['id'] for e in json.loads(out)['episodes']]) == (0, '', ['e1'])


def test_what_is_left_out_because_it_is_damaged_is_told(store, run, tmp_path):
    (store / 'e1' / 'episode.json').write_text('')
    (store / INDEX_FILE).unlink(missing_ok=True)
    code, out, err = run('stats')
    assert code == 0 and 'e1/episode.json' in err
    code, out, err = run('export', str(tmp_path / 'all.tar'))
    assert code == 1 and 'e1/episode.json' in err and out.startswith('2 episodes')
    code, out, err = run('export', str(tmp_path / 'one.tar'), 'id=e0')
    assert code == 0 and out.startswith('1 episode ')


def test_an_episode_s_id_is_no_name_of_an_export(store, run):
    code, _, err = run('export', 'e1')
    assert code == 2 and 'export FILE id=e1' in err


def test_columns_that_are_damaged_are_told_by_show(tmp_path, run):
    assert main(['collect', '--task', 'ur5e/reach', '--policy', 'constant', '--episodes', '1',
                 '--store', str(tmp_path / 'store')]) == 0  # fmt: skip
    (header,) = Store(tmp_path / 'store').episodes()
    file = tmp_path / 'store' / header.id / 'steps.npz'
    file.write_bytes(file.read_bytes()[:5000])
    code, out, err = run(
        'show', header.id, '--out', str(tmp_path / 'out'), '--store', str(tmp_path / 'store')
    )
    assert code in (0, 1) and 'steps.npz' in out + err


def test_an_episode_without_a_readable_header_can_be_cleared_away(store, run):
    (store / 'e1' / 'episode.json').write_text('{')
    code, _, _ = run('gc', '--episodes', 'e1', '--yes')
    assert code == 0 and not (store / 'e1').exists() and (store / 'e0').is_dir()


def test_verify_takes_ids_tells_of_strays_and_of_recordings_of_which_nothing_tells(store, run):
    code, out, _ = run('verify', 'e1', '--json')
    assert (code, json.loads(out)['checked']) == (0, 1)
    code, _, err = run('verify', 'e7')
    assert code == 2 and "unknown episode 'e7'" in err
    (store / 'notes').mkdir()
    (store / 'notes' / 'of the day.txt').write_text('fine')
    code, out, _ = run('verify')
    assert code == 0 and f'{store / "notes"}: no episode, and nothing of one' in out
    EpisodeWriter(store, EpisodeHeader(id='cut')).close()  # recover mends it
    assert run('verify')[0] == 0
    (store / 'cut.partial' / 'episode.json').unlink()
    code, out, _ = run('verify')
    assert code == 1 and f'{store / "cut.partial" / "episode.json"}: cannot be read' in out


def test_ls_tells_a_header_that_was_damaged_after_it_was_indexed(store, run):
    assert json.loads(run('ls', '--json')[1])['count'] == 3
    (store / 'e1' / 'episode.json').write_text('{')
    code, out, err = run('ls')
    assert code == 0 and out.splitlines()[-1].startswith('2 episodes in')
    assert f'skipped: {store / "e1" / "episode.json"}' in err


def test_a_store_is_merged_not_imported_and_a_failed_import_leaves_nothing(store, run, tmp_path):
    new = tmp_path / 'new'
    code, _, err = run('import', str(store), '--store', str(new))
    assert code == 2 and f'robot-rl episodes merge {store} copies them' in err
    assert err.count('\n') == 1 and not new.exists()
    (tmp_path / 'a.tar').write_bytes(b'no archive')
    assert run('import', str(tmp_path / 'a.tar'), '--store', str(new))[0] == 2
    assert not new.exists()
    assert run('merge', str(store), '--store', str(new))[0] == 0 and (new / 'e1').is_dir()


def test_show_tells_the_model_and_the_time_of_a_reward(store, run):
    about = {
        'task': 'a',
        'kind': 'predicted',
        'author': 'm',
        'model_sha256': 'ab',
        'created_ns': 5,
    }
    Store(store).add_reward('e1', [1.0], **about, times_ns=[1])
    (reward,) = json.loads(run('show', 'e1', '--json')[1])['rewards']
    assert about.items() <= reward.items()


def test_an_end_before_the_start_is_no_length(store, run):
    """The clock was set back while it was recorded: it lasted -1700000000.0 seconds."""
    with EpisodeWriter(store, EpisodeHeader(id='back', start_time_ns=10**18)) as writer:
        writer.write('/n', 'x/msg/X', 'uint8 x', b'0001000', 10**9, None, 1)
        writer.commit()
    assert json.loads(run('ls', 'id=back', '--json')[1])['episodes'][0]['duration_s'] is None
    assert '-' not in run('ls', 'id=back')[1].splitlines()[1]


def test_an_episode_of_which_much_is_missing_is_marked_and_found(store, run):
    with EpisodeWriter(store, EpisodeHeader(id='thin', start_time_ns=0)) as writer:
        writer.run_from(0, {'/n': Required('x/msg/X', 10.0)})
        for k in range(8):
            writer.write('/n', 'x/msg/X', 'uint8 x', b'0001000', k * 10**8, None, 1)
        writer.run_until(2 * 10**9)
        writer.commit()
    (line,) = run('ls', 'flagged=true')[1].splitlines()[1:-1]
    assert line.split()[0] == 'thin' and line.split()[-1] == 'short'
    shown = json.loads(run('show', 'thin', '--json')[1])
    assert shown['flags'] == ['/n: 8 of 20 messages, longest gap 1.30 s']
    assert json.loads(run('ls', 'flagged=false', '--json')[1])['count'] == 3
