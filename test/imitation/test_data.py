"""Recorded columns become the steps that simulation would have given, and other goals' as well."""

import mujoco
import numpy as np
import pytest

from robot_rl.control.observation import History
from robot_rl.control.runtime import RandomPolicy
from robot_rl.errors import StorageError
from robot_rl.images import lossless
from robot_rl.imitation.data import (
    Episode,
    find_episodes,
    mixed_parts,
    write_demonstrations,
    write_steps,
)
from robot_rl.registry import make_task
from robot_rl.sim.arm import ArmEnvironment
from robot_rl.sim.recorded import steps_of, with_tool
from robot_rl.specs import ObservationField
from robot_rl.storage.episode import EpisodeHeader, EpisodeWriter
from robot_rl.storage.pictures import Pictures
from robot_rl.storage.schemas import message_definition
from robot_rl.storage.store import Store


@pytest.fixture(scope='module')
def task():
    return make_task('ur5e/reach')


@pytest.fixture(scope='module')
def simulated(task):
    """An episode of random actions: its columns as if recorded, and what the environment said."""
    environment = ArmEnvironment(task, num_envs=1, seed=0)
    policy = RandomPolicy(environment.contract, seed=3)
    step = environment.reset([7])
    rows, steps, actions = [environment.columns], [step], []
    for _ in range(task.max_steps):
        action, _ = policy.select(step.observation, {})
        step = environment.step(action)
        actions.append(action[0])
        steps.append(step)
        rows.append(environment.columns)
    environment.close()
    columns = {name: np.stack([row[name][0] for row in rows]) for name in rows[0]}
    columns = {name: column for name, column in columns.items() if not name.startswith('tool.')}
    columns['action/requested'] = np.stack(actions)
    columns['action/applied'] = 0.5 * columns['action/requested']
    return columns, steps


def test_recorded_columns_give_the_environments_observations_and_rewards(task, simulated):
    columns, steps = simulated
    recorded = steps_of(task, with_tool(task, columns), task.contract())
    for name in steps[0].observation:
        expected = np.concatenate([step.observation[name] for step in steps])
        np.testing.assert_allclose(recorded[f'observation/{name}'], expected, atol=1e-6)
    rewards = np.concatenate([step.reward for step in steps[1:]])
    np.testing.assert_allclose(recorded['reward'][:-1], rewards, atol=1e-6)
    assert recorded['step_type'].tolist() == [int(step.step_type[0]) for step in steps]
    np.testing.assert_array_equal(recorded['action'][:-1], columns['action/requested'])
    assert recorded['discount'].tolist() == [1.0] * len(steps)


def test_recorded_pictures_are_not_decoded_and_their_history_is_that_of_the_loop(task, simulated):
    columns, _ = simulated
    seen = np.random.default_rng(0).integers(0, 256, (61, 8, 6, 3), dtype=np.uint8)
    column = Pictures.of([lossless(picture) for picture in seen], np.arange(61), (8, 6))
    camera = ObservationField(
        name='camera',
        source='wrist.image',
        shape=(8, 6, 3),
        dtype='uint8',
        encoding='jpeg',
        history=3,
    )
    own = task.contract()
    contract = own.replace(observation=(*own.observation, camera))
    recorded = steps_of(task, with_tool(task, columns) | {'wrist.image': column}, contract)
    stacked = recorded['observation/camera']
    assert isinstance(stacked, Pictures) and stacked.blob is column.blob
    history = History(contract)
    for row in range(61):
        live = history.push({'camera': seen[row]} | _blank(own))['camera']
        np.testing.assert_array_equal(np.asarray(stacked[row]), live)


def _blank(contract):
    return {name: np.zeros(shape) for name, shape in contract.observation_shapes.items()}


def test_imitation_learns_from_what_was_applied(task, simulated):
    columns, _ = simulated
    recorded = steps_of(task, with_tool(task, columns), task.contract(), action='applied')
    np.testing.assert_array_equal(recorded['action'][:-1], columns['action/applied'])


def test_hindsight_goals_are_rewarded_as_mujoco_measures_them(task, simulated, tmp_path):
    columns, _ = simulated
    episode = Episode(EpisodeHeader(), with_tool(task, columns))
    steps = write_steps(
        tmp_path / 's', task, task.contract(), [episode], hindsight_goals=4, seed=1
    )
    rows = task.max_steps + 1
    assert steps.flat['reward'].shape == (5 * rows,)
    model = task.model()
    data = mujoco.MjData(model)
    site = model.site(task.robot.tool_site).id
    for part in range(5):
        seen = {
            name: column[part * rows : (part + 1) * rows] for name, column in steps.flat.items()
        }
        for row in (1, 30, 60):
            data.qpos[:6] = columns['joint_states.position'][row]
            mujoco.mj_kinematics(model, data)
            tool = data.site_xpos[site]
            goal = tool + seen['observation/target_from_tool'][row]
            if part == 0:
                np.testing.assert_allclose(goal, columns['target_pose.position'][0], atol=1e-6)
            distance = np.linalg.norm(tool - goal)
            reward = 0.5 * (1 - np.tanh(distance / 0.3)) + 0.5 * np.exp(-((distance / 0.04) ** 2))
            assert seen['reward'][row - 1] == pytest.approx(reward, abs=1e-5)


def test_goals_in_hindsight_are_places_where_the_tool_was(task, simulated, tmp_path):
    columns, _ = simulated
    complete = with_tool(task, columns)
    episodes = [Episode(EpisodeHeader(), complete)]
    steps = write_steps(tmp_path / 's', task, task.contract(), episodes, hindsight_goals=6)
    rows = task.max_steps + 1
    for part in range(1, 7):
        first = part * rows
        goal = (
            steps.flat['observation/target_from_tool'][first]
            + steps.flat['observation/tool_position'][first]
        )
        nearest = np.linalg.norm(complete['tool.position'] - goal, axis=1).min()
        assert nearest < 1e-6


def test_a_query_without_episodes_is_one_line(task, tmp_path):
    with pytest.raises(StorageError, match="no usable episode for the query 'task=ur5e/reach'"):
        find_episodes(Store(tmp_path), task, task.contract(), 'task=ur5e/reach')


def test_parts_of_a_batch_are_the_rows_of_the_episodes_that_a_query_finds(tmp_path):
    headers = [
        EpisodeHeader(task='stack' if number % 2 else 'reach', success=number < 4)
        for number in range(6)
    ]
    for header in headers:
        EpisodeWriter(tmp_path, header).commit()
    ends = np.cumsum([4, 3, 6, 7, 2, 5, 3, 3, 9, 1, 2, 2])  # two spans an episode: a goal each
    spans = np.stack([np.append(0, ends[:-1]), ends], axis=1)
    store, mix = Store(tmp_path), {'task=stack': 0.25, 'task=reach': 0.125}
    parts = mixed_parts(store, 'success=true', mix, headers, spans)
    assert {name: part.share for name, part in parts.items()} == {'all': 0.625, **mix}
    assert parts['all'].spans is None
    np.testing.assert_array_equal(parts['task=stack'].spans, [[7, 20], [27, 33]])
    np.testing.assert_array_equal(parts['task=reach'].spans, [[0, 7], [20, 27]])
    with pytest.raises(StorageError, match="none of 6 usable episodes fits 'tag=curated'"):
        mixed_parts(store, '', {'tag=curated': 0.5}, headers, spans)


TICKS, PERIOD_NS = 8, 50_000_000


def record_arm(root, task, seed, **fields):
    """Record an episode of the arm as its nodes do: real messages, a guard that halves actions."""
    pytest.importorskip('rclpy', reason='needs rclpy (extra `ros`) for real CDR bytes')
    from builtin_interfaces.msg import Time
    from geometry_msgs.msg import PoseStamped
    from rclpy.serialization import serialize_message
    from sensor_msgs.msg import JointState
    from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

    rng, joints, robot = np.random.default_rng(seed), task.robot.joints, task.robot
    start = 1_700_000_000_000_000_000 + seed * 10**10
    header = EpisodeHeader(
        task=task.name,
        source='policy',
        robot=robot.name,
        robot_spec=robot,
        contract=task.contract(),
        start_time_ns=start,
        **fields,
    )
    position = robot.home_position.copy()
    with EpisodeWriter(root, header) as writer:

        def send(topic, message, time_ns):
            message.header.stamp = Time(sec=time_ns // 10**9, nanosec=time_ns % 10**9)
            package = type(message).__module__.split('.')[0]
            name = f'{package}/msg/{type(message).__name__}'
            writer.write(
                topic, name, message_definition(name), serialize_message(message), time_ns
            )

        def trajectory(values):
            point = JointTrajectoryPoint(positions=list(values))
            return JointTrajectory(joint_names=list(joints), points=[point])

        for tick in range(TICKS + 1):
            now = start + tick * PERIOD_NS
            pose = PoseStamped()
            pose.pose.position.x, pose.pose.orientation.w = 0.5, 1.0
            send('target_pose', pose, now)
            state = JointState(name=list(joints), position=list(position), velocity=[0.0] * 6)
            send('joint_states', state, now)
            if tick == TICKS:
                break
            action = rng.uniform(-0.05, 0.05, 6)
            send('policy/action', trajectory(action), now)
            send('policy/command', trajectory(position + action), now)
            position = position + 0.5 * action
            send('command_guard/applied', trajectory(position), now)
        writer.commit()
    return header.id


@pytest.mark.parametrize('action', ['requested', 'applied'])
def test_an_arms_episodes_are_the_same_demonstrations_as_in_retraining(task, tmp_path, action):
    store, contract, refused = Store(tmp_path / 'store'), task.contract(), []
    for seed in range(3):
        record_arm(store.root, task, seed, tags=('expert',))
    EpisodeWriter(store.root, EpisodeHeader(tags=('expert',))).commit()
    found = write_demonstrations(
        tmp_path / 'a', store, 'tag=expert', task, contract, action, refused=refused.append
    )
    (line,) = refused
    assert line.endswith('nothing was recorded; there are no steps')
    episodes = find_episodes(store, task, contract, 'tag=expert')
    right = write_steps(tmp_path / 'b', task, contract, episodes, action)
    np.testing.assert_array_equal(found.spans, right.spans)
    assert len(found.spans) == 3
    for name, column in right.flat.items():
        np.testing.assert_array_equal(found.flat[name], column)
        assert found.flat[name].dtype in (np.float32, np.int8)
    assert (found.flat['reward'][:TICKS] > 0).all()
