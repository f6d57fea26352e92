"""sim_robot: the MuJoCo twin behind the topics of an arm's driver."""

from __future__ import annotations

import threading

import numpy as np
import pydantic
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from robot_rl import registry
from robot_rl.control.session import SessionInfo
from robot_rl.errors import ContractMismatch
from robot_rl.nodes import support
from robot_rl.nodes.main import End
from robot_rl.robots.quaternions import wxyz_to_xyzw
from robot_rl.sim.driver import SimulatedDriver
from robot_rl.sim.twin import Twin
from robot_rl.specs import Spec

# After a longer pause of this process the arm goes on where it was: time is lost, not jumped.
CATCH_UP_S = 0.1


class Parameters(Spec):
    """The ROS parameters of sim_robot."""

    task: str = pydantic.Field('ur5e/reach', description='task whose arm and target to simulate')
    seed: pydantic.NonNegativeInt = pydantic.Field(
        0, description='initial condition at the start and after ~/reset'
    )
    target_rate_hz: pydantic.PositiveFloat = pydantic.Field(
        20.0, description='how often target_pose is published'
    )
    publish_state: bool = pydantic.Field(
        False,
        description='publish the whole simulated state on ~/state, for whoever draws it: time, '
        'qpos, qvel, mocap_pos, mocap_quat, one after the other',
    )
    state_rate_hz: pydantic.PositiveFloat = pydantic.Field(
        60.0, description='how often ~/state is published'
    )


class SimRobot(Node):
    """Steps the twin in real time, publishes what its driver would, takes its commands.

    An episode with a seed begins at that seed's initial condition. Between the reset and the
    start of the episode commands are dropped: they were meant for where the arm was before.
    """

    def __init__(self) -> None:
        super().__init__('sim_robot')
        support.declare_parameters(self, Parameters)
        self._given = support.read_parameters(self, Parameters)
        self._task = registry.make_task(self._given.task)
        self._twin = Twin(self._task)
        self._driver = SimulatedDriver(self._task.robot)
        self._driver.reset(self._twin.reset(self._given.seed).joint_position)
        self._lock = threading.Lock()
        self._accepting = True
        self._until_target = self._until_state = 0.0
        self._create_topics()
        self._participant = support.Participant(self, self._on_session)
        self.create_service(Trigger, '~/reset', self._on_reset)
        self._diagnostics = support.Diagnostics(self, f'{self._task.robot.name} (simulated)')
        self._worker: support.Worker | None = None

    def start(self, end: End) -> None:
        """Let time pass."""
        self._worker = support.Worker(self._work, end)
        self._worker.start()

    def close(self) -> None:
        """Stop the time."""
        if self._worker:
            self._worker.stop()

    def _create_topics(self) -> None:
        robot = self._task.robot
        kind = Float64MultiArray
        if robot.controller.kind == 'joint_trajectory':
            kind = JointTrajectory
        self._commands = support.Polled(self, kind, robot.controller.topic, support.COMMAND)
        self._joint_states = self.create_publisher(
            JointState, robot.joint_states_topic, support.STREAM
        )
        self._target_pose = self.create_publisher(PoseStamped, support.TARGET_POSE, support.STREAM)
        self._state = None
        if self._given.publish_state:
            self._state = self.create_publisher(Float64MultiArray, '~/state', support.STREAM)
        self._joint_state = JointState(name=list(robot.driver_joints))
        self._joint_state.header.frame_id = robot.driver_frame
        self._pose = PoseStamped()
        self._pose.header.frame_id = robot.driver_frame

    def _work(self, stop: threading.Event) -> None:
        """Step at the rate of the driver's joint states; tell once a second how real time is."""
        period_s = 1.0 / self._task.robot.joint_states_rate_hz
        last = reported = None
        simulated = 0.0
        for now in support.every(period_s, stop):
            if last is not None:
                elapsed = min(now - last, CATCH_UP_S)
                simulated += elapsed
                with self._lock:
                    self._step(elapsed)
            last, reported = now, now if reported is None else reported
            if now - reported >= 1.0:
                self._report(simulated / (now - reported))
                reported, simulated = now, 0.0

    def _step(self, elapsed: float) -> None:
        message = self._commands.newest()
        if message is not None and self._accepting:
            try:
                self._command(message)
            except ContractMismatch as error:
                self.get_logger().error(str(error), throttle_duration_sec=1.0)
        self._twin.set_command(self._driver.advance(elapsed))
        self._twin.advance(elapsed)
        self._publish(elapsed)

    def _command(self, message: Float64MultiArray | JointTrajectory) -> None:
        """Give a command to the driver. Raises ContractMismatch."""
        if isinstance(message, Float64MultiArray):
            self._driver.command(message.data)
            return
        joints, points = list(self._task.robot.driver_joints), message.points
        if message.joint_names != joints or len(points) != 1:
            raise ContractMismatch(
                f'{len(points)} points for {message.joint_names}; right is one for {joints}'
            )
        (point,) = points
        self._driver.command(point.positions, support.seconds(point.time_from_start))

    def _publish(self, elapsed: float) -> None:
        stamp = self.get_clock().now().to_msg()
        self._joint_state.header.stamp = stamp
        self._joint_state.position = support.doubles(self._twin.joint_position)
        self._joint_state.velocity = support.doubles(self._twin.joint_velocity)
        self._joint_states.publish(self._joint_state)
        self._until_target -= elapsed
        if self._until_target < 1e-6:
            self._until_target += 1.0 / self._given.target_rate_hz
            self._publish_target(stamp)
        self._until_state -= elapsed
        if self._state is not None and self._until_state < 1e-6:
            self._until_state += 1.0 / self._given.state_rate_hz
            self._state.publish(Float64MultiArray(data=support.doubles(self._twin.state)))

    def _publish_target(self, stamp: Time) -> None:
        pose = self._pose.pose
        pose.position.x, pose.position.y, pose.position.z = self._twin.target_position.tolist()
        x, y, z, w = wxyz_to_xyzw(self._twin.target_orientation).tolist()
        pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w = x, y, z, w
        self._pose.header.stamp = stamp
        self._target_pose.publish(self._pose)

    def _place(self, seed: int) -> None:
        """Put arm and target where the episode of `seed` begins, and say so at once."""
        self._driver.reset(self._twin.reset(seed).joint_position)
        self._until_target = self._until_state = 0.0
        self._publish(0.0)

    def _on_session(self, info: SessionInfo) -> None:
        if info.robot and info.robot != self._task.robot.name:
            self._participant.report(
                'error', f'simulates {self._task.robot.name}, not {info.robot}'
            )
            return
        with self._lock:
            if info.state == 'prepare':
                self._accepting = False
                if info.seed is not None:
                    self._place(info.seed)
            elif not self._accepting:
                self._commands.newest()  # what came before is for the former pose
                self._accepting = True
            if info.state == 'running':
                self._until_target = 0.0  # nobody shall wait for the target
        if info.state == 'prepare':
            self._participant.report('ready')

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._lock:
            self._place(self._given.seed)
        response.success, response.message = True, f'seed {self._given.seed}'
        return response

    def _report(self, real_time_factor: float) -> None:
        slow = real_time_factor < 0.95
        self._diagnostics.publish(
            DiagnosticStatus.WARN if slow else DiagnosticStatus.OK,
            f'real-time factor {real_time_factor:.3f}',
            {
                'real_time_factor': round(real_time_factor, 4),
                'time_s': round(self._twin.time, 3),
                'tracking_error_rad': float(
                    np.abs(self._twin.command - self._twin.joint_position).max().round(4)
                ),
            },
        )
