"""Arms with known, hidden imperfections are recorded, and found again from what was recorded."""

from __future__ import annotations

import numpy as np
import pytest

from robot_rl import registry
from robot_rl.errors import RobotRLError
from robot_rl.sim.calibration import MOVED, Recording, calibrate, replay, tracking_errors
from robot_rl.sim.imperfections import Imperfections
from robot_rl.sim.simulated_arm import SimulatedArm
from robot_rl.sim.twin import AtHome
from robot_rl.specs import RobotSpec


def record(world, imperfections, seed, seconds=3.0, still=()):
    """Record an arm that is led at 100 Hz, 3 ms after its samples, to one random pose after
    another; `still` joints are not moved."""
    arm, rng = SimulatedArm(world, imperfections, seed), np.random.default_rng(seed)
    robot, n = world.robot, len(world.robot.joints)
    arm.advance(1.0)  # where gravity leaves it
    command = goal = arm.twin.joint_position
    times, positions, told = 0.01 * np.arange(round(seconds * 100)), [], []
    for tick in range(len(times)):
        positions.append(arm.measure().position[:n])
        if tick % 25 == 0:
            goal = robot.home_position + rng.uniform(-0.4, 0.4, n)
            goal[list(still)] = command[list(still)]
        command = command + np.clip(goal - command, -0.012, 0.012)
        told.append(command)
        arm.command(command, in_s=0.003)
        arm.advance(0.01)
    return Recording(times + 0.003, np.array(told), times, np.array(positions))


@pytest.fixture
def maker(maker_arm):
    return lambda model='arm', **changes: AtHome(RobotSpec.load(maker_arm(model, **changes)))


def test_a_perfect_arm_is_replayed_as_it_was(maker):
    world = maker()
    recording = record(world, Imperfections(), 1)
    twin = SimulatedArm(world, Imperfections())
    np.testing.assert_allclose(replay(twin, recording), recording.position, atol=1e-8)
    errors = tracking_errors(world, [recording], Imperfections())
    assert errors.rms.max() < 1e-8 and errors.max.max() < 1e-8


def test_errors_are_those_of_the_replay(maker):
    world, faulty = maker(), Imperfections(gain=0.6, command_delay_s=0.05)
    recordings = [record(world, faulty, seed) for seed in (1, 2)]
    twin = SimulatedArm(world, Imperfections())
    off = np.concatenate([replay(twin, item) - item.position for item in recordings])
    errors = tracking_errors(world, recordings, Imperfections())
    np.testing.assert_allclose(errors.rms, (off**2).mean(axis=0) ** 0.5)
    np.testing.assert_allclose(errors.max, abs(off).max(axis=0))
    assert (errors.rms > 0.01).all()


HIDDEN = {'gain': (0.8, 1.2, 0.7, 1.5), 'friction': (3.0, 5.0, 0.0, 1.0)}


# Torques by which friction may be missed, of servos with 2000 and 500 N m / rad.
@pytest.mark.parametrize(('noise', 'torque'), [(0.0, 0.3), (1e-3, 1.5)])
@pytest.mark.parametrize('model', ['arm', pytest.param('motors', marks=pytest.mark.slow)])
def test_hidden_imperfections_are_found_again(maker, model, noise, torque):
    world = maker(model)
    hidden = Imperfections(command_delay_s=0.035, position_noise=noise, **HIDDEN)
    recordings = [record(world, hidden, seed) for seed in (1, 2)]
    found = calibrate(world, recordings)
    # The physics steps by 2 ms.
    assert found.imperfections.command_delay_s == pytest.approx(0.035, abs=0.003)
    np.testing.assert_allclose(found.imperfections.gain, hidden.gain, rtol=0.05)
    np.testing.assert_allclose(found.imperfections.friction, hidden.friction, atol=torque)
    assert (found.before.rms > 0.015).all() and found.moved.all()
    assert (found.after.rms < 1e-3 + noise).all() and (found.after.max < 2e-3 + 5 * noise).all()


def test_both_delays_are_found_as_one_on_the_arm_of_the_task():
    task = registry.make_task('ur5e/reach')
    hidden = Imperfections(
        command_delay_s=0.02,
        sensor_delay_s=0.008,
        gain=(0.8, 1.2, 0.7, 1.5, 1.0, 1.0),
        friction=(10.0, 5.0, 8.0, 1.0, 0.0, 2.0),
        position_noise=2e-4,
    )
    found = calibrate(task, [record(task, hidden, seed) for seed in (1, 2)]).imperfections
    assert found.command_delay_s == pytest.approx(0.028, abs=0.003)
    np.testing.assert_allclose(found.gain, hidden.gain, rtol=0.03)
    np.testing.assert_allclose(found.friction, hidden.friction, atol=1.0)


@pytest.mark.parametrize('kind', ['joint_trajectory', 'forward_velocity'])
def test_other_kinds_of_commands_are_replayed_by_their_driver(maker, kind):
    controller = {'kind': kind, 'topic': 'c', 'driver_timeout_s': 0.1}
    world = maker('arm', controller=controller)
    recording = record(maker('arm'), Imperfections(), 3)
    if kind == 'forward_velocity':
        velocities = np.diff(recording.command, axis=0, append=recording.command[-1:]) / 0.01
        recording = recording._replace(command=velocities)
    twin = SimulatedArm(world, Imperfections())
    # A point of a trajectory takes two periods; velocities lead there a period later.
    off = replay(twin, recording) - recording.position
    assert np.abs(off).max() < 0.03 and np.abs(off[150:]).mean() < 0.015


def test_a_joint_that_hardly_moved_keeps_its_model(maker):
    world = maker()
    hidden = Imperfections(command_delay_s=0.02, gain=0.7)
    found = calibrate(world, [record(world, hidden, 4, still=(0, 3))])
    np.testing.assert_array_equal(found.moved, [False, True, True, False])
    gain = found.imperfections.gain
    assert (gain[0], gain[3]) == (1.0, 1.0)
    np.testing.assert_allclose(gain[1:3], 0.7, rtol=0.05)


def test_what_never_moved_tells_nothing(maker):
    world = maker()
    recording = record(world, Imperfections(), 5, still=(0, 1, 2, 3))
    assert np.ptp(recording.position, axis=0).max() < MOVED
    with pytest.raises(RobotRLError, match=r'no joint moved by 0\.05 rad in 1 recordings'):
        calibrate(world, [recording])
    with pytest.raises(RobotRLError, match='no recordings'):
        calibrate(world, [])
