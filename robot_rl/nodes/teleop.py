"""teleop: a person commands the arm, through the guard, by one of several devices.

Nothing is published while the dead-man switch of the device is not held: the guard then brings
the arm to rest. See robot_rl.control.jog for what becomes of a wish.
"""

from __future__ import annotations

import importlib
import threading
import time
from typing import Any, Protocol

import numpy as np
import pydantic
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Empty, Float64MultiArray, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from robot_rl.control.jog import Jog, JogConfig, Target, Wish
from robot_rl.errors import UnknownName
from robot_rl.nodes import support
from robot_rl.nodes.page_helm import PageConfig
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.specs import RobotSpec

SOURCE_NAME = 'teleop'
# Where each device is; it is called with the node, its robot and its Parameters.
DEVICES = {
    'keyboard': 'robot_rl.nodes.teleop_keyboard:Keyboard',
    'joy': 'robot_rl.nodes.teleop_joy:Joystick',
    'twist': 'robot_rl.nodes.teleop_twist:Twister',
    'leader': 'robot_rl.nodes.teleop_leader:Leader',
    'page': 'robot_rl.nodes.teleop_page:Page',
}
# What a device may ask for, and the service that does it. An emergency stop is a topic: nobody
# has to be found first.
CALLS = {
    name: f'session/{name}'
    for name in ('start', 'stop', 'success', 'failure', 'discard', 'rerecord')
} | {'estop_reset': 'command_guard/estop_reset'}
# Older words of the guard and of the arm do not tell where the arm is [s].
KNOWN_FOR_S = 0.2
# A guard that listens follows what is asked within this time [s].
FOLLOWED_WITHIN_S = 0.3
REFUSED = 'the guard does not follow; let go, and hold again'


class Parameters(JogConfig, PageConfig):
    """The ROS parameters of teleop: those of jog and page, and which device leads which arm."""

    robot: str = pydantic.Field(
        'ur5e', description='robot in config/robots or a YAML file; @<tf_prefix> may follow'
    )
    device: str = pydantic.Field('keyboard', description=f'one of {", ".join(DEVICES)}')
    rate_hz: float = pydantic.Field(
        50.0, ge=25.0, le=200.0, description='how often the arm is told where to go [Hz]'
    )
    stale_s: pydantic.PositiveFloat = pydantic.Field(
        0.25, le=1.0, description='a device that is silent for longer is not held any more [s]'
    )
    terminal: str = pydantic.Field(
        '/dev/tty', description='keyboard: the terminal whose keys are read'
    )
    mapping: str = pydantic.Field(
        'gamepad', description='joy: mapping in config/teleop, or a YAML file'
    )
    joy_topic: str = pydantic.Field('joy', description='joy: topic of sensor_msgs/Joy')
    twist_topic: str = pydantic.Field('teleop/twist', description='twist: topic of the twists')
    twist_stamped: bool = pydantic.Field(
        False, description='twist: geometry_msgs/TwistStamped, not Twist'
    )
    leader_topic: str = pydantic.Field(
        'leader/joint_states', description="leader: topic of the leader's joint states"
    )
    leader_joints: tuple[str, ...] = pydantic.Field(
        (), description="leader: its joints, in the order of the robot's; empty: named as these"
    )
    leader_gripper: str = pydantic.Field(
        '', description="leader: the joint of its gripper; empty: named as the robot's"
    )
    leader_gripper_range: tuple[float, ...] = pydantic.Field(
        (),
        description='leader: where that joint stands when closed and when open; empty: where the '
        "robot's does",
    )
    switch_topic: str = pydantic.Field(
        'leader/enabled',
        description='leader: topic of the dead-man switch, std_msgs/Bool, said again while it is '
        'held; empty: a leader that can be heard leads',
    )


class Device(Protocol):
    """What a person leads the arm with. All is called by one thread."""

    def wish(self, now: float) -> Wish:
        """Return what is asked of the arm at the steady time `now` [s].

        A device that is silent is one that is not held.
        """

    def calls(self) -> list[str]:
        """Return what was asked for since the last call: names in CALLS, or 'estop'."""

    def close(self) -> None:
        """Give back what it holds."""


class Teleop(support.WorkingNode):
    """Publishes on teleop/command and teleop/gripper from a thread that does nothing else."""

    def __init__(self) -> None:
        super().__init__('teleop')
        support.declare_parameters(self, Parameters, changeable=('speed_scale',))
        given = support.read_parameters(self, Parameters)
        if given.device not in DEVICES:
            raise UnknownName('device', given.device, DEVICES)
        self._robot = RobotSpec.load(given.robot)
        self._name, self._period_s = given.device, 1 / given.rate_hz
        self._jog = Jog(self._robot, KinematicChain.from_spec(self._robot), given)
        self.add_post_set_parameters_callback(self._on_parameters)
        self._here = Whereabouts(self, self._robot)
        self._create_topics()
        module, name = DEVICES[given.device].split(':')
        self._device: Device = getattr(importlib.import_module(module), name)(
            self, self._robot, given
        )
        self._source = ''  # as the guard says
        reader = support.LATCHED_READER
        self.create_subscription(String, support.SOURCE, self._on_source, reader)
        self._asks = self._refused = False
        self._followed_at = 0.0
        self._held = self._was_held = False  # now, and since the last report
        self._diagnostics = support.Diagnostics(self, self._robot.name)
        self._diagnostics.repeat(self._report)

    def close(self) -> None:
        """Command nothing more, and give the device back."""
        super().close()
        self._device.close()

    def _create_topics(self) -> None:
        self._message = support.trajectory(self._robot.joints, 2 * self._period_s)
        self._publisher = self.create_publisher(
            JointTrajectory, support.command_topic(SOURCE_NAME), support.COMMAND
        )
        self._gripper = None
        if self._robot.gripper:
            self._gripper = self.create_publisher(
                Float64MultiArray, support.gripper_topic(SOURCE_NAME), support.COMMAND
            )
        self._estop = self.create_publisher(Empty, support.ESTOP, support.COMMAND)
        self._callers = {
            name: self.create_client(Trigger, service) for name, service in CALLS.items()
        }

    def _on_parameters(self, changes: list[Parameter]) -> None:
        for change in changes:
            if change.name == 'speed_scale':
                self._jog.config = self._jog.config.replace(speed_scale=change.value)

    def _work(self, stop: threading.Event) -> None:
        for now in support.every(self._period_s, stop):
            self._here.look(now)
            wish = self._heeded(self._device.wish(now), now)
            target = self._jog.tick(now, wish, self._here.command(now), self._here.width)
            self._publish(target)
            self._held = wish.enabled
            self._was_held |= wish.enabled
            if self._jog.waits:
                self.get_logger().warning(self._jog.waits, throttle_duration_sec=2.0)
            for call in self._device.calls():
                self._call(call)

    def _heeded(self, wish: Wish, now: float) -> Wish:
        """Return the wish, or none where the guard has refused it and it is still held.

        After an emergency stop, or when another episode begins, nothing moves by what was held.
        """
        if not wish.enabled:
            self._refused = False
        if not (wish.enabled and self._asks) or self._source == SOURCE_NAME:
            self._followed_at = now
        elif now - self._followed_at > FOLLOWED_WITHIN_S and not self._refused:
            self._refused = True
            self.get_logger().warning(REFUSED)
        return Wish() if self._refused else wish

    def _on_source(self, message: String) -> None:
        self._source = message.data

    def _publish(self, target: Target) -> None:
        self._asks = target.positions is not None
        if self._asks:
            self._message.header.stamp = self.get_clock().now().to_msg()
            self._message.points[0].positions = support.doubles(target.positions)
            self._publisher.publish(self._message)
        if target.width is not None:
            self._gripper.publish(Float64MultiArray(data=[target.width]))

    def _call(self, call: str) -> None:
        if call == 'estop':
            self._estop.publish(Empty())
            self.get_logger().warning('the emergency stop was called')
            return
        client = self._callers[call]
        if not client.service_is_ready():
            self.get_logger().error(f'{call}: nobody offers {client.srv_name}')
            return
        client.call_async(Trigger.Request()).add_done_callback(
            lambda future: self._on_answer(call, future.result())
        )

    def _on_answer(self, call: str, answer: Trigger.Response) -> None:
        words = f'{call}: {answer.message}'
        if answer.success:  # a line each: rclpy's logger keeps the severity of a place
            self.get_logger().info(words)
        else:
            self.get_logger().error(words)

    def _report(self) -> None:
        """Once a second: whether the device is held, and what keeps it from leading."""
        waits, known = self._jog.waits, self._here.command(time.monotonic()) is not None
        words = 'held' if self._held else 'not held'
        level = DiagnosticStatus.OK
        if not known:
            level, words = DiagnosticStatus.WARN, 'it is not known where the arm is'
        elif waits or self._refused:
            level, words = DiagnosticStatus.WARN, waits or REFUSED
        was_held, self._was_held = self._was_held, self._held
        values = {'device': self._name, 'held': was_held}
        self._diagnostics.publish(
            level, words, values | {'speed_scale': self._jog.config.speed_scale}
        )


class Whereabouts:
    """Where the arm's command is, or where the arm is measured while nothing commands it."""

    def __init__(self, node: Node, robot: RobotSpec):
        self._robot = robot
        self._states = support.JointStates(node, robot)
        self._applied = support.Polled(node, JointTrajectory, support.APPLIED, support.SENSOR)
        self._told = None
        if robot.gripper:
            self._told = support.Polled(
                node, Float64MultiArray, robot.gripper.topic, support.SENSOR
            )
        nowhere = -float('inf'), np.zeros(len(robot.joints))
        self._commanded, self._measured = nowhere, nowhere
        # How far the gripper was told to be open or, before, is [m]; None: unknown.
        self.width: float | None = None
        self._was_told = False

    def look(self, now: float) -> None:
        """Hear what has come until the steady time `now` [s]."""
        if (applied := self._applied.newest()) is not None:
            self._commanded = now, np.array(applied.points[0].positions)
        if (state := self._states.newest()) is not None:
            self._measure(now, state)
        if self._told and (told := self._told.newest()) is not None and len(told.data) == 1:
            self.width = self._robot.gripper.commanded_width(told.data[0])
            self._was_told = True

    def command(self, now: float) -> np.ndarray | None:
        """Return where the arm has been commanded to or, without that, is [n]; None: unknown."""
        for at, positions in (self._commanded, self._measured):
            if now - at < KNOWN_FOR_S:
                return positions
        return None

    def _measure(self, now: float, state: JointState) -> None:
        by_name: dict[str, Any] = dict(zip(state.name, state.position, strict=False))
        positions = [by_name.get(name) for name in self._robot.driver_joints]
        if None not in positions and np.isfinite(positions).all():
            self._measured = now, np.array(positions)
        gripper = self._robot.gripper
        if gripper and not self._was_told:
            position = by_name.get(self._robot.driver_gripper)
            self.width = None if position is None else float(gripper.width(position))
