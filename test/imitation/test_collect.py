"""Episodes collected in simulation come back as what the simulation gave."""

import json

import numpy as np
import pytest

from robot_rl import registry
from robot_rl.cli.main import main
from robot_rl.imitation.collect import collect_episodes
from robot_rl.imitation.data import write_demonstrations
from robot_rl.sim.arm import ArmEnvironment
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.pictures import Pictures
from robot_rl.storage.store import Store


def collect(root, name, seeds, lanes=2, noise=0.0):
    task = registry.make_task(name)
    policy = registry.make_demonstrator(name, noise)
    store, about = Store(root), {'policy': 'scripted', 'tags': ('shown',)}
    return task, store, collect_episodes(store, ArmEnvironment(task, lanes), policy, seeds, about)


@pytest.mark.parametrize('name', ['ur5e/lift', 'ur5e/reach', 'ur5e/insert'])
def test_demonstrations_are_the_environment_s_own_rows(tmp_path, name):
    seeds = [3, 4, 5]  # the last round is not full
    task, store, headers = collect(tmp_path / 'store', name, seeds)
    assert [header.seed for header in headers] == seeds
    contract, environment = task.contract(), ArmEnvironment(task, 1)
    steps = write_demonstrations(tmp_path / 'd', store, 'policy=scripted', task, contract)
    assert steps.spans.tolist() == [
        [k * (task.max_steps + 1), (k + 1) * (task.max_steps + 1)] for k in range(3)
    ]
    for header, (first, last) in zip(headers, steps.spans.tolist(), strict=True):
        columns = aligned_columns(store.open(header.id))
        rows = {key: steps.flat[key].take(np.arange(first, last), axis=0) for key in steps.flat}
        timestep, seen = environment.reset([header.seed]), [environment.columns]
        for t, action in enumerate(columns['action/requested']):
            for field in contract.observation:
                np.testing.assert_allclose(
                    rows[f'observation/{field.name}'][t], timestep.observation[field.name][0],
                    atol=1e-5,
                )  # fmt: skip
            timestep = environment.step(action[None])
            seen.append(environment.columns)
            assert rows['reward'][t] == pytest.approx(timestep.reward[0], abs=1e-5)
        np.testing.assert_array_equal(
            rows['action'][:-1], columns['action/requested'].astype('f4')
        )
        whole = {name: np.stack([row[name][0] for row in seen]) for name in seen[0]}
        assert header.success == bool(task.success(whole)) and header.tags == ('shown',)


def test_what_was_applied_is_what_limits_left_of_it(tmp_path):
    task = registry.make_task('ur5e/lift')
    _, store, (header,) = collect(tmp_path, 'ur5e/lift', [8], lanes=1)
    columns = aligned_columns(store.open(header.id))
    asked, applied = columns['action/requested'], columns['action/applied']
    np.testing.assert_allclose(applied[:, :3], asked[:, :3], atol=2e-3)
    np.testing.assert_array_equal(applied[:, 4], asked[:, 4])
    tool = task.chain.position(columns['command.position'])
    np.testing.assert_allclose(np.diff(tool, axis=0) / 0.05, applied[:, :3], atol=1e-9)


def run(capsys, *words):
    code = main(['collect', *words, '--json'])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else {}, err


def test_the_command_collects_and_says_how_many_succeeded(tmp_path, capsys):
    place = ['--task', 'ur5e/reach', '--store', str(tmp_path)]
    code, told, _ = run(capsys, *place, '--policy', 'scripted', '--episodes', '3', '--tag', 'a')
    assert code == 0 and told['success_rate'] == 1.0 and len(told['episodes']) == 3
    code, worse, _ = run(
        capsys, *place, '--policy', 'scripted', '--episodes', '3', '--noise', '0.5'
    )
    assert worse['success_rate'] < 1.0
    _, chance, _ = run(capsys, *place, '--policy', 'random', '--episodes', '2')
    store = Store(tmp_path)
    assert chance['success_rate'] == 0.0
    assert [h.id for h in store.episodes('policy=scripted success=true tag=a')] == told['episodes']
    assert [h.id for h in store.episodes('tag=noise-0.5')] == worse['episodes']
    assert [h.policy for h in store.episodes('success=false policy=random')] == ['random'] * 2


@pytest.mark.parametrize(
    ('words', 'line'),
    [
        (['--policy', 'random', '--noise', '0.1'], "--noise is of the policy 'scripted'"),
        (['--policy', 'scripted', '--task', 'suite/cartpole-swingup'], 'has no arm'),
        (['--policy', 'nobody'], "unknown policy 'nobody'"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, capsys, words, line):
    task = [] if '--task' in words else ['--task', 'ur5e/reach']
    code, _, err = run(capsys, *words, *task, '--store', str(tmp_path))
    assert code == 2 and line in err and err.count('\n') == 1


def test_a_demonstrator_s_episodes_hold_what_cameras_showed(tmp_path, offscreen):
    """It sees poses; the contract of its episodes has pictures, which are kept without losses."""
    task = registry.make_task('ur5e/reach').with_cameras({'overview': (32, 40)})
    path = tmp_path / 'reach.yaml'
    path.write_text(task.config.to_yaml())
    words = ['collect', '--task', str(path), '--policy', 'scripted', '--episodes', '2']
    assert main([*words, '--store', str(tmp_path / 'store')]) == 0
    store = Store(tmp_path / 'store')
    headers = store.episodes('')
    assert [header.contract for header in headers] == [task.contract()] * 2
    assert all(header.success for header in headers)
    environment = registry.make_environment(str(path), 1)
    for header in headers:
        columns = aligned_columns(store.open(header.id))
        shown, timestep = columns['overview.image'], environment.reset([header.seed])
        assert isinstance(shown, Pictures) and shown.shape == (61, 32, 40, 3)
        assert columns['target_pose.position'].shape == (61, 3)
        for t, action in enumerate(columns['action/requested']):
            np.testing.assert_array_equal(shown[t], timestep.observation['overview'][0])
            timestep = environment.step(action[None])
        np.testing.assert_array_equal(shown[60], timestep.observation['overview'][0])
    environment.close()
