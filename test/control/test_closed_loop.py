"""The two closed loops are one: the simulated environment, and the control path on the twin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from robot_rl import registry
from robot_rl.control.clocks import VirtualClock
from robot_rl.control.guard import CommandGuard, GuardConfig
from robot_rl.control.loop import Command, ControlLoop
from robot_rl.control.observation import Observer
from robot_rl.control.runtime import OnnxPolicy, load_policy
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.sim.environment import HELD_OUT, StepType
from robot_rl.sim.imperfections import Imperfections
from robot_rl.sim.simulated_arm import SimulatedArm
from robot_rl.sim.twin import AtHome, Twin
from robot_rl.specs import Box, RobotSpec
from robot_rl.specs.contract import TWIST

EPISODES = 9  # of 60 steps
AGREE = {'rtol': 0, 'atol': 1e-6}


@pytest.fixture(scope='module')
def task_file(tmp_path_factory):
    """Builds a task's file: without walls, which are the guard's alone, and with these limits."""

    def build(name='ur5e/reach', changes=None, **limits) -> str:
        task, folder = registry.make_task(name), tmp_path_factory.mktemp('task')
        joints = {
            joint: given.replace(**limits) for joint, given in task.robot.joint_limits.items()
        }
        space = Box(lower=(-9, -9, -9), upper=(9, 9, 9))
        robot = task.robot.replace(joint_limits=joints, workspace=space)
        Path(folder, 'robot.yaml').write_text(robot.to_yaml())
        config = task.config.replace(robot=str(folder / 'robot.yaml'), **changes or {})
        Path(folder, 'task.yaml').write_text(config.to_yaml())
        return str(folder / 'task.yaml')

    return build


class Beside:
    """policy -> command guard -> arm without ROS and without delay, on a virtual clock."""

    def __init__(self, task, contract, policy, start_gate=0.1):
        self.task, self.twin, self.clock = task, Twin(task), VirtualClock(start_s=1234.5)
        self.guard = CommandGuard(task.robot, task.chain, GuardConfig(start_gate=start_gate))
        self.loop = ControlLoop(contract, task.robot, task.chain, policy)

    def begin(self, seed: int) -> None:
        self.twin.reset(seed)
        self.guard.reset()
        self.guard.width = None
        while self.guard.tick(self.clock.now()):  # until it has come to rest
            self.clock.advance(self.guard.period_s)
        self.loop.observations.reset()
        self.sense()
        self.loop.begin(self.loop.observations.latest('joint_states')['position'])

    def sense(self) -> None:
        """Let the arm's messages come, its joints in another order than the robot's."""
        now, names = self.clock.now(), self.task.robot.joints[::-1]
        values = {
            'position': self.twin.joint_position[::-1],
            'velocity': self.twin.joint_velocity[::-1],
        }
        if self.twin.has_gripper:  # its joints come with the arm's
            names = (*names, *self.twin.other_joints)
            more = self.twin.other_position, self.twin.other_velocity
            values = {
                key: np.concatenate([values[key], other])
                for key, other in zip(values, more, strict=True)
            }
        self.loop.observations.put('joint_states', now, values, names)
        for stream, (position, orientation, _) in self.twin.poses.items():
            pose = {'position': position, 'orientation': orientation}
            self.loop.observations.put(stream, now, pose)
        assert self.guard.measured(names, values['position'], now) is None

    def step(self) -> Command:
        command, now = self.loop.tick(self.clock.now()), self.clock.now()
        joints, period_s = self.task.robot.joints, self.loop.contract.period_s
        assert self.guard.command(joints, command.target, period_s, now, 'policy', now) is None
        if command.width is not None:
            assert self.guard.grip([command.width], 'policy', now) is None
            self.twin.set_gripper(self.guard.width)
        for _ in range(self.task.ticks):
            self.twin.set_command(self.guard.tick(self.clock.now()).positions)
            self.twin.advance(self.guard.period_s)
            self.clock.advance(self.guard.period_s)
        self.sense()
        return command

    def columns(self) -> dict[str, np.ndarray]:
        tool, _ = self.task.chain.forward(self.twin.joint_position)
        columns = {'tool.position': tool, 'joint_states.position': self.twin.joint_position}
        if self.twin.has_gripper:
            columns['gripper.width'] = self.twin.width
        for stream, (position, orientation, _) in self.twin.poses.items():
            columns[f'{stream}.position'] = position
            columns[f'{stream}.orientation'] = orientation
        return columns


def with_history(contract):
    fields = [
        field.replace(history=3) if field.name in ('joint_position', 'command') else field
        for field in contract.observation
    ]
    return contract.model_copy(update={'observation': tuple(fields)})


def with_large_steps(contract):
    """Ask for steps that the position and velocity limits cut short."""
    action = contract.action[0]
    action = action.replace(lower=(-0.3,) * len(action.names), upper=(0.3,) * len(action.names))
    return contract.model_copy(update={'action': (action,)})


CASES = {
    'feedforward': (lambda contract: contract, 0, 0.1, None),
    'recurrent, with history': (with_history, 8, 0.1, None),
    'limited': (with_large_steps, 0, 1.0, None),
    'accelerated': (lambda contract: contract, 0, 0.1, 10.0),
}


@pytest.mark.parametrize('case', CASES)
def test_environment_and_control_loop_give_the_same_numbers(policy_file, task_file, case):
    change, memory, start_gate, acceleration = CASES[case]
    name = task_file(max_acceleration=acceleration)
    task = registry.make_task(name)
    contract = change(task.contract())
    file = policy_file(contract, seed=5, memory=memory)
    policy = OnnxPolicy(file)
    environment = registry.make_environment(name, seed=0, contract=contract)
    path = Beside(task, contract, OnnxPolicy(file), start_gate)
    travelled, steps, cut = 0.0, 0, 0
    for episode in range(EPISODES):
        seed = HELD_OUT + episode
        timestep, state = environment.reset(seeds=[seed]), policy.initial_state(1)
        path.begin(seed)
        start = path.twin.joint_position.copy()
        while timestep.step_type[0] != StepType.LAST:
            action, state = policy.select(timestep.observation, state)
            seen = timestep.observation
            command = path.step()
            timestep = environment.step(action)
            for name, values in command.observation.items():
                np.testing.assert_allclose(values, seen[name][0], err_msg=name, **AGREE)
            np.testing.assert_allclose(command.requested, action[0], **AGREE)
            reward = task.reward(path.columns(), command.requested)
            np.testing.assert_allclose(reward, timestep.reward[0], **AGREE)
            steps += 1
            cut += np.abs(command.applied - command.requested).max() > 1e-6
        for column, values in path.columns().items():
            np.testing.assert_allclose(values, environment.columns[column][0], **AGREE)
        travelled = max(travelled, np.abs(path.twin.joint_position - start).max())
    environment.close()
    assert steps == EPISODES * task.max_steps >= 500
    assert travelled > 0.3  # the arm has moved
    assert bool(cut) == (case == 'limited')
    counts = path.guard.diagnostics()
    assert [counts[kind] for kind in ('refused', 'ramped', 'held', 'astray')] == [0] * 4
    assert bool(counts['slowed']) == (case == 'accelerated')


# So slow that the arm does not hit what it stands on, where it stops and rounding grows.
SLOW = {'action': 'joint_velocity', 'max_joint_velocity': 0.15}
TURNING = {'linear_x': 0.04, 'linear_y': 0.04, 'linear_z': 0.02, 'angular_z': 0.3}
KINDS = {
    'twist and gripper': ('ur5e/lift', {'max_twist': TURNING}),
    'velocities and gripper': ('ur5e/stack', SLOW | {'duration_s': 6.0}),
    'deltas and gripper, beside a fixture': (
        'ur5e/insert',
        {'action': 'joint_delta', 'max_delta': 0.006},
    ),
    'twist, a closed gripper': (
        'ur5e/push',
        {'duration_s': 6.0, 'max_twist': TURNING},
    ),
    'twist, three fingers': ('jaco/lift', {'max_twist': TURNING}),
    'velocities, a moving target': ('ur5e/match', SLOW),
    'all of a twist, another arm': (
        'jaco/reach',
        {'action': 'cartesian_twist', 'max_twist': dict.fromkeys(TWIST, 0.1)},
    ),
}


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_action_gives_the_same_numbers_in_both_loops(policy_file, task_file, kind):
    base, changes = KINDS[kind]
    name = task_file(base, changes)
    task = registry.make_task(name)
    contract = task.contract()
    file = policy_file(contract, seed=3)
    policy = OnnxPolicy(file)
    environment = registry.make_environment(name, num_envs=2)
    path = Beside(task, contract, OnnxPolicy(file), start_gate=1.0)
    steps, widths = 0, []
    for seed in range(HELD_OUT, HELD_OUT + 1 + 500 // task.max_steps):
        timestep, state = environment.reset([seed, seed + 1]), policy.initial_state(1)
        path.begin(seed)
        while timestep.step_type[0] != StepType.LAST:
            seen = {field: values[:1] for field, values in timestep.observation.items()}
            action, state = policy.select(seen, state)
            command = path.step()
            for field, values in command.observation.items():
                np.testing.assert_allclose(values, seen[field][0], **AGREE)
            timestep = environment.step(np.concatenate([action, 0.5 * action]))
            np.testing.assert_allclose(command.requested, action[0], **AGREE)
            columns = path.columns()
            for column, values in columns.items():
                np.testing.assert_allclose(values, environment.columns[column][0], **AGREE)
            reward = task.reward(columns, command.requested)
            np.testing.assert_allclose(reward, timestep.reward[0], **AGREE)
            widths += [] if command.width is None else [command.width]
            steps += 1
    environment.close()
    assert steps >= 500
    assert bool(widths) == task.config.gripper and (not widths or np.ptp(widths) > 0.005)


def test_the_last_observation_of_the_environment_is_what_the_streams_say(task_file, policy_file):
    name = task_file(max_acceleration=None)  # the guard is where it was led to
    task = registry.make_task(name)
    contract = task.contract()
    path = Beside(task, contract, OnnxPolicy(policy_file(contract)))
    environment = registry.make_environment(name)
    timestep = environment.reset(seeds=[3])
    path.begin(3)
    for _ in range(5):
        timestep = environment.step(path.step().requested[None])
    streams = {
        'joint_states': path.loop.observations.latest('joint_states'),
        'target_pose': path.loop.observations.latest('target_pose'),
        'command': {'position': path.guard.published},
    }
    for name, values in Observer(contract, task.chain).observe(streams).items():
        np.testing.assert_allclose(values, timestep.observation[name][0], **AGREE)
    environment.close()


@pytest.mark.parametrize('seed', [HELD_OUT, HELD_OUT + 4])
def test_a_twin_in_a_protective_stop_is_not_chased_and_is_told_where_it_stands(seed):
    """The command ran ahead by 1.6 rad, and the twin went after it when it was released."""
    task, policy = registry.make_task('ur5e/reach'), load_policy('ur5e_reach')
    path, gate = Beside(task, policy.contract, policy), GuardConfig()
    path.begin(seed)
    for _ in range(4):
        path.step()
    assert np.abs(path.twin.joint_velocity).max() > 0.3  # it is on its way
    path.twin.rest_at(path.twin.joint_position)
    stands, ahead = path.twin.joint_position, 0.0
    while not path.guard.astray:  # with joint states, but without a motion
        target, now = path.loop.tick(path.clock.now()).target, path.clock.now()
        joints, period_s = task.robot.joints, policy.contract.period_s
        assert path.guard.command(joints, target, period_s, now, 'policy', now) is None
        for _ in range(task.ticks):
            told = path.guard.tick(path.clock.now()).positions
            path.clock.advance(path.guard.period_s)
            path.sense()
            ahead = max(ahead, np.abs(told - stands).max())
    fastest = 1.6  # rad/s
    assert ahead < gate.path_tolerance + fastest * (gate.tracking_delay_s + 0.05)
    for _ in range(100):  # it is released
        path.twin.set_command(path.guard.tick(path.clock.now()).positions)
        path.twin.advance(path.guard.period_s)
        path.clock.advance(path.guard.period_s)
        path.sense()
    np.testing.assert_allclose(path.twin.joint_position, stands, atol=5e-3)


@pytest.mark.parametrize('kind', ['forward_position', 'forward_velocity', 'joint_trajectory'])
def test_a_twin_with_the_faults_of_an_arm_is_not_taken_for_one_that_does_not_follow(kind):
    """Late by 44 ms and with servos of 0.6 of their stiffness, at the limits of its joints."""
    controller = {'kind': kind, 'driver_timeout_s': 0.1}
    robot = RobotSpec.load('ur5e').replace(controller=controller)
    arm = SimulatedArm(AtHome(robot), Imperfections(command_delay_s=0.044, gain=(0.6,)))
    guard = CommandGuard(robot, KinematicChain.from_spec(robot), GuardConfig(start_gate=1.0))
    goal = start = arm.measure().position
    fastest = 0.0
    for k in range(800):
        now = k * guard.period_s
        assert guard.measured(robot.joints, arm.measure().position, now) is None
        if k % 5 == 0:  # there and back again
            step = robot.max_velocity * (0.05 if k // 100 % 2 else -0.05)
            goal = np.clip(goal + step, start - 0.7, start + 0.7)
            assert guard.command(robot.joints, goal, 0.05, now, 'policy', now) is None
        applied = guard.tick(now)
        fastest = max(fastest, np.abs(applied.velocities).max())
        told = {'forward_velocity': guard.velocities}.get(kind, lambda said: said.positions)
        arm.command(told(applied), robot.controller.point_duration_s)
        arm.advance(guard.period_s)
    assert fastest > 1.5 and guard.diagnostics()['astray'] == 0
