"""sim_robot: the MuJoCo twin behind the topics of an arm's driver."""

from __future__ import annotations

import json
import threading
import time
from typing import Annotated, Literal

import numpy as np
import pydantic
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.time import Time as RosTime
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from robot_rl.control.session import SessionInfo
from robot_rl.errors import ContractMismatch
from robot_rl.nodes import support
from robot_rl.nodes.main import End
from robot_rl.robots.quaternions import wxyz_to_xyzw
from robot_rl.sim.imperfections import Imperfections
from robot_rl.sim.perturbation import Kind
from robot_rl.sim.simulated_arm import SimulatedArm
from robot_rl.sim.twin import world_of
from robot_rl.specs import Spec

# After a longer pause of this process the arm goes on where it was: time is lost, not jumped.
CATCH_UP_S = 0.1

Vector = Annotated[
    tuple[Annotated[float, pydantic.Field(ge=-1000, le=1000)], ...],
    pydantic.Field(min_length=3, max_length=3),
]


class Push(Spec):
    """What ~/perturb does: ROS parameters that may change at any time."""

    push_force_n: Vector = pydantic.Field(
        (20.0, 0.0, 0.0),
        description="force of ~/perturb on the tool's body, x y z in the scene's world frame, "
        'each within +-1000 [N]',
    )
    push_torque_nm: Vector = pydantic.Field(
        (0.0, 0.0, 0.0),
        description="torque of ~/perturb on the tool's body, likewise, each within +-1000 [N m]",
    )
    push_duration_s: float = pydantic.Field(
        0.2, gt=0, le=10, description='how long ~/perturb pushes, at most 10 [s]'
    )


class Parameters(Imperfections, Push):
    """The ROS parameters of sim_robot: what to simulate, how it falls short, how it is pushed."""

    task: str = pydantic.Field('ur5e/reach', description='task whose arm and target to simulate')
    robot: str = pydantic.Field(
        '',
        description='robot in config/robots or a YAML file, @<tf_prefix> may follow: simulated '
        'at home in its own MJCF, without a target, unless it is the robot of `task`',
    )
    seed: pydantic.NonNegativeInt = pydantic.Field(
        0, description='initial condition at the start and after ~/reset'
    )
    perturbation: Kind = pydantic.Field(
        'none',
        description="what comes in every episode, drawn from its seed: 'target' is moved, an "
        "object gets a 'knock', each 'camera' is shifted",
    )
    joint_states_order: Literal['spec', 'alphabetical'] = pydantic.Field(
        'spec',
        description="order of the names in joint states: 'spec', that of RobotSpec.joints, then "
        "the gripper's; or 'alphabetical', as joint_state_broadcaster often has it",
    )
    target_rate_hz: pydantic.PositiveFloat = pydantic.Field(
        20.0, le=1000, description='how often target_pose and other goals are published'
    )
    object_rate_hz: pydantic.PositiveFloat = pydantic.Field(
        50.0, le=1000, description="how often the poses of the task's objects are published"
    )
    publish_state: bool = pydantic.Field(
        False,
        description='publish the whole simulated state on ~/state, for whoever draws it: time, '
        'qpos, qvel, mocap_pos, mocap_quat, seed, one after the other',
    )
    state_rate_hz: pydantic.PositiveFloat = pydantic.Field(
        60.0, le=1000, description='how often ~/state is published'
    )
    publish_clock: bool = pydantic.Field(
        False, description='publish simulated time on /clock, and stamp with it what is measured'
    )
    realtime_priority: int = support.realtime_priority(0)
    speed: float = pydantic.Field(
        1.0,
        ge=0.01,
        le=100,
        description='simulated seconds a second, as far as the computer can; other than 1 only '
        'with publish_clock',
    )

    @pydantic.model_validator(mode='after')
    def _other_speeds_are_told(self) -> Parameters:
        if self.speed != 1 and not self.publish_clock:
            raise ValueError(f'speed {self.speed} needs publish_clock: nobody else would know')
        return self

    def part(self, model: type[support.P]) -> support.P:
        """Return those of the parameters that `model` has."""
        return model.parse(self.model_dump(include=set(model.model_fields)))


class Periodic:
    """Says when something is due that happens at a rate of its own, in simulated time."""

    def __init__(self, rate_hz: float):
        self._period_s, self._left_s = 1.0 / rate_hz, 0.0

    def now(self) -> None:
        """Be due at the next occasion."""
        self._left_s = 0.0

    def is_due(self, elapsed_s: float) -> bool:
        """Let time pass; tell whether it is due."""
        self._left_s -= elapsed_s
        if self._left_s > 1e-6:
            return False
        self._left_s += self._period_s
        return True


class ToWorld:
    """The publishers of what the driver measures, of the target, and of the simulation's state."""

    def __init__(self, node: Node, arm: SimulatedArm, given: Parameters):
        self._arm, self._clock = arm, None
        robot, twin = arm.twin.robot, arm.twin
        names = [*robot.driver_joints, *twin.other_joints]
        self._order = np.arange(len(names))
        if given.joint_states_order == 'alphabetical':
            self._order = np.argsort(names)
        self._joint_state = JointState(name=[names[index] for index in self._order])
        self._joint_state.header.frame_id = robot.driver_frame
        self._joint_states = node.create_publisher(
            JointState, robot.joint_states_topic, support.STREAM
        )
        self._pose = PoseStamped()
        self._pose.header.frame_id = robot.driver_frame
        self.target, self.objects = Periodic(given.target_rate_hz), Periodic(given.object_rate_hz)
        self._poses = {
            stream: node.create_publisher(PoseStamped, stream, support.STREAM)
            for stream in twin.poses
        }
        self._state = None
        self.state = Periodic(given.state_rate_hz)
        if given.publish_state:
            self._state = node.create_publisher(Float64MultiArray, '~/state', support.STREAM)
        if given.publish_clock:
            self._clock = node.create_publisher(Clock, '/clock', support.SENSOR)

    def publish(self, stamp: Time, elapsed: float) -> None:
        """Publish all that is due, `elapsed` seconds after the last time."""
        if self._clock is not None:
            self._clock.publish(Clock(clock=stamp))
        # Poses first: who acts on joint states, and who records it, knows where things are then.
        self._publish_poses(stamp, elapsed)
        sample = self._arm.measure()
        if sample is not None:
            message = self._joint_state
            message.header.stamp = stamp
            message.position = support.doubles(sample.position[self._order])
            message.velocity = support.doubles(sample.velocity[self._order])
            self._joint_states.publish(message)
        if self._state is not None and self.state.is_due(elapsed):
            self._state.publish(Float64MultiArray(data=support.doubles(self._arm.twin.state)))

    def now(self) -> None:
        """Publish all at the next occasion: nobody shall wait for it."""
        for periodic in (self.target, self.objects, self.state):
            periodic.now()

    def _publish_poses(self, stamp: Time, elapsed: float) -> None:
        """Publish the poses that are due: of objects as of what tracks them, of goals as set."""
        twin, pose = self._arm.twin, self._pose.pose
        due = (self.objects.is_due(elapsed), self.target.is_due(elapsed))
        if not any(due):
            return
        self._pose.header.stamp = stamp
        for stream, (position, orientation, _) in twin.poses.items():
            if not due[twin.is_goal(stream)]:
                continue
            place, way = pose.position, pose.orientation
            place.x, place.y, place.z = position.tolist()
            way.x, way.y, way.z, way.w = wxyz_to_xyzw(orientation).tolist()
            self._poses[stream].publish(self._pose)


class SimRobot(support.WorkingNode):
    """Steps the twin in real time, publishes what its driver would, takes its commands.

    An episode with a seed begins at that seed's initial condition. Between the reset and the
    start of the episode commands are dropped: they were meant for where the arm was before.
    """

    def __init__(self) -> None:
        super().__init__('sim_robot')
        support.declare_parameters(self, Parameters, changeable=Push.model_fields)
        self._given = support.read_parameters(self, Parameters)
        world = world_of(self._given.task, self._given.robot)
        self._robot = world.robot
        self._arm = SimulatedArm(
            world, self._given.part(Imperfections), self._given.seed, self._given.perturbation
        )
        self._lock = threading.Lock()
        self._accepting, self._paused = True, False
        self._running: str | None = None  # the episode that was seen to run
        self._simulated = 0.0  # seconds since the start: /clock never goes back
        self._create_topics()
        self._to_world = ToWorld(self, self._arm, self._given)
        self._world = self.create_publisher(String, support.WORLD, support.LATCHED)
        self._tell_world(self._given.seed)
        self._participant = support.Participant(self, self._on_session)
        self.create_service(Trigger, '~/reset', self._on_reset)
        self.create_service(SetBool, '~/pause', self._on_pause)
        self.create_service(Trigger, '~/perturb', self._on_perturb)
        self._diagnostics = support.Diagnostics(self, f'{self._robot.name} (simulated)')

    def start(self, end: End) -> None:
        """Let time pass."""
        support.schedule_in_real_time(self, self._given.realtime_priority)
        super().start(end)

    def _create_topics(self) -> None:
        robot, kind = self._robot, Float64MultiArray
        if robot.controller.kind == 'joint_trajectory':
            kind = JointTrajectory
        self._commands = support.Polled(self, kind, robot.controller.topic, support.COMMAND)
        self._to_gripper = None
        if self._arm.twin.has_gripper:
            self._to_gripper = support.Polled(
                self, Float64MultiArray, robot.gripper.topic, support.COMMAND
            )
        elif robot.gripper:
            self.get_logger().warning(
                f'{robot.mjcf} has no joint of the gripper: it is not simulated'
            )

    def _work(self, stop: threading.Event) -> None:
        """Step at the rate of the driver's joint states; tell once a second how real time is."""
        speed = self._given.speed
        last = reported = None
        simulated = 0.0
        for now in support.every(1.0 / (self._robot.joint_states_rate_hz * speed), stop):
            if last is not None and not self._paused:
                elapsed = min(now - last, CATCH_UP_S) * speed
                simulated += elapsed
                with self._lock:
                    self._step(elapsed)
            last, reported = now, now if reported is None else reported
            if now - reported >= 1.0:
                self._report(simulated / (now - reported))
                reported, simulated = now, 0.0

    def _step(self, elapsed: float) -> None:
        try:
            self._hear(elapsed)
        except ContractMismatch as error:
            self.get_logger().error(str(error), throttle_duration_sec=1.0)
        self._arm.advance(elapsed)
        self._simulated += elapsed
        self._to_world.publish(self._stamp(), elapsed)

    def _hear(self, elapsed: float) -> None:
        """Give the driver what has come in the `elapsed` seconds that are to be simulated now.

        Each command acts from when it came: not before, as if the whole time had known of it.
        Raises ContractMismatch.
        """
        for message, about in self._commands.drain():
            if self._accepting:
                age_s = (time.time_ns() - about['received_timestamp']) * 1e-9
                in_s = float(np.clip(elapsed - age_s * self._given.speed, 0.0, elapsed))
                self._command(message, in_s)
        told = self._to_gripper.newest() if self._to_gripper else None
        if told is not None and self._accepting:
            if len(told.data) != 1:
                raise ContractMismatch(f'gripper: one number is needed, found {list(told.data)}')
            self._arm.twin.set_gripper(self._robot.gripper.commanded_width(told.data[0]))

    def _command(self, message: Float64MultiArray | JointTrajectory, in_s: float) -> None:
        """Give a command that comes `in_s` from now to the driver. Raises ContractMismatch."""
        if isinstance(message, Float64MultiArray):
            self._arm.command(message.data, in_s=in_s)
            return
        joints, points = list(self._robot.driver_joints), message.points
        if message.joint_names != joints or len(points) != 1:
            raise ContractMismatch(
                f'{len(points)} points for {message.joint_names}; right is one for {joints}'
            )
        (point,) = points
        self._arm.command(point.positions, support.seconds(point.time_from_start), in_s)

    def _stamp(self) -> Time:
        if not self._given.publish_clock:
            return self.get_clock().now().to_msg()
        return RosTime(nanoseconds=round(self._simulated * 1e9)).to_msg()

    def _place(self, seed: int) -> None:
        """Put arm and target where the episode of `seed` begins, and say so at once."""
        self._arm.reset(seed)
        self._tell_world(seed)
        self._to_world.now()
        self._to_world.publish(self._stamp(), 0.0)

    def _tell_world(self, seed: int) -> None:
        """Say which world is simulated from now on, for the record."""
        twin = self._arm.twin
        told = {'seed': seed} | twin.world.randomisation.told(twin.domain)
        self._world.publish(String(data=json.dumps(told)))

    def _on_session(self, info: SessionInfo) -> None:
        if info.robot and info.robot != self._robot.name:
            mine = self._robot.name
            told = f"simulates {mine}, not {info.robot} as the episode's task: for another arm or "
            told += f"tf_prefix a copy of the task's file with 'robot: {mine}' is right"
            self._participant.report('error', told)
            return
        with self._lock:
            if info.state == 'prepare':
                if info.seed is not None:  # without one it stays where it is led, as an arm does
                    self._accepting = False
                    self._place(info.seed)
            elif not self._accepting:
                self._commands.newest()  # what came before is for the former pose
                self._accepting = True
            if info.state == 'running' and info.episode != self._running:
                self._running = info.episode
                self._arm.twin.begin()
                self._to_world.now()
        if info.state == 'prepare':
            self._participant.report('ready')

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._lock:
            self._place(self._given.seed)
        response.success, response.message = True, f'seed {self._given.seed}'
        return response

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        """Let time stand still, and with it all that is measured, or pass again."""
        with self._lock:
            if self._paused and not request.data:
                self._commands.newest()  # said to an arm that could not move
            self._paused = request.data
        response.success, response.message = True, 'paused' if request.data else 'running'
        return response

    def _on_perturb(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        push = support.read_parameters(self, Parameters).part(Push)
        with self._lock:
            self._arm.twin.push(push.push_force_n, push.push_torque_nm, push.push_duration_s)
        response.success, response.message = True, push.to_json()
        return response

    def _report(self, real_time_factor: float) -> None:
        slow = real_time_factor < 0.95 * self._given.speed and not self._paused
        twin = self._arm.twin
        self._diagnostics.publish(
            DiagnosticStatus.WARN if slow else DiagnosticStatus.OK,
            'paused' if self._paused else f'real-time factor {real_time_factor:.3f}',
            {
                'real_time_factor': round(real_time_factor, 4),
                'time_s': round(twin.time, 3),
                'tracking_error_rad': float(
                    np.abs(twin.command - twin.joint_position).max().round(4)
                ),
            },
        )
