"""What holds for every task for arms, and what each one calls done, computed anew."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl import registry, resources
from robot_rl.control.loop import require_served
from robot_rl.errors import SpecError, UnknownName
from robot_rl.robots import quaternions
from robot_rl.sim.arm import ArmEnvironment
from robot_rl.sim.environment import HELD_OUT
from robot_rl.sim.recorded import with_tool
from robot_rl.sim.task import ArmTask, Standing, apart
from robot_rl.sim.twin import Twin

NAMES = registry.arm_task_names()
TASKS = {name: registry.make_task(name) for name in NAMES}
seeds = st.integers(0, 2**32 - 1)


def changed(name: str, **changes) -> ArmTask:
    task = TASKS[name]
    return type(task)(task.config.replace(**changes))


def episode(name: str, steps: int, lanes: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns [steps + 1, lanes, ...] of random actions, held for half a second each."""
    environment = ArmEnvironment(TASKS[name], lanes, seed)
    environment.reset()
    contract, rng = environment.contract, np.random.default_rng(seed)
    rows = [environment.columns]
    for step in range(steps):
        if step % 10 == 0:
            shape = (lanes, contract.action_size)
            action = rng.uniform(contract.action_lower, contract.action_upper, shape)
        environment.step(action)
        rows.append(environment.columns)
    environment.close()
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def pose_columns(**poses) -> dict[str, np.ndarray]:
    """Columns of one row: upright bodies at these places."""
    columns = {}
    for body, place in poses.items():
        columns[f'{body}_pose.position'] = np.array(place, dtype=float)
        columns[f'{body}_pose.orientation'] = np.array([1.0, 0, 0, 0])
    return columns


@pytest.mark.parametrize('name', NAMES)
def test_episodes_start_alike_together_and_one_by_one(name):
    together = TASKS[name].initials([7, 2**33, 7, 0])
    for seed, start in zip([7, 2**33, 7, 0], together, strict=True):
        alone = TASKS[name].initial(seed)
        assert (start.joint_position == alone.joint_position).all() and start.width == alone.width
        assert start.poses.keys() == alone.poses.keys()
        for stream, pose in start.poses.items():
            assert (pose.position == alone.poses[stream].position).all()
            assert (pose.orientation == alone.poses[stream].orientation).all()


def test_the_names_are_those_of_the_files():
    assert {'jaco/reach', 'ur5e/insert', 'ur5e/lift', 'ur5e/match'} < set(NAMES)
    assert {'ur5e/push', 'ur5e/reach', 'ur5e/stack'} < set(NAMES)
    assert all(task.name == name for name, task in TASKS.items())
    with pytest.raises(UnknownName, match="unknown task 'ur5e/lfit'; did you mean 'ur5e/lift'"):
        registry.make_task('ur5e/lfit')


def test_a_task_of_ones_own_is_of_the_kind_that_its_file_says(tmp_path):
    path = tmp_path / 'mine.yaml'
    path.write_text(TASKS['ur5e/stack'].config.replace(name='mine').to_yaml())
    assert type(registry.make_task(str(path))) is type(TASKS['ur5e/stack'])
    path.write_text('kind: stak\nname: mine\n')
    with pytest.raises(UnknownName, match=r"unknown task kind 'stak'.*'stack'"):
        registry.make_task(str(path))
    path.write_text('- a list\n')
    with pytest.raises(SpecError, match='expected a mapping'):
        registry.make_task(str(path))


@pytest.mark.parametrize('name', NAMES)
def test_robot_and_scene_serve_the_contract(name):
    task = TASKS[name]
    contract = task.contract()
    require_served(contract, task.robot)
    kinds = [field.kind for field in contract.action]
    assert kinds == [task.config.action] + ['gripper'] * task.config.gripper
    reading = {field.stream for field in contract.observation}
    assert {*task.objects, *task.goals} < reading
    for field in contract.observation:
        streamed = field.stream in (*task.objects, *task.goals)
        assert (field.max_age_s is not None) >= streamed  # what is stale is not acted on


@pytest.mark.parametrize('name', NAMES)
@settings(max_examples=20)
@given(seeds)
def test_every_start_is_in_the_stated_range_and_a_function_of_its_seed(name, seed):
    task, config = TASKS[name], TASKS[name].config
    start, again = task.initial(seed), task.initial(seed)
    np.testing.assert_array_equal(start.joint_position, again.joint_position)
    assert start.width == again.width
    tool, way = task.chain.forward(start.joint_position)
    if config.start:
        low, high = np.array(config.start.tool.lower), np.array(config.start.tool.upper)
        assert (tool >= low - 1e-5).all() and (tool <= high + 1e-5).all()
        _, home = task.chain.forward(task.robot.home_position)
        turn = quaternions.to_rotation_vector(
            quaternions.multiply(way, quaternions.conjugate(home))
        )
        np.testing.assert_allclose(turn[:2], 0, atol=1e-5)
        assert config.start.yaw[0] - 1e-5 <= turn[2] <= config.start.yaw[1] + 1e-5
        assert config.start.width[0] <= start.width <= config.start.width[1]
    for stream, pose in start.poses.items():
        np.testing.assert_array_equal(pose.position, again.poses[stream].position)
        np.testing.assert_array_equal(pose.orientation, again.poses[stream].orientation)
        standing = getattr(config, stream.removesuffix('_pose'), None)
        if isinstance(standing, Standing):
            low, high = standing.place.lower, standing.place.upper
            assert (low <= pose.position[:2]).all() and (pose.position[:2] <= high).all()
            yaw = 2 * np.arctan2(pose.orientation[3], pose.orientation[0])
            assert standing.yaw[0] - 1e-9 <= yaw <= standing.yaw[1] + 1e-9
    places = {stream: pose.position for stream, pose in start.poses.items()}
    pairs = {'stack': ('green_pose', 'red_pose'), 'insert': ('peg_pose', 'hole_pose')}
    if config.kind in pairs:
        one, other = (places[stream][:2] for stream in pairs[config.kind])
        assert np.linalg.norm(one - other) >= config.apart


@pytest.mark.parametrize('name', NAMES)
def test_the_sizes_that_a_demonstrator_reads_are_those_of_the_scene(name):
    task = TASKS[name]
    model = task.model()
    for stream in task.objects:
        body = stream.removesuffix('_pose')
        geom = model.geom(body)
        assert geom.type == mujoco.mjtGeom.mjGEOM_BOX
        np.testing.assert_allclose(2 * geom.size, getattr(task.config, body).size)
    if task.config.kind == 'insert':
        blocks = [g for g in range(model.ngeom) if model.geom_bodyid[g] == model.body('hole').id]
        inner = [np.abs(model.geom_pos[g]) - model.geom_size[g] for g in blocks]
        outer = [np.abs(model.geom_pos[g]) + model.geom_size[g] for g in blocks]
        around = max(part[:2].max() for part in inner)
        np.testing.assert_allclose(2 * around, task.config.opening)
        np.testing.assert_allclose(np.max(outer, axis=0) * [2, 2, 1], task.config.hole.size)


def test_a_sparse_task_differs_from_its_own_in_what_it_pays_alone():
    task, seen = registry.make_task('ur5e/lift_sparse'), registry.make_task('ur5e/lift_vision')
    other = registry.make_task('ur5e/lift').config
    own = other.replace(name=task.name, reward=other.reward.replace(kind='sparse'))
    assert task.config == own and task.name == 'ur5e/lift_sparse'
    both = registry.make_task('ur5e/lift_sparse_vision')
    assert both.config == seen.config.replace(name=both.name, reward=own.reward)
    assert registry.is_arm_task('jaco/stack_sparse') and not registry.is_arm_task('suite/x_sparse')
    assert 'ur5e/lift_sparse' in registry.task_names()['arm, sparse reward']
    with pytest.raises(UnknownName, match='ur5e/lift_vision_sparse'):
        registry.make_task('ur5e/lift_vision_sparse')


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('kind', ['dense', 'sparse'])
def test_rewards_are_in_range_and_computed_anew_from_what_is_recorded(name, kind):
    task = changed(name, reward=TASKS[name].config.reward.replace(kind=kind))
    columns = episode(name, 40)
    recorded = {key: column for key, column in columns.items() if not key.startswith('tool')}
    rewards = task.reward(columns, None)
    assert rewards.shape == (41, 3)
    low, high = task.reward_range
    assert ((rewards >= low) & (rewards <= high)).all()
    anew = [task.reward(with_tool(task, {k: c[:, 1] for k, c in recorded.items()}), None)]
    np.testing.assert_allclose(anew[0], rewards[:, 1], atol=1e-9)
    if kind == 'sparse':
        np.testing.assert_array_equal(rewards, task.done(columns))
    assert task.success(columns).shape == task.final_distance(columns).shape == (3,)
    assert np.isfinite(task.final_distance(columns)).all()


@pytest.mark.parametrize('name', NAMES)
def test_the_twin_starts_as_the_environment_does(name):
    task, twin = TASKS[name], Twin(TASKS[name])
    environment = ArmEnvironment(task, 2)
    for seed in (3, HELD_OUT + 4):
        environment.reset([1, seed])
        twin.reset(9)
        twin.advance(0.1)
        twin.reset(seed)
        columns = {key: column[1] for key, column in environment.columns.items()}
        np.testing.assert_array_equal(columns['joint_states.position'], twin.joint_position)
        assert set(twin.poses) == {*task.objects, *task.goals}
        for stream, pose in twin.poses.items():
            np.testing.assert_array_equal(columns[f'{stream}.position'], pose.position)
            np.testing.assert_array_equal(columns[f'{stream}.orientation'], pose.orientation)
        if twin.has_gripper:
            np.testing.assert_array_equal(columns['gripper.width'], twin.width)
    environment.close()


def test_the_whole_box_of_the_jaco_is_reachable_from_home():
    task = TASKS['jaco/reach']
    box, budget = task.config.target, task.config.max_delta * task.max_steps
    corners = np.stack(np.meshgrid(*zip(box.lower, box.upper, strict=True)), -1).reshape(-1, 3)
    for corner in corners:
        joints = task.chain.inverse(corner, start=task.robot.home_position)
        assert np.abs(joints - task.robot.home_position).max() < budget / 2
    speed = task.contract().action_upper * task.config.rate_hz
    assert (speed < task.robot.max_velocity).all()


def test_a_cube_is_lifted_where_it_is_high_and_held():
    task = TASKS['ur5e/lift']
    for tool, cube, done, lacking in (
        ([0.5, 0, 0.12], [0.5, 0, 0.12], True, 0.0),
        ([0.5, 0, 0.11], [0.5, 0, 0.111], True, 0.009),  # within the 1 cm that success allows
        ([0.5, 0, 0.10], [0.5, 0, 0.10], False, 0.02),
        ([0.5, 0, 0.20], [0.5, 0, 0.12], False, 0.0),  # it flies
        ([0.5, 0, 0.02], [0.5, 0, 0.02], False, 0.1),
    ):
        columns = {'tool.position': np.array(tool)} | pose_columns(cube=cube)
        assert task.done(columns) == done
        assert task.distance(columns) == pytest.approx(lacking)
    rewards = [
        task.reward(
            {'tool.position': np.array([0.5, 0, z])} | pose_columns(cube=[0.5, 0, z]), None
        )
        for z in (0.02, 0.05, 0.08, 0.12)
    ]
    assert (np.diff(rewards) > 0.1).all() and rewards[-1] == pytest.approx(1.0)


def test_a_cube_is_pushed_where_its_middle_is_at_the_target_on_the_table():
    task = TASKS['ur5e/push']
    for cube, done, distance in (
        ([0.5, 0.1, 0.025], True, 0.0),
        ([0.52, 0.1, 0.025], True, 0.02),
        ([0.5, 0.14, 0.025], False, 0.04),
        ([0.5, 0.1, 0.1], False, 0.0),  # carried above it
        ([0.5, 0.1, -0.575], False, 0.0),  # on the floor
    ):
        columns = pose_columns(cube=cube, target=[0.5, 0.1, 0.0])
        assert task.done(columns) == done
        assert task.distance(columns) == pytest.approx(distance)


def test_a_push_is_paid_for_coming_behind_the_cube_and_for_every_part_of_the_way():
    task = TASKS['ur5e/push']

    def paid(tool, cube):
        poses = pose_columns(cube=[0.5, cube, 0.025], target=[0.5, 0.2, 0.0])
        return task.reward({'tool.position': np.array([*tool, 0.025])} | poses, None)

    # Around a cube that is to go along y: behind, aside, before.
    around = [paid(place, 0.0) for place in ([0.5, -0.04], [0.54, 0.0], [0.5, 0.04])]
    assert around[0] > around[1] > around[2]
    way = [paid([0.5, cube - 0.037], cube) for cube in np.linspace(-0.2, 0.2, 21)]
    assert (np.diff(way) > 0.005).all() and way[-1] > 0.95


def test_green_is_on_red_where_it_lies_there_and_is_let_go():
    task = TASKS['ur5e/stack']
    for green, red, width, done in (
        ([0.5, 0.1, 0.06], [0.5, 0.1, 0.02], 0.06, True),
        ([0.51, 0.1, 0.06], [0.5, 0.1, 0.02], 0.06, True),
        ([0.5, 0.1, 0.06], [0.5, 0.1, 0.02], 0.04, False),  # it is held
        ([0.52, 0.1, 0.06], [0.5, 0.1, 0.02], 0.06, False),
        ([0.5, 0.1, 0.02], [0.5, 0.1, 0.06], 0.06, False),  # red on green
        ([0.5, 0.1, 0.24], [0.5, 0.1, 0.20], 0.06, False),  # both in the air
    ):
        columns = pose_columns(green=green, red=red) | {'gripper.width': np.array([width])}
        assert task.done(columns) == done


@given(st.floats(-np.pi, np.pi), st.floats(-0.3, 0.3))
def test_a_peg_is_inserted_where_its_end_is_deep_in_the_hole_however_all_is_turned(yaw, spin):
    task = TASKS['ur5e/insert']
    hole = np.array([0.45, -0.1, 0.0])
    turn = quaternions.from_rotation_vector(np.array([0, 0, yaw]))
    for place, done in (
        ([0.004, -0.003, 0.02], True),
        ([0.0, 0.0, 0.024], True),
        ([0.0, 0.0, 0.03], False),  # not deep enough: 50 mm less 30 mm, and 5 mm for success
        ([0.03, 0.0, 0.02], False),  # beside it
    ):
        end = hole + quaternions.rotate(turn, np.array(place))
        about = quaternions.from_rotation_vector(np.array([0, 0, yaw + spin]))
        for way in (about, quaternions.multiply(about, [0.0, 1, 0, 0])):  # whichever end is down
            columns = {
                'peg_pose.position': end + np.array([0, 0, 0.05]),
                'peg_pose.orientation': way,
                'hole_pose.position': hole,
                'hole_pose.orientation': turn,
            }
            assert task.done(columns) == done


def test_a_moving_target_is_where_its_sines_say_and_slower_than_the_arm():
    task = TASKS['ur5e/match']
    environment = ArmEnvironment(task, 2)
    environment.reset([5, 6])
    pose = task.initial(6).poses['target_pose']
    zero = np.zeros((2, 6))
    for step in range(task.max_steps):
        amplitude, pulse, phase = pose.sway
        expected = pose.position + amplitude * np.sin(pulse * step / 20 + phase)
        target = environment.columns['target_pose.position'][1]
        np.testing.assert_allclose(target, expected, atol=1e-12)
        environment.step(zero)
    environment.close()
    motion = task.config.motion
    fastest = np.linalg.norm(motion.amplitude) * 2 * np.pi / motion.period_s[0]
    assert fastest < 0.4  # [m/s]
    history = {f.name: f.history for f in task.contract().observation}
    assert history['target_from_tool'] == 3


def test_places_that_cannot_be_apart_are_told():
    one = Standing.parse(
        {'size': [0.1, 0.1, 0.1], 'place': {'lower': [0, 0], 'upper': [0.1, 0.1]}}
    )
    with pytest.raises(SpecError, match=r'hardly ever 0\.5 m apart'):
        apart(np.random.default_rng(0), one, one, 0.5)


def test_a_gripper_that_the_robot_lacks_cannot_be_an_action():
    with pytest.raises(SpecError, match='task ur5e/reach: robot ur5e has no gripper'):
        changed('ur5e/reach', gripper=True).contract()


def test_every_task_file_says_where_its_numbers_are_from():
    for name in resources.names('config/tasks'):
        assert resources.find('config/tasks', name).read_text().startswith('#')


def test_on_the_twin_a_target_moves_from_the_reset_on_and_anew_when_an_episode_begins():
    task = TASKS['ur5e/match']
    twin, pose = Twin(task), task.initial(7).poses['target_pose']
    twin.reset(7)
    for elapsed in (0.35, 0.7):
        twin.advance(0.35)
        np.testing.assert_allclose(
            twin.poses['target_pose'].position, pose.at(elapsed), atol=1e-12
        )
    twin.begin()
    np.testing.assert_allclose(twin.poses['target_pose'].position, pose.at(0.0), atol=1e-12)
    twin.advance(0.1)
    np.testing.assert_allclose(twin.poses['target_pose'].position, pose.at(0.1), atol=1e-12)
    assert np.linalg.norm(pose.at(0.7) - pose.at(0.0)) > 1e-3
