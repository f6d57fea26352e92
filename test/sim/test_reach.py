import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_rl import resources
from robot_rl.errors import SpecError, UnknownName
from robot_rl.sim.environment import HELD_OUT
from robot_rl.sim.reach import TARGET, TOOL, ReachConfig, ReachTask
from robot_rl.sim.twin import Twin


def columns(distances):
    """Columns whose tool stands the given distances from the target, along x."""
    tool = np.zeros((*np.shape(distances), 3))
    tool[..., 0] = distances
    target = np.array([0.4, 0.1, 0.3])
    return {TOOL: tool + target, TARGET: np.broadcast_to(target, tool.shape)}


def test_an_episode_is_a_pure_function_of_its_seed(reach):
    for seed in (0, 7, HELD_OUT, HELD_OUT + 3):
        first, again = reach.initial(seed), reach.initial(seed)
        np.testing.assert_array_equal(first.joint_position, again.joint_position)
        np.testing.assert_array_equal(first.target, again.target)
    assert not np.array_equal(reach.initial(0).target, reach.initial(1).target)


@given(st.integers(0, 2**32 - 1))
def test_every_start_is_near_home_with_its_target_in_the_box(reach, seed):
    start = reach.initial(seed)
    noise = np.abs(start.joint_position - reach.robot.home_position)
    assert noise.max() <= reach.config.joint_noise
    assert reach.config.target.contains(start.target)
    assert reach.robot.workspace.contains(start.target)


def test_targets_are_uniform_in_the_box(reach):
    box = reach.config.target
    targets = np.array([reach.initial(seed).target for seed in range(2000)])
    share = (targets - box.lower) / (np.array(box.upper) - box.lower)
    counts = [np.histogram(axis, bins=5, range=(0, 1))[0] for axis in share.T]
    assert np.abs(np.array(counts) - 400).max() < 90  # five standard deviations


def test_the_whole_box_is_reachable_from_home(reach):
    box = reach.config.target
    corners = np.stack(np.meshgrid(*zip(box.lower, box.upper, strict=True)), axis=-1).reshape(
        -1, 3
    )
    budget = reach.config.max_delta * reach.max_steps
    for corner in corners:
        q = reach.chain.inverse(corner, start=reach.robot.home_position)
        np.testing.assert_allclose(reach.chain.position(q), corner, atol=1e-5)
        assert np.abs(q - reach.robot.home_position).max() < budget / 2


def test_reward_is_the_stated_formula_in_0_1_and_falls_with_distance(reach):
    distance = np.linspace(0, 2, 400)
    reward = reach.reward(columns(distance), np.zeros((400, 6)))
    shape = reach.config.reward
    expected = [
        (1 - shape.near_share) * (1 - np.tanh(d / shape.far))
        + shape.near_share * np.exp(-((d / shape.near) ** 2))
        for d in distance
    ]
    np.testing.assert_allclose(reward, expected, atol=1e-12)
    assert reward[0] == pytest.approx(1.0) and reward.min() >= 0
    assert (np.diff(reward) < 0).all()


def test_success_needs_every_one_of_the_last_rows(reach):
    rows = np.full((61, 4), 0.5)
    rows[-5:] = 0.019
    rows[-1, 1] = 0.021  # left at the end
    rows[-5, 2] = 0.021  # came too late
    rows[-6, 3] = 0.5
    np.testing.assert_array_equal(reach.success(columns(rows)), [True, False, False, True])
    np.testing.assert_allclose(reach.final_distance(columns(rows)), [0.019, 0.021, 0.019, 0.019])
    assert reach.success(columns(rows[:, 0])).shape == ()


def test_the_contract_bounds_the_delta_below_the_velocity_limit(reach):
    contract = reach.contract()
    assert contract.action[0].kind == 'joint_delta'
    assert contract.action_names == reach.robot.joints
    speed = contract.action_upper * contract.rate_hz
    assert (speed < reach.robot.max_velocity).all()
    assert [f.name for f in contract.observation if f.goal] == ['target_from_tool']


def config_with(tmp_path, **changes):
    found = ReachConfig.from_yaml(resources.find('config/tasks', 'ur5e_reach'))
    path = tmp_path / 'task.yaml'
    path.write_text(found.replace(**changes).to_yaml())
    return str(path)


def test_a_task_is_read_from_ones_own_file(tmp_path):
    task = ReachTask.load(config_with(tmp_path, name='mine', duration_s=1.0))
    assert (task.name, task.max_steps) == ('mine', 20)


def test_a_prefixed_arm_has_the_same_contract_and_the_same_twin(tmp_path, reach):
    left = ReachTask.load(config_with(tmp_path, robot='ur5e@left_'))
    assert left.contract() == reach.contract()
    assert left.robot.driver_joints[0] == 'left_shoulder_pan_joint'
    twins = Twin(left), Twin(reach)
    for twin in twins:
        twin.set_command(reach.robot.home_position + 0.05)
        twin.advance(0.1)
    np.testing.assert_array_equal(twins[0].joint_position, twins[1].joint_position)


def test_rates_that_do_not_divide_are_refused(tmp_path):
    with pytest.raises(SpecError, match='must divide one another'):
        ReachTask.load(config_with(tmp_path, rate_hz=30.0))
    with pytest.raises(SpecError, match='must divide one another'):
        ReachTask.load(config_with(tmp_path, physics_timestep_s=0.003))


def test_a_misspelt_key_names_the_file_and_the_nearest_key(tmp_path):
    path = tmp_path / 'task.yaml'
    text = resources.find('config/tasks', 'ur5e_reach').read_text()
    path.write_text(text.replace('max_delta', 'max_dleta'))
    with pytest.raises(SpecError, match=r"task.yaml: .*max_dleta: unknown key.*'max_delta'"):
        ReachTask.load(str(path))


def test_unknown_robot_and_scene_are_named(tmp_path):
    with pytest.raises(UnknownName, match=r"unknown robot 'ur5'.*'ur5e'"):
        ReachTask.load(config_with(tmp_path, robot='ur5'))
    with pytest.raises(UnknownName, match=r"unknown model 'ur5e/rech\.xml'.*reach\.xml"):
        ReachTask.load(config_with(tmp_path, scene='ur5e/rech.xml')).model()
    with pytest.raises(SpecError, match="mocap body 'target'"):
        from robot_rl.sim.twin import Twin

        Twin(ReachTask.load(config_with(tmp_path, scene='ur5e/ur5e.xml')))
