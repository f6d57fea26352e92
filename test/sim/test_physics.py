"""Contacts: what rests stays, what is gripped is held, and random actions make nothing explode."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from robot_rl import registry
from robot_rl.sim.arm import ArmEnvironment
from robot_rl.sim.environment import HELD_OUT, StepType
from robot_rl.sim.twin import Twin

WITH_OBJECTS = [name for name in registry.arm_task_names() if registry.make_task(name).objects]
LANES = 16
EYE = np.eye(2, 3)

# What an arm of 150 N m that presses an object onto the table, or throws it, may do. The largest
# of a million steps of each task and kind of action, sixteen million in all: 21 mm, of a peg that
# a hand drives into the table; 659 J and 8 m/s.
PENETRATION_M, ENERGY_J, OBJECT_SPEED = 0.025, 1000.0, 25.0


class Extremes:
    """The largest penetration, energy and speed of objects, looked at after every physics step."""

    def __init__(self, environment: ArmEnvironment):
        self.environment = environment
        self.penetration, self.energy, self.speed = [], [], []

    def look(self, moved: np.ndarray) -> None:
        """Look at the last decision of the lanes that `moved`, and began no episode."""
        states = self.environment._states[: len(moved)]  # time, qpos, qvel
        assert np.isfinite(states).all()
        for lane, steps in zip(moved, states, strict=True):
            model, data = self.environment.scene(lane)
            velocity = steps[:, 1 + model.nq : 1 + model.nq + model.nv]
            free = model.jnt_dofadr[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
            speeds = [np.linalg.norm(velocity[:, dof : dof + 3], axis=1) for dof in free]
            self.speed.append(np.max(speeds))
            for state in steps:
                self._compute(model, data, state)

    def _compute(self, model: mujoco.MjModel, data: mujoco.MjData, state: np.ndarray) -> None:
        mujoco.mj_setState(model, data, state, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        mujoco.mj_fwdPosition(model, data)
        mujoco.mj_energyPos(model, data)
        mujoco.mj_energyVel(model, data)
        self.penetration.append(-data.contact.dist.min() if data.ncon else 0.0)
        self.energy.append(data.energy.sum())  # potential, and kinetic


def at_random(name: str, action: str, steps: int, seed: int = 0) -> Extremes:
    """Take `steps` physics steps in all; actions are drawn, or at their bounds, for half a second.

    Episodes end as they do; raises where MuJoCo warns of a bad state.
    """
    task = registry.make_task(name)
    task = type(task)(task.config.replace(action=action))
    environment = ArmEnvironment(task, LANES, seed)
    environment.reset()
    low, high = environment.contract.action_lower, environment.contract.action_upper
    rng, extremes = np.random.default_rng(seed), Extremes(environment)
    for decision in range(steps // (LANES * task.ticks * task.substeps)):
        if decision % 10 == 0:
            wanted = rng.uniform(low, high, (LANES, len(low)))
            bounds = np.where(rng.random((LANES, len(low))) < 0.5, low, high)
            wanted = wanted if decision % 20 else bounds
        step = environment.step(wanted)
        assert all(np.isfinite(values).all() for values in step.observation.values())
        extremes.look(np.flatnonzero(step.step_type != StepType.FIRST))
    warnings = [warning.number for data in environment._data for warning in data.warning]
    environment.close()
    assert not any(warnings)
    return extremes


def assert_bounded(extremes: Extremes) -> None:
    assert max(extremes.penetration) < PENETRATION_M
    assert np.quantile(extremes.penetration, 0.99) < 0.002
    assert np.abs(extremes.energy).max() < ENERGY_J
    assert max(extremes.speed) < OBJECT_SPEED


@pytest.mark.parametrize('name', WITH_OBJECTS)
def test_random_actions_do_not_explode(name):
    assert_bounded(at_random(name, 'cartesian_twist', 20_000))


@pytest.mark.slow
@pytest.mark.parametrize('action', ['cartesian_twist', 'joint_velocity', 'joint_delta'])
@pytest.mark.parametrize('name', WITH_OBJECTS)
def test_two_million_random_steps_do_not_explode(name, action):
    """Two million in all, every one looked at: 84 000 a case, half a million a kind of task."""
    assert_bounded(at_random(name, action, 84_000, seed=1))


@pytest.mark.parametrize('name', WITH_OBJECTS)
def test_what_stands_on_the_table_stays_there(name):
    twin = Twin(registry.make_task(name))
    for seed in (0, 1):
        before = twin.reset(seed).poses
        twin.advance(5.0)
        for stream, pose in twin.poses.items():
            np.testing.assert_allclose(pose.position, before[stream].position, atol=2e-3)
            np.testing.assert_allclose(pose.orientation, before[stream].orientation, atol=5e-3)


@pytest.mark.parametrize(
    ('name', 'opened', 'held_at', 'pace'),
    [('ur5e/lift', 0.085, 0.04, 1), ('jaco/lift', 0.08, 0.051, 2)],
)
def test_a_cube_is_gripped_lifted_and_does_not_creep_out(name, opened, held_at, pace):
    """A hand that knows where the cube is, by the task's own actions; then it holds for 10 s."""
    task = registry.make_task(name)
    environment = ArmEnvironment(type(task)(task.config.replace(duration_s=30.0)), 4)
    environment.reset([HELD_OUT + lane for lane in range(4)])
    cubes = environment.columns['cube_pose.position']
    yaw = 2 * np.arctan2(*environment.columns['cube_pose.orientation'].T[[3, 0]])

    def go(goal, width, decisions, turn=None):
        rows = []
        for _ in range(pace * decisions):
            columns = environment.columns
            way = 4 * (goal - task.chain.position(columns['command.position']))
            spin = np.zeros(4) if turn is None else 4 * turn(columns)
            command = np.column_stack([way, spin, np.full(4, width)])
            environment.step(command)
            rows.append(environment.columns)
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def to_the_cube(columns):
        """The angle from the fingers' line to the nearest face of the cube."""
        matrices = task.chain.forward(columns['command.position'])[1]
        w, x, y, z = matrices.T
        fingers = np.arctan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z))
        quarter = np.pi / 2
        return (yaw - fingers + quarter / 2) % quarter - quarter / 2

    above, up = cubes + np.array([0, 0, 0.1]), cubes + np.array([0, 0, 0.13])
    go(above, opened, 40, to_the_cube)
    go(cubes, opened, 40)
    go(cubes, 0.0, 12)
    go(up, 0.0, 40)
    held = go(up, 0.0, 200 // pace)
    environment.close()
    assert task.success(held).all()
    in_hand = held['cube_pose.position'] - held['tool.position']
    assert np.abs(in_hand[-1] - in_hand[0]).max() < 5e-4
    np.testing.assert_allclose(held['gripper.width'][-1], held_at, atol=1e-3)


def test_a_fixture_is_solid_where_each_episode_has_put_it():
    """A peg that stands on the rim of the block stays up there, in every lane."""
    environment = ArmEnvironment(registry.make_task('ur5e/insert'), 3)
    environment.reset([1, 2, 3])
    hole = environment.columns['hole_pose.position']
    assert np.ptp(hole[:, :2], axis=0).min() > 0.01
    first = 1 + environment._bodies.free['peg_pose']
    environment._state[:, first : first + 3] = hole + np.array([0.0, 0.0, 0.101])
    yaw = environment.columns['hole_pose.orientation']
    environment._state[:, first + 3 : first + 7] = yaw
    rim = hole + 0.0385 * np.stack([1 - 2 * yaw[:, 3] ** 2, 2 * yaw[:, 0] * yaw[:, 3]], 1) @ EYE
    environment._state[:, first : first + 2] = rim[:, :2]
    action = np.tile([0.0, 0, 0, 0, 0.08], (3, 1))
    for _ in range(40):
        environment.step(action)
    np.testing.assert_allclose(environment.columns['peg_pose.position'][:, 2], 0.1, atol=1e-3)
    environment.close()


def test_a_finger_began_inside_the_cube():
    """One push in 3000: the tool was drawn beside its top, and the cube was thrown away."""
    task = registry.make_task('ur5e/push')
    starts = task.initials(range(3000))
    tools = task.chain.position(np.array([start.joint_position for start in starts]))
    cubes = np.array([start.poses['cube_pose'].position for start in starts])
    (near,) = np.nonzero(np.linalg.norm((tools - cubes)[:, :2], axis=1) < 0.05)
    assert len(near) > 50 and 247 in near
    environment = registry.make_environment('ur5e/push', len(near))
    environment.reset(near.tolist())
    for lane in range(len(near)):
        model, data = environment.scene(lane)
        mujoco.mj_forward(model, data)
        cube = model.body('cube').id
        about = [c for c in data.contact if cube in model.geom_bodyid[c.geom]]
        assert min((contact.dist for contact in about), default=0.0) > -1e-3, near[lane]
    environment.close()
