"""robot-rl collect --through ros: episodes by the nodes beside an arm, on its twin."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from robot_rl import registry, resources
from robot_rl.control.observation import Observer
from robot_rl.control.runtime import load_policy
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.robots.mjcf import load_model
from robot_rl.sim.recorded import steps_of, with_tool
from robot_rl.specs.base import load_yaml
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.store import Store


@pytest.fixture
def collect(tmp_path, domain_id):
    """Return `run(*words)`, which collects into tmp_path/store and returns what was told."""

    def run(*words: str) -> dict:
        command = [sys.executable, '-m', 'robot_rl.cli.main', 'collect', '--through', 'ros']
        done = subprocess.run(
            [*command, '--store', str(tmp_path / 'store'), '--json', *words],
            cwd=tmp_path,
            env=os.environ | {'ROS_DOMAIN_ID': str(domain_id)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def opened(tmp_path, id):
    return Store(tmp_path / 'store').open(id)


def steps(tmp_path, id):
    """Return an episode's header, its columns and its steps."""
    episode = opened(tmp_path, id)
    task = registry.make_task(episode.header.task)
    columns = with_tool(task, aligned_columns(episode, kinematics=KinematicChain.from_spec))
    return episode.header, columns, steps_of(task, columns, episode.header.contract)


def closeness(shape, distance):
    """What a task's file pays for a distance [...] [m]."""
    far, near = 1 - np.tanh(distance / shape['far']), np.exp(-((distance / shape['near']) ** 2))
    return (1 - shape['near_share']) * far + shape['near_share'] * near


def paid_for_reach(said, tip, tool, target):
    apart = np.linalg.norm(tool - target, axis=1)
    return closeness(said['reward'], apart), apart <= said['success_distance']


def paid_for_lift(said, tip, tool, cube):
    apart, up = np.linalg.norm(tool - cube, axis=1), cube[:, 2] - said['cube']['size'][2] / 2
    share, held = np.clip(up / said['height'], 0, 1), apart / said['hold_distance']
    reward = 0.3 * closeness(said['reward'], apart) + 0.7 * share * np.exp(-(held**2))
    high = up >= said['height'] - said['success_distance']
    return reward, high & (held <= 1)


def paid_for_push(said, tip, tool, cube, target):
    way, shape, near = (target - cube)[:, :2], said['reward'], said['success_distance']
    left, edge, behind = np.linalg.norm(way, axis=1), said['cube']['size'][0], cube.copy()
    behind[:, :2] -= (edge / 2 + tip) * way / np.maximum(left, near)[:, None]
    apart = np.linalg.norm(tool - behind, axis=1)
    reward = 0.3 * (1 - np.tanh(apart / shape['far'])) + 0.7 * closeness(shape, left)
    return reward, (left <= near) & (np.abs(cube[:, 2] - edge / 2) <= near)


# Of a task's kind: what it pays (rewards [T], what is done [T]), and which poses for.
PAID = {
    'reach': (paid_for_reach, ('target_pose',)),
    'lift': (paid_for_lift, ('cube_pose',)),
    'push': (paid_for_push, ('cube_pose', 'target_pose')),
}


def newest_states(states, columns):
    """Return the messages [T + 1] of `states`, (stamp, message), that rows of columns are of.

    Each is the newest one stamped by its row's time. Stamps keep a phase to the rows, so that
    some are a microsecond from one; as float64 seconds both are known to a quarter of that.
    """
    stamps = np.array([stamp for stamp, _ in states])
    rows = np.abs(stamps - columns['joint_states.time'][:, None]).argmin(axis=1)
    np.testing.assert_allclose(stamps[rows], columns['joint_states.time'], rtol=0, atol=1e-6)
    assert (stamps[rows] <= columns['time'] + 1e-6).all()
    assert (np.append(stamps, np.inf)[rows + 1] >= columns['time'] - 1e-6).all()
    return [states[row][1] for row in rows]


def paid_by_hand(task, episode, columns):
    """Return the rewards [T] and what is done [T] at the rows of columns after the first.

    From messages alone, the newest that had come, in NumPy without the code of tasks and columns:
    joints by MuJoCo's own kinematics of the scene, poses as they were told.
    """
    robot, (function, poses) = task.robot, PAID[task.config.kind]
    said = load_yaml(resources.find('config/tasks', task.name.replace('/', '_')))
    model = load_model(task.config.scene)
    data, places = mujoco.MjData(model), []
    heard = {f'/{name}': [] for name in (robot.joint_states_topic, *poses)}
    for item in episode.messages(heard):
        stamp = item.message.header.stamp
        heard[item.topic].append((stamp.sec + stamp.nanosec * 1e-9, item))
    states, *seen = heard.values()
    for state in newest_states(states, columns)[1:]:
        for joint, angle in zip(state.message.name, state.message.position, strict=True):
            data.joint(robot.mjcf_joints.get(joint, joint)).qpos[0] = angle
        mujoco.mj_kinematics(model, data)
        row = [data.site(robot.tool_site).xpos.copy()]
        for items in seen:
            known = (i for _, i in reversed(items) if i.log_time_ns <= state.log_time_ns)
            place = next(known).message.pose.position
            row.append([place.x, place.y, place.z])
        places.append(row)
    return function(said, robot.tip.radius, *np.array(places).swapaxes(0, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('task', 'episodes'),
    [('ur5e/reach', 2), ('ur5e/lift', 2), ('ur5e/push', 2), ('ur5e/match', 1), ('ur5e/stack', 1),
     ('ur5e/insert', 1), ('jaco/reach', 1), ('jaco/lift', 1)],
)  # fmt: skip
def test_a_demonstrator_commands_the_guard_as_a_person_does(collect, tmp_path, task, episodes):
    words = ('--task', task, '--policy', 'scripted', '--episodes', str(episodes))
    told = collect(*words, '--tag', 'shown')
    assert told['success_rate'] == 1.0 and len(told['episodes']) == episodes
    for seed, id in enumerate(told['episodes']):
        episode, (header, columns, found) = opened(tmp_path, id), steps(tmp_path, id)
        assert (header.source, header.policy, header.seed) == ('teleop', 'scripted', seed)
        assert header.success is True and header.tags == ('shown',)
        topics = {name.lstrip('/') for name in header.topics}
        assert 'teleop/command' in topics and 'policy/action' not in topics
        made = registry.make_task(task)
        assert ('teleop/gripper' in topics) == made.config.gripper
        start = made.initial(seed)
        np.testing.assert_allclose(
            columns['joint_states.position'][0], start.joint_position, atol=0.02
        )
        contract = header.contract
        asked = [item.log_time_ns * 1e-9 for item in episode.messages(('/teleop/command',))]
        assert len(asked) == made.max_steps
        # Rows are a period apart; where the machine is late, more of them than commands.
        periods = (asked[-1] - asked[0]) * contract.rate_hz + 1
        assert abs(len(columns['action/requested']) - periods) <= 2
        assert all(np.isfinite(values).all() for values in found.values())
        spare = 0.1 * (contract.action_upper - contract.action_lower)
        share = np.mean((found['action'] <= contract.action_upper + spare), axis=0)
        assert (share > 0.95).all()  # two commands may fall into one period
        if made.config.kind == 'lift':
            assert columns['action/applied'][-1, -1] == 0.0  # closed
            more = columns['gripper.width'][-1, 0] - made.config.cube.size[0]
            assert -0.005 < more < 0.008  # on the cube; the Jaco's pads are inclined
        if made.config.kind in PAID:
            paid, done = paid_by_hand(made, episode, columns)
            np.testing.assert_allclose(found['reward'][:-1], paid, atol=1e-6)
            assert np.ptp(paid) > 0.3
            assert done[-made.config.success_rows :].all()


@pytest.mark.slow
def test_a_policy_s_twists_and_widths_are_recorded_as_it_asked_for_them(collect, tmp_path):
    told = collect('--task', 'ur5e/lift', '--policy', 'random', '--episodes', '1')
    header, columns, _ = steps(tmp_path, told['episodes'][0])
    assert (header.source, header.policy, header.success) == ('policy', 'random', False)
    contract, asked = header.contract, columns['action/requested']
    assert len(asked) in (119, 120)
    assert (asked >= contract.action_lower).all() and (asked <= contract.action_upper).all()
    assert asked.std(axis=0) == pytest.approx(
        (contract.action_upper - contract.action_lower) / np.sqrt(12), rel=0.25
    )
    # The guard lets widths through as they are, in answer to their tick.
    same = np.isclose(columns['action/applied'][:, -1], asked[:, -1])
    assert same.mean() > 0.95


@pytest.mark.slow
def test_a_policy_file_acts_as_itself_and_is_recorded_with_its_digest(collect, tmp_path):
    file = resources.share() / 'pretrained' / 'ur5e_reach.onnx'
    told = collect('--task', 'ur5e/reach', '--policy', str(file), '--episodes', '2')
    assert told['success_rate'] == 1.0
    for id in told['episodes']:
        header, columns, _ = steps(tmp_path, id)
        assert header.source == 'policy' and header.success
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        assert sha256 in json.dumps(header.to_dict())
        # What was recorded as asked for is what the file asks for, of what was recorded as seen.
        policy = load_policy(file)
        seen = Observer(policy.contract, KinematicChain.from_spec(header.robot_spec))
        assert columns['action/requested'].shape[1] == policy.contract.action_size
        row = 5
        streams = {
            'joint_states': {
                'position': columns['joint_states.position'][row],
                'velocity': columns['joint_states.velocity'][row],
            },
            'command': {'position': columns['command.position'][row]},
            'target_pose': {'position': columns['target_pose.position'][row]},
        }
        batch = {name: values[None] for name, values in seen.observe(streams).items()}
        asked, _ = policy.select(batch, policy.initial_state(1))
        np.testing.assert_allclose(asked[0], columns['action/requested'][row], atol=5e-3)


@pytest.mark.slow
def test_a_demonstrator_s_episode_has_the_pictures_of_the_twin(collect, tmp_path, offscreen):
    """Of a task from cameras: its camera is drawn, handed over and recorded, as of an arm."""
    told = collect('--task', 'ur5e/reach_vision', '--policy', 'scripted', '--episodes', '1')
    assert told['success_rate'] == 1.0
    header, columns, found = steps(tmp_path, told['episodes'][0])
    shown = np.asarray(columns['overview.image'])
    assert header.task == 'ur5e/reach_vision' and shown.shape[1:] == (84, 84, 3)
    assert found['observation/overview'].shape == shown.shape
    environment = registry.make_environment('ur5e/reach_vision')
    first = environment.reset([header.seed]).observation['overview'][0]
    environment.close()
    assert np.abs(shown[0].astype(int) - first).mean() < 2 < np.abs(shown[-1] - 1.0 * first).mean()
