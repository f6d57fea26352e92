"""robot-rl episodes: what a person types, and what machines read."""

import json
import subprocess
import sys

import pytest

from robot_rl.cli.main import main
from robot_rl.storage.episode import EpisodeHeader, EpisodeWriter, read_header


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
        'id', 'task', 'source', 'policy', 'result', 'success', 'seconds', 'tags'
    ]  # fmt: skip
    assert lines[1].split() == ['e0', 'other', 'policy', 'truncated', 'true', '2.0']
    assert lines[-2].startswith('3 episodes in') and lines[-1] == 'unfinished: cut.partial'


def test_show_tells_header_topics_and_damage(store, run):
    code, out, _ = run('show', 'e1', '--json')
    data = json.loads(out)
    assert (code, data['id'], data['damage']) == (0, 'e1', None)
    (store / 'e1' / 'streams.mcap').write_bytes(b'')
    code, out, _ = run('show', 'e1')
    assert code == 0 and 'cut off or damaged after 0 messages' in ' '.join(out.split())


def test_label_and_tag_change_the_episode(store, run):
    assert run('label', 'e2', '--success', 'true')[0] == 0
    assert run('tag', 'e2', '+curated', '+b', '-absent')[0] == 0
    code, out, _ = run('tag', 'e2', '-b', '--json')
    assert (code, json.loads(out)['tags']) == (0, ['curated'])
    header = read_header(store / 'e2')
    assert (header.success, header.tags) == (True, ('curated',))
    assert json.loads(run('ls', '--json', 'tag=curated', 'success=true')[1])['count'] == 1


def test_reindex_counts(store, run):
    (store / 'index.sqlite').write_bytes(b'x' * 5000)
    assert json.loads(run('reindex', '--json')[1]) == {'count': 3, 'damaged': {}}
    assert '3 episodes indexed' in run('reindex')[1]


def test_a_damaged_episode_is_told_on_stderr(store, run):
    (store / 'e1' / 'episode.json').write_text('')
    code, out, err = run('ls', '--json')
    assert (code, json.loads(out)['count']) == (0, 2)
    assert err.startswith('robot-rl: skipped: ') and err.count('\n') == 1


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        (['ls', 'tsk=x'], "unknown query key 'tsk'; did you mean 'task'?"),
        (['ls', 'reach'], "'reach' is not of the form key=value"),
        (['ls', '--stor', 'x'], 'episodes ls: '),
        (['ls', '--store', 'absent'], 'absent: no folder of episodes here; --store names it'),
        (['list'], "unknown action of episodes 'list'"),
        (['show', 'e9'], "unknown episode 'e9'; known: e0, e1, e2"),
        (['show'], 'episodes show: '),
        (['label', 'e1', '--success', 'perhaps'], 'episodes label: '),
        (['tag', 'e1', 'curated'], "'curated' is neither +tag (add) nor -tag (remove)"),
        (['tag', 'e1', '+a,b'], 'without spaces and commas'),
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
    for action in ('ls', 'show', 'label', 'tag', 'reindex'):
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
