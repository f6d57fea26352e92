"""A person takes over from a running policy and gives back: no jump, no gap, no quarrel.

Policy, guard and twin without ROS on a virtual clock, and a person who jogs in between.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from robot_rl import registry
from robot_rl.control.clocks import VirtualClock
from robot_rl.control.guard import CommandGuard
from robot_rl.control.loop import ControlLoop
from robot_rl.sim.twin import Twin

SEED = 4
PERSON_HZ = 50
BEGINS_S, LETS_GO_S, ENDS_S = 0.43, 1.31, 6.0
SPEED = np.array([-0.8, 0.0, 0.6, 0.0, -0.5, 0.0])  # away from wherever the policy leads


class Scene:
    """Runs the policy at its rate, as the node does, and tells of every tick of the guard."""

    def __init__(self, task, policy):
        self.task, self.twin, self.clock = task, Twin(task), VirtualClock(start_s=50.0)
        self.guard = CommandGuard(task.robot, task.chain)
        self.loop = ControlLoop(policy.contract, task.robot, task.chain, policy)
        self.twin.reset(SEED)
        self.loop.observations.reset()
        self.applied, self.decided = [], []  # by the guard a tick, and (applied before, command)

    def run(self) -> None:
        start, joints = self.clock.now(), self.task.robot.joints
        ticks = round(ENDS_S / self.guard.period_s)
        every = round(self.loop.contract.period_s / self.guard.period_s)
        for tick in range(ticks):
            self.sense()
            if tick == 0:
                self.loop.begin(self.twin.joint_position)
            if tick % every == 0:
                self.decide()
            if BEGINS_S <= self.clock.now() - start < LETS_GO_S and tick % 2 == 0:
                target = self.guard.published + SPEED / PERSON_HZ * 2
                now = self.clock.now()
                assert self.guard.command(joints, target, 2 / PERSON_HZ, 0, 'teleop', now) is None
            self.applied.append(self.guard.tick(self.clock.now()))
            self.twin.set_command(self.applied[-1].positions)
            self.twin.advance(self.guard.period_s)
            self.clock.advance(self.guard.period_s)

    def sense(self) -> None:
        now, joints = self.clock.now(), self.task.robot.joints
        position, velocity = self.twin.joint_position, self.twin.joint_velocity
        values = {'position': position, 'velocity': velocity}
        self.loop.observations.put('joint_states', now, values, joints)
        for stream, (place, orientation, _) in self.twin.poses.items():
            pose = {'position': place, 'orientation': orientation}
            self.loop.observations.put(stream, now, pose)
        assert self.guard.measured(joints, position, now) is None

    def decide(self) -> None:
        """Do as the node policy: go on from what was applied, where that was not its own."""
        before = self.applied[-1] if self.applied else None
        if before is not None and before.source != 'policy':
            self.loop.rebase(before.positions)
        command, now = self.loop.tick(self.clock.now()), self.clock.now()
        self.decided.append((before, command))
        joints, period_s = self.task.robot.joints, self.loop.contract.period_s
        assert self.guard.command(joints, command.target, period_s, now, 'policy', now) is None


@pytest.fixture(scope='module', params=[None, 60.0], ids=['acceleration', 'jerk'])
def scene(request, tmp_path_factory):
    task, folder = registry.make_task('ur5e/reach'), tmp_path_factory.mktemp('task')
    limits = {
        joint: given.replace(max_jerk=request.param)
        for joint, given in task.robot.joint_limits.items()
    }
    (folder / 'robot.yaml').write_text(task.robot.replace(joint_limits=limits).to_yaml())
    config = task.config.replace(robot=str(folder / 'robot.yaml'))
    (folder / 'task.yaml').write_text(config.to_yaml())
    name = str(folder / 'task.yaml')
    scene = Scene(registry.make_task(name), registry.make_demonstrator(name))
    scene.run()
    return scene


def test_the_arm_is_led_by_one_after_the_other_without_a_gap(scene):
    assert None not in scene.applied
    sources = [applied.source for applied in scene.applied]
    spells = [(source, len(list(spell))) for source, spell in itertools.groupby(sources)]
    assert [source for source, _ in spells] == ['policy', 'teleop', 'hold', 'policy']
    period_s, config = scene.guard.period_s, scene.guard.config
    until_heard = spells[0][1] * period_s - BEGINS_S
    assert 0 <= until_heard <= 2 * period_s + 1e-9  # the person is heard at once
    held_s = spells[2][1] * period_s
    policy_s = scene.loop.contract.period_s
    assert held_s <= config.give_back_after_s - config.timeout_s + policy_s + 2 * period_s


def test_neither_change_has_a_step_in_position_or_velocity(scene):
    robot, period_s = scene.task.robot, scene.guard.period_s
    path = np.array([applied.positions for applied in scene.applied])
    speed = np.diff(path, axis=0) / period_s
    assert (np.abs(speed) <= robot.max_velocity + 1e-9).all()
    change = np.diff(speed, axis=0) / period_s
    assert (np.abs(change) <= robot.max_acceleration + 1e-6).all()
    said = np.array([applied.velocities for applied in scene.applied])
    assert (np.abs(np.diff(said, axis=0)) <= robot.max_acceleration * period_s + 1e-9).all()
    if np.isfinite(robot.max_jerk).all():
        # The mean over a period of a jerk that is within its limit, differenced twice more.
        jerk = np.diff(change, axis=0) / period_s
        assert (np.abs(jerk) <= robot.max_jerk * (1 + 1e-6)).all()
    # It moved at the first change, and its direction was turned.
    taken = [applied.source for applied in scene.applied].index('teleop')
    assert np.abs(said[taken - 1]).max() > 0.2


def test_the_policy_sees_and_goes_on_from_where_the_person_led_the_arm(scene):
    bounds = scene.loop.contract.action_upper
    names = [field.name for field in scene.loop.contract.observation]
    seen = names[[f.source for f in scene.loop.contract.observation].index('command.position')]
    led = [(before, c) for before, c in scene.decided if before and before.source != 'policy']
    assert len(led) > 15
    for before, command in led:
        np.testing.assert_allclose(command.observation[seen], before.positions, atol=1e-6)
        assert (np.abs(command.target - before.positions) <= bounds + 1e-9).all()
    # The first target that is heard again is no farther than one action from where the arm is.
    assert scene.guard.diagnostics()['ramped'] == 0


def test_the_policy_still_does_its_task(scene):
    tool, _ = scene.task.chain.forward(scene.twin.joint_position)
    target = scene.twin.poses['target_pose'][0]
    assert np.linalg.norm(tool - target) < scene.task.config.success_distance
