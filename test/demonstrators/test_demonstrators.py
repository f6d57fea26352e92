"""Demonstrators in simulation: they succeed from anywhere, seeing what a policy sees."""

import numpy as np
import pytest

from robot_rl import registry
from robot_rl.demonstrators.demonstrator import View
from robot_rl.robots import quaternions
from robot_rl.sim.arm import ArmEnvironment
from robot_rl.sim.environment import StepType
from robot_rl.training.evaluation import evaluate, held_out_seeds

TASKS = registry.arm_task_names()
# docs/collect_demonstrations.md has the table of 100 starts.
STARTS = 12
# The Jaco is slow, and they take it as long as all others together.
LONG = ('jaco/insert', 'jaco/push', 'jaco/stack')


def test_every_arm_task_has_a_demonstrator_of_its_contract():
    for name in TASKS:
        demonstrator = registry.make_demonstrator(name)
        assert demonstrator.contract == registry.make_task(name).contract()
        assert demonstrator.card.task == name


@pytest.mark.parametrize(
    'name',
    [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in TASKS],
)
def test_it_succeeds_from_anywhere(name):
    task, demonstrator = registry.make_task(name), registry.make_demonstrator(name)
    environment = ArmEnvironment(task, STARTS)
    found = evaluate(demonstrator, environment, held_out_seeds(STARTS), task)
    assert found.success.sum() >= STARTS - 1


@pytest.mark.parametrize('kind', ['joint_delta', 'joint_velocity'])
def test_it_commands_by_joints_where_the_contract_does(kind, tmp_path):
    config = registry.make_task('ur5e/lift').config.replace(action=kind)
    (tmp_path / 'lift.yaml').write_text(config.to_yaml())
    name = str(tmp_path / 'lift.yaml')
    task, demonstrator = registry.make_task(name), registry.make_demonstrator(name)
    assert demonstrator.contract.action[0].kind == kind
    found = evaluate(demonstrator, ArmEnvironment(task, 4), held_out_seeds(4), task)
    assert found.success.all()


def runs(name, seeds, noise=0.0, seed=0, steps=40):
    """Return the actions [T, B, A] of some steps, as one batch."""
    task = registry.make_task(name)
    demonstrator = registry.make_demonstrator(name, noise, seed)
    environment = ArmEnvironment(task, len(seeds))
    timestep, state, actions = environment.reset(seeds), demonstrator.initial_state(len(seeds)), []
    for _ in range(steps):
        assert (timestep.step_type != StepType.LAST).all()
        action, state = demonstrator.select(timestep.observation, state)
        actions.append(action)
        timestep = environment.step(action)
    return np.array(actions)


@pytest.mark.parametrize('name', ['jaco/lift', 'ur5e/lift', 'ur5e/push', 'ur5e/match'])
def test_actions_are_within_bounds_and_each_arm_s_its_own(name):
    actions = runs(name, [1, 2, 3])
    contract = registry.make_task(name).contract()
    assert actions.dtype == np.float32
    assert (actions >= contract.action_lower - 1e-6).all()
    assert (actions <= contract.action_upper + 1e-6).all()
    np.testing.assert_allclose(runs(name, [2])[:, 0], actions[:, 1], atol=1e-5)


def test_noise_is_of_its_seed_and_leaves_the_gripper_alone():
    plain, one = runs('ur5e/lift', [1], steps=5), runs('ur5e/lift', [1], 0.2, 7, 5)
    np.testing.assert_array_equal(one, runs('ur5e/lift', [1], 0.2, 7, 5))
    assert (one[:, 0, :4] != runs('ur5e/lift', [1], 0.2, 8, 5)[:, 0, :4]).any()
    assert (plain[:, 0, :4] != one[:, 0, :4]).any()
    np.testing.assert_array_equal(plain[:, 0, 4], one[:, 0, 4])


def test_noise_makes_worse_demonstrations():
    task = registry.make_task('ur5e/reach')
    returns = []
    for noise in (0.0, 0.1, 0.5):
        demonstrator = registry.make_demonstrator('ur5e/reach', noise)
        found = evaluate(demonstrator, ArmEnvironment(task, 16), held_out_seeds(16), task)
        returns.append((found.success.mean(), found.returns.mean()))
    assert returns[0] > returns[1] > returns[2]
    assert returns[0][0] == 1.0 and returns[2][0] < 0.5


def test_what_was_lost_is_taken_again():
    """A cube that is not between the fingers any more: up, and down on it again."""
    task, demonstrator = registry.make_task('ur5e/lift'), registry.make_demonstrator('ur5e/lift')
    environment = ArmEnvironment(task, 1)
    timestep, state = environment.reset([4]), demonstrator.initial_state(1)
    while state['stage'][0] < 3:
        action, state = demonstrator.select(timestep.observation, state)
        timestep = environment.step(action)
    seen = dict(timestep.observation)
    held, kept = demonstrator.select(seen, state)
    assert kept['stage'] == 3 and held[0, 2] > 0 and held[0, 4] == 0  # up, closed
    seen['cube_from_tool'] = seen['cube_from_tool'] - np.float32([0.0, 0.0, 0.09])
    again, begun = demonstrator.select(seen, state)
    assert begun['stage'] <= 1 and again[0, 4] > task.config.cube.size[0]  # open


@pytest.mark.parametrize('turned', [-1.2, -0.3, 0.2, 0.7, 2.0])
def test_turns_square_the_tool_with_a_body(turned):
    def about_z(angle):
        return quaternions.from_rotation_vector(np.array([[0.0, 0.0, angle]]))

    fields = {'peg_orientation': about_z(turned), 'hole_orientation': about_z(0.4)}
    at = np.zeros((1, 3))
    view = View(at, np.array([0.5]), at, np.array([0.35]), fields)
    turn = view.turn_to('peg')
    assert np.abs(turn) <= np.pi / 4 + 1e-9
    assert np.sin(4 * (0.5 + turn - turned)) == pytest.approx(0.0, abs=1e-9)
    assert np.cos(4 * (0.5 + turn - turned)) == pytest.approx(1.0)
    # The peg has come along with the tool: it is where the tool was, when that was at 0.35.
    carried = view.turn_carrying('peg', 'hole')
    end = 0.5 + carried + (turned - 0.35)
    assert np.cos(4 * (end - 0.4)) == pytest.approx(1.0)
