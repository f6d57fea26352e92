"""An arm and its imperfections, compared with what each of them says."""

from __future__ import annotations

import numpy as np
import pytest

from robot_rl.errors import ContractMismatch, SpecError
from robot_rl.sim.imperfections import Imperfections
from robot_rl.sim.simulated_arm import SimulatedArm
from robot_rl.sim.twin import AtHome, Twin
from robot_rl.specs import RobotSpec

WAIST = np.array([1.0, 0.0, 0.0, 0.0])


@pytest.fixture
def simulated(maker_arm):
    """Return `arm(model='arm', **imperfections)`."""

    def make(model='arm', seed=0, **imperfections):
        world = AtHome(RobotSpec.load(maker_arm(model)))
        return SimulatedArm(world, Imperfections(**imperfections), seed)

    return make


def positions(arm, commands, step_s=0.01):
    """Command, let time pass and measure, again and again -> [T, n + k]."""
    measured = []
    for command in commands:
        if command is not None:
            arm.command(command)
        arm.advance(step_s)
        measured.append(arm.measure().position)
    return np.array(measured)


def moving(arm, ticks=100):
    home = arm.twin.robot.home_position
    return home + 0.2 * np.sin(0.1 * np.arange(ticks))[:, None]


def test_a_perfect_arm_is_its_twin(simulated, maker_arm):
    arm = simulated()
    twin = Twin(AtHome(RobotSpec.load(maker_arm())))
    commands, expected = moving(arm), []
    for command in commands:
        twin.set_command(command)
        twin.advance(0.01)
        expected.append([*twin.joint_position, *twin.other_position])
    np.testing.assert_array_equal(positions(arm, commands), expected)


def test_delayed_commands_act_as_the_same_ones_later(simulated):
    late, exact = simulated(command_delay_s=0.034), simulated()
    commands = moving(late, 50)
    seen = positions(late, commands)
    # The same, with the pieces of time as they are: 4 ms after the third tick comes the first.
    expected, pieces = [], (0.004, 0.006)
    for tick in range(50):
        exact.advance(pieces[0])
        if tick >= 3:
            exact.command(commands[tick - 3])
        exact.advance(pieces[1])
        expected.append(exact.measure().position)
    np.testing.assert_allclose(seen, expected, atol=1e-12)
    with pytest.raises(ContractMismatch, match='takes 4 finite joint positions'):
        late.command([0.0] * 3)  # said at once, not when it would act


def test_measurements_are_late_by_the_delay(simulated):
    late, exact = simulated(sensor_delay_s=0.025), simulated()
    commands = moving(late)
    seen, true = positions(late, commands), positions(exact, commands)
    halfway = (true[7:-3] + true[8:-2]) / 2
    np.testing.assert_allclose(seen[10:], halfway, atol=1e-12)
    np.testing.assert_allclose(seen[0, :4], late.twin.robot.home_position)


def test_noise_has_the_deviation_that_it_says_and_only_on_the_arm(simulated):
    arm = simulated(position_noise=[0.01, 0.02, 0.0, 0.04], velocity_noise=0.3)
    samples = [arm.measure() for _ in range(4000)]
    position = np.array([sample.position for sample in samples])
    velocity = np.array([sample.velocity for sample in samples])
    np.testing.assert_allclose(position[:, :4].std(axis=0), [0.01, 0.02, 0, 0.04], 0.05, 1e-9)
    np.testing.assert_allclose(velocity[:, :4].std(axis=0), 0.3, rtol=0.05)
    np.testing.assert_allclose(position.mean(axis=0)[:4], arm.twin.joint_position, atol=2e-3)
    assert (position[:, 4:] == position[0, 4:]).all()
    correlation = np.corrcoef(np.column_stack([position[:, [0, 1, 3]], velocity[:, :4]]).T)
    np.testing.assert_allclose(correlation, np.eye(7), atol=0.06)


def test_an_episode_has_the_noise_of_its_seed(simulated):
    arm, other = simulated(position_noise=0.1, seed=3), simulated(position_noise=0.1, seed=4)
    first = [arm.measure().position for _ in range(3)]
    assert not np.allclose(first[0][:4], other.measure().position[:4])
    for twin in (arm, other):
        twin.reset(3)
        np.testing.assert_array_equal([twin.measure().position for _ in range(3)], first)


def test_so_many_samples_are_lost_as_it_says(simulated):
    arm = simulated(dropout=0.3)
    lost = [arm.measure() is None for _ in range(3000)]
    assert 0.27 < np.mean(lost) < 0.33
    assert all(simulated().measure() for _ in range(100))


def test_a_softer_servo_gives_way_to_gravity_as_much_more(simulated):
    true, soft = simulated(), simulated(gain=[1.0, 0.5, 0.8, 2.0])
    hangs = []
    for arm in (true, soft):
        arm.advance(6.0)
        hangs.append(arm.twin.command - arm.twin.joint_position)
    np.testing.assert_allclose(hangs[1][1:], hangs[0][1:] / [0.5, 0.8, 2.0], rtol=0.03)


@pytest.mark.parametrize('model', ['arm', 'motors'])
def test_friction_holds_until_the_servo_is_stronger(simulated, model):
    """The waist carries no weight: friction stops it as far off as the servo is too weak."""
    arm = simulated(model, friction=[12.0, 0.0, 0.0, 0.0])
    home = arm.twin.robot.home_position
    arm.command(home + WAIST * 0.003)  # 6 N m by the servo, 2000 N m / rad
    arm.advance(2.0)
    stuck = arm.twin.joint_position[0] - home[0]
    assert abs(stuck) < 2e-4
    arm.command(home + WAIST * 0.1)
    arm.advance(3.0)
    left = home[0] + 0.1 - arm.twin.joint_position[0]
    if model == 'arm':
        assert 0 < left <= 12 / 2000 + 1e-4
    else:
        assert 0 < left < 0.02


@pytest.mark.parametrize(
    ('wrong', 'told'),
    [
        ({'gain': [1.0, 2.0]}, 'gain: one number, or one for each of the 4 joints of maker_arm'),
        ({'position_noise': [0.1] * 5}, 'position_noise: one number, or one for each of the 4'),
        ({'friction': -1.0}, r'friction\.0: must be greater than or equal to 0, found -1'),
        ({'dropout': 1.0}, 'dropout: must be less than 1'),
        ({'gain': []}, 'gain: at least one is needed'),
        ({'delay_s': 0.1}, 'delay_s: unknown key'),
    ],
)
def test_what_is_no_imperfection_of_this_arm_is_one_clear_line(maker_arm, wrong, told):
    world = AtHome(RobotSpec.load(maker_arm()))
    with pytest.raises(SpecError, match=told):
        SimulatedArm(world, Imperfections.parse(wrong))


def test_a_command_acts_from_when_it_comes(simulated):
    told, exact = simulated(), simulated()
    goal = told.twin.robot.home_position + 0.1
    told.command(goal, in_s=0.006)
    told.advance(0.01)
    exact.advance(0.006)
    exact.command(goal)
    exact.advance(0.004)
    np.testing.assert_array_equal(told.measure().position, exact.measure().position)
    assert told.twin.joint_position[0] > exact.twin.robot.home_position[0]
