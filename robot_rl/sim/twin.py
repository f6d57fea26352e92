"""The twin: one simulated arm behind joint commands, stepped by whoever keeps the time."""

from __future__ import annotations

import math
from typing import Protocol

import mujoco
import numpy as np
from numpy.typing import ArrayLike

from robot_rl import registry
from robot_rl.errors import ContractMismatch, SpecError
from robot_rl.robots.mjcf import find_tool, load_model
from robot_rl.sim.cameras import Sizes
from robot_rl.sim.perturbation import Event, Kind, drawn, perturbed
from robot_rl.sim.randomisation import Randomisation
from robot_rl.sim.scene import ArmIndex, Bodies, Jaw
from robot_rl.sim.task import ArmTask, InitialCondition, Pose
from robot_rl.specs import RobotSpec

# How an arm whose actuators take forces is held: as a critically damped spring of this angular
# frequency [rad/s] on top of all that its model says of inertia and gravity. It follows a motion
# with a lag of 2 / 60 s, as position-controlled arms do.
HOLDING_FREQUENCY = 60.0
# What a width comes out of its range where it has been a position meanwhile [m].
SAME_WIDTH = 1e-9


class World(Protocol):
    """What a twin simulates: an ArmTask is one, AtHome another."""

    robot: RobotSpec
    # The cameras that a policy sees it by, {name: (height, width)}, where that is said.
    cameras: Sizes
    # What differs from episode to episode.
    randomisation: Randomisation

    def model(self) -> mujoco.MjModel:
        """Compile the scene."""

    def initial(self, seed: int) -> InitialCondition:
        """Return how the episode of this seed starts."""


class AtHome:
    """A robot without a task: its own MJCF, of the arm alone or of a scene; it starts at home."""

    def __init__(self, robot: RobotSpec):
        self.robot, self.cameras, self.randomisation = robot, {}, Randomisation()

    def model(self) -> mujoco.MjModel:
        """Compile RobotSpec.mjcf, with its own timestep."""
        return load_model(self.robot.mjcf)

    def initial(self, seed: int) -> InitialCondition:
        """Return the home pose, whatever the seed."""
        del seed
        return InitialCondition(self.robot.home_position)


def world_of(task: str, robot: str) -> World:
    """Return a task by name, or a robot at home where one is named that is not the task's.

    Either may be empty. Raises SpecError, UnknownName.
    """
    if not robot:
        return registry.make_task(task)
    spec = RobotSpec.load(robot)
    named_task = registry.make_task(task) if task else None
    return named_task if named_task and named_task.robot == spec else AtHome(spec)


def perturbed_world(world: World, kind: Kind) -> World:
    """Return the world of a perturbation. Raises SpecError where there is nothing to perturb."""
    if kind == 'none':
        return world
    if not isinstance(world, ArmTask):
        raise SpecError(f'perturbation {kind}: {world.robot.name} alone has nothing to perturb')
    return perturbed(world, kind)


class Twin:
    """One arm and what its task is about, if any; ROS-free; joints in the order of RobotSpec.

    Give it a command, let time pass, read it. Its steps are those of ArmEnvironment, number for
    number, where its actuators hold positions. Where they take forces it holds positions itself,
    and where a joint has none, up to the effort that RobotSpec gives it. A perturbation, see
    sim.perturbation, comes in every episode that has begun.
    """

    def __init__(self, world: World, perturbation: Kind = 'none'):
        self.world, self.robot = perturbed_world(world, perturbation), world.robot
        self._perturbation = perturbation
        self.model, self._nominal = world.model(), world.model()
        self.data = mujoco.MjData(self.model)
        self._arm = ArmIndex.of(self.model, self.robot.model_joints)
        self._servo = self._arm.actuators.servo
        self._bare = self._arm.actuators.ctrl < 0
        self._motor = ~self._servo & ~self._bare
        limits = [self.robot.joint_limits[joint].max_effort for joint in self.robot.joints]
        self._max_effort = np.array([np.inf if limit is None else limit for limit in limits])
        self._bodies = Bodies.of(self.model, world.initial(0).poses)
        self._jaw = Jaw.of(self.model, self.robot)
        self._others = self._arm.others(self.model)
        self._others_qpos = self.model.jnt_qposadr[self._others].astype(int)
        self._others_qvel = self.model.jnt_dofadr[self._others].astype(int)
        self._tool_body = find_tool(self.model, self.robot.tool_site)[0]
        self.reset(0)

    def tune(self, gain: np.ndarray, friction: np.ndarray) -> None:
        """Make every joint's servo `gain` [n] times as stiff, and add dry `friction` [n] [N m]."""
        self._gain = np.array(gain, dtype=float)
        self._arm.tune(self.model, self._nominal, self._gain, friction)

    def reset(self, seed: int) -> InitialCondition:
        """Place arm and bodies as this seed's episode starts, at rest and at time 0.

        The world is the episode's, its servos and friction among it: what `tune` said is over.
        """
        self._seed, start = seed, self.world.initial(seed)
        self.domain = self.world.randomisation.drawn(seed, self._nominal, self.robot)
        if self.world.randomisation.is_on:
            self.domain.embody(self.model, self._nominal, self.data)
        faults = self.domain.imperfections
        self.tune(faults.each('gain', self.robot), faults.each('friction', self.robot))
        self._place(start)
        return start

    def begin(self) -> None:
        """Let goals that move begin to, and what perturbs it come: an episode begins now."""
        self._began = self.data.time
        self._event = drawn(self.world, self._perturbation, self._seed)
        if self._event.knocked:
            self._until_knock = max(1, round(self._event.at_s / self.model.opt.timestep))
        self._move_goals()

    def rest_at(self, position: np.ndarray) -> None:
        """Place the arm at joint positions [n] where its servos hold it, at rest and at time 0.

        Servos that do not know of gravity hold it only with a command that is a little off.
        """
        self._place(InitialCondition(np.asarray(position, dtype=float)))
        data, dofs = self.data, self._arm.qvel
        lacking = (data.qfrc_bias - data.qfrc_passive - data.qfrc_actuator)[dofs]
        stiffness = np.where(self._servo, self._arm.actuators.stiffness * self._gain, np.inf)
        self.set_command(position + lacking / stiffness)

    def set_command(self, positions: ArrayLike) -> None:
        """Let the servos hold these joint positions [n] [rad] from now on.

        Raises ContractMismatch for another number of positions or a value that is not finite.
        """
        positions = np.array(positions, dtype=float)
        if positions.shape != (len(self.robot.joints),) or not np.isfinite(positions).all():
            raise ContractMismatch(
                f'the twin of {self.robot.name} takes {len(self.robot.joints)} finite '
                f'joint positions, found {positions.tolist()}'
            )
        self._command = positions
        actuators = self._arm.actuators
        self.data.ctrl[actuators.ctrl[self._servo]] = actuators.towards(positions)[self._servo]

    def set_gripper(self, width: float) -> None:
        """Let the gripper open or close to this width [m]. Raises ContractMismatch."""
        gripper = self.robot.gripper
        if self._jaw is None:
            raise ContractMismatch(f'the twin of {self.robot.name} has no gripper')
        if not -SAME_WIDTH <= width <= gripper.open_width + SAME_WIDTH:
            raise ContractMismatch(
                f'gripper: a width from 0 to {gripper.open_width} m is needed, found {width}'
            )
        self._move_jaw(float(gripper.position(width)))

    def push(self, force: ArrayLike, torque: ArrayLike, seconds: float) -> None:
        """Push the tool's body, at its centre of mass, with force [3] [N] and torque [3] [N m].

        Both in the world frame; the push ends by itself, or with a reset.
        """
        self.data.xfrc_applied[self._tool_body] = [*force, *torque]
        self._pushed_for = max(1, round(seconds / self.model.opt.timestep))

    def advance(self, seconds: float) -> None:
        """Let time pass in whole physics steps; what is left over waits for the next call."""
        self._left_over += seconds
        steps = int(self._left_over / self.model.opt.timestep + 1e-6)
        self._left_over -= steps * self.model.opt.timestep
        pushed = min(steps, self._pushed_for)
        self._step(pushed)
        self._pushed_for -= pushed
        if not self._pushed_for:
            self.data.xfrc_applied[self._tool_body] = 0.0
        self._step(steps - pushed)
        self._move_goals()

    @property
    def time(self) -> float:
        """Simulated seconds since the reset."""
        return self.data.time

    @property
    def state(self) -> np.ndarray:
        """What a picture needs, in a row: time, qpos, qvel, mocap_pos, mocap_quat, seed.

        The seed, whose world this is, as exact as a float can be: below 2^53.
        """
        data = self.data
        parts = (data.qpos, data.qvel, data.mocap_pos.ravel(), data.mocap_quat.ravel())
        return np.concatenate([[data.time], *parts, [self._seed]])

    @property
    def joint_position(self) -> np.ndarray:
        """Measured joint positions [n] [rad]."""
        return self.data.qpos[self._arm.qpos]

    @property
    def joint_velocity(self) -> np.ndarray:
        """Measured joint velocities [n] [rad/s]."""
        return self.data.qvel[self._arm.qvel]

    @property
    def stiffness(self) -> np.ndarray:
        """The torque [n] by which each joint's servo, as modelled, resists a turn [N m / rad].

        That of a servo of ours grows with the inertia at the joint, here that of this pose.
        """
        inertia = np.array([self._inertia(dof) for dof in self._arm.qvel])
        own = inertia * HOLDING_FREQUENCY**2
        return np.where(self._servo, self._arm.actuators.stiffness, own)

    @property
    def other_joints(self) -> tuple[str, ...]:
        """The names [k] of the robot's joints that are not the arm's, as its driver has them."""
        drivers = {model: joint for joint, model in self.robot.mjcf_joints.items()}
        names = [self.model.joint(joint).name for joint in self._others]
        return tuple(self.robot.tf_prefix + drivers.get(name, name) for name in names)

    @property
    def other_position(self) -> np.ndarray:
        """Measured positions [k] of the robot's other joints [rad or m]."""
        return self.data.qpos[self._others_qpos]

    @property
    def other_velocity(self) -> np.ndarray:
        """Measured velocities [k] of the robot's other joints."""
        return self.data.qvel[self._others_qvel]

    @property
    def command(self) -> np.ndarray:
        """The joint positions [n] [rad] that the servos hold."""
        return self._command.copy()

    @property
    def has_gripper(self) -> bool:
        """Whether the model has the joint of RobotSpec.gripper."""
        return self._jaw is not None

    @property
    def poses(self) -> dict[str, Pose]:
        """Where the bodies that the task is about stand, by stream, in base_frame."""
        return {stream: Pose(*pose) for stream, pose in self._bodies.poses(self.data).items()}

    def is_goal(self, stream: str) -> bool:
        """Whether a stream of `poses` is of a goal or fixture, which is put and not moved."""
        return stream in self._bodies.marks

    @property
    def width(self) -> np.ndarray:
        """The gripper's measured width [1] [m]."""
        return self.robot.gripper.width(self.data.qpos[self._jaw.qpos[:1]])

    def _place(self, start: InitialCondition) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[self._arm.qpos] = start.joint_position
        self._left_over, self._pushed_for, self._began = 0.0, 0, 0.0
        self._start, self._event = start, Event()
        self._until_knock = math.inf  # physics steps
        self._bodies.place(self.data, start.poses)
        self._move_goals()
        self.set_command(start.joint_position)
        if self._jaw is not None:
            if start.width is not None:
                self.data.qpos[self._jaw.qpos] = self.robot.gripper.position(start.width)
            self._move_jaw(float(self.data.qpos[self._jaw.qpos[0]]))
        mujoco.mj_forward(self.model, self.data)

    def _move_goals(self) -> None:
        elapsed = self.data.time - self._began
        for stream, pose in self._start.poses.items():
            if pose.sway or stream in self._event.moved:
                place = pose.at(elapsed) + self._event.displacement(stream, elapsed)
                self._bodies.place(self.data, {stream: (place, pose.orientation)})

    def _knock(self) -> None:
        """Make objects faster at once, as a short push through their centres of mass does."""
        for stream, change in self._event.knocked.items():
            first = self.model.body(stream.removesuffix('_pose')).dofadr[0]
            self.data.qvel[first : first + 3] += change
        self._until_knock = math.inf

    def _inertia(self, dof: int) -> float:
        """Return the inertia at one degree of freedom where the others stand still."""
        unit, column = np.zeros(self.model.nv), np.zeros(self.model.nv)
        unit[dof] = 1.0
        mujoco.mj_mulM(self.model, self.data, column, unit)
        return float(column[dof])

    def _move_jaw(self, position: float) -> None:
        self.data.ctrl[self._jaw.actuators.ctrl] = self._jaw.towards(np.array([position]))

    def _step(self, steps: int) -> None:
        """Let physics steps pass; a knock comes between two of them."""
        before = int(min(steps, self._until_knock))
        self._pass(before)
        self._until_knock -= before
        if not self._until_knock:
            self._knock()
        self._pass(steps - before)

    def _pass(self, steps: int) -> None:
        if self._servo.all():
            if steps:
                mujoco.mj_step(self.model, self.data, steps)
            return
        for _ in range(steps):
            self._force()
            mujoco.mj_step(self.model, self.data)

    def _force(self) -> None:
        """Set what the servos do not do: computed torque, with what the last step computed.

        Acceleration of a critically damped spring times inertia, plus what balances gravity,
        Coriolis forces and springs; neither damping nor friction is known to it.
        """
        data, dofs, actuators = self.data, self._arm.qvel, self._arm.actuators
        position, velocity = self.joint_position, self.joint_velocity
        stiffness = self._gain * HOLDING_FREQUENCY**2
        wanted, force = np.zeros(self.model.nv), np.zeros(self.model.nv)
        wanted[dofs] = stiffness * (self._command - position) - 2 * HOLDING_FREQUENCY * velocity
        mujoco.mj_mulM(self.model, data, force, wanted)
        force += data.qfrc_bias - data.qfrc_gravcomp - data.qfrc_spring
        ctrl = actuators.pushing(force[dofs], position, velocity)
        data.ctrl[actuators.ctrl[self._motor]] = ctrl[self._motor]
        effort = np.clip(force[dofs], -self._max_effort, self._max_effort)
        data.qfrc_applied[dofs[self._bare]] = effort[self._bare]
