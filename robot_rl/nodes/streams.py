"""What an observation is made of, on its way from ROS messages and shared pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState

from robot_rl.control.clocks import until_prepared
from robot_rl.control.observation import ObservationAssembler
from robot_rl.control.shared_frame import FrameReader, frame_path
from robot_rl.errors import ContractMismatch, RobotRLError
from robot_rl.nodes import support
from robot_rl.nodes.wiring import type_name
from robot_rl.robots.quaternions import xyzw_to_wxyz
from robot_rl.specs import ObservationField, RobotSpec

_MESSAGES = {'joints': JointState, 'pose': PoseStamped}
PICTURES = {'rgb8': Image, 'jpeg': CompressedImage}


class Streams:
    """Takes the newest samples of every stream that a contract reads when a tick wants them.

    Joint states, poses and goals are messages; pictures have been decoded by image_feed, and are
    read from shared memory.
    """

    def __init__(self, node: Node, observations: ObservationAssembler):
        self._node, self._observations = node, observations
        self._robot = observations.robot
        self._fields = {f.stream: f for f in observations.contract.observation if f.kind}
        self._goals = {stream for stream, field in self._fields.items() if field.is_set}
        self._joint_states = support.JointStates(node, self._robot)
        self._messages, self._frames = {}, {}
        for stream, field in self._fields.items():
            if field.kind == 'image':
                path = camera_path(node, stream)
                self._frames[stream] = FrameReader(path, *field.shape[:2])
            elif stream != 'joint_states':
                qos = support.LATCHED_READER if field.is_set else support.SENSOR
                kind, topic = message_of(field), self._robot.topic(field)
                self._messages[stream] = support.Polled(node, kind, topic, qos)
        self.stamp = Time()  # of the newest joint states
        self._came_ns = 0  # when they did, since the epoch
        self._refusals: dict[str, str] = {}  # why a stream's newest message was no sample

    def close(self) -> None:
        """Unsubscribe."""
        for subscription in (self._joint_states, *self._messages.values()):
            subscription.destroy(self._node)
        for frames in self._frames.values():
            frames.close()

    def poll(self) -> None:
        """Take the newest samples of every stream, or note why they are refused."""
        for message, about in self._joint_states.drain():
            if self._take('joint_states', message):
                self.stamp, self._came_ns = message.header.stamp, about['received_timestamp']
        for stream, subscription in self._messages.items():
            if (message := subscription.newest()) is not None:
                self._take(stream, message)
        for stream, frames in self._frames.items():
            if (frame := frames.newest()) is not None:
                self._observations.put(stream, frame.stamp_ns * 1e-9, {'image': frame.pixels})

    def until_prepared(self, takes_s: float) -> float:
        """Return how long to wait for a moment to tick, as the joint states come [s].

        To prepare a tick takes `takes_s`.

        DDS tells by the wall clock when they came: should that jump, only the phase is another.
        """
        since_s = (time.time_ns() - self._came_ns) * 1e-9
        return until_prepared(since_s, 1.0 / self._robot.joint_states_rate_hz, takes_s)

    def forget(self) -> None:
        """Drop what waits and what is known, but goals that are set, and why they are refused."""
        self.poll()
        self._observations.reset()
        # A goal is sent once: what was wrong with the newest is not said again.
        self._refusals = {s: why for s, why in self._refusals.items() if s in self._goals}

    def refusals(self) -> list[str]:
        """Say why the newest messages were no samples."""
        return list(self._refusals.values())

    def missing(self, now_s: float) -> list[str]:
        """Take what has come; say what keeps an observation from being made."""
        self.poll()
        return [*self.refusals(), *self._observations.missing(now_s)]

    def reasons(self) -> list[str]:
        """Say what the ROS graph tells of the streams that have not come, and what is right."""
        absent = self._observations.absent()
        return [self._reason(stream) for stream in absent if stream not in self._refusals]

    def _take(self, stream: str, message: Any) -> bool:
        stamp_s = support.seconds(message.header.stamp)
        try:
            if isinstance(message, JointState):
                values = {'position': message.position, 'velocity': message.velocity}
                self._observations.put(stream, stamp_s, values, message.name)
            else:
                if wrong := wrong_frame(message, self._robot):
                    raise ContractMismatch(f'{stream}: {wrong}')
                self._observations.put(stream, stamp_s, _pose(message.pose))
        except RobotRLError as error:
            self._refusals[stream] = str(error)
            if stream in self._goals:
                # Who sets another goal does not want the former one.
                self._observations.withdraw(stream)
            self._node.get_logger().error(str(error), throttle_duration_sec=1.0)
            return False
        self._refusals.pop(stream, None)
        return True

    def _reason(self, stream: str) -> str:
        topic, right, field = self._robot.joint_states_topic, type_name(JointState), None
        if stream in self._fields:
            field = self._fields[stream]
            topic = self._robot.topic(field)
            right = type_name(message_of(field))
        topic = self._node.resolve_topic_name(topic)
        offers = self._node.get_publishers_info_by_topic(topic)
        if not offers:
            return f'nobody publishes {topic} ({right})'
        if wrong := {offer.topic_type for offer in offers} - {right}:
            return f'{topic} is {", ".join(sorted(wrong))}, right is {right}'
        durabilities = {offer.qos_profile.durability for offer in offers}
        if field and field.is_set and DurabilityPolicy.TRANSIENT_LOCAL not in durabilities:
            return f'{topic} is streamed; a goal is set: right is transient_local, reliable'
        if stream in self._frames:
            runs = self._node.count_publishers('image_feed/status')
            knows = 'knows more' if runs else 'does not run'
            return f'{topic} is there: the node image_feed, which hands it over, {knows}'
        if stream == 'joint_states' and (found := self._joint_states.others):
            joints = list(self._robot.driver_joints)
            return f'{topic}: joints {joints} are missing; found {found}'
        return f'{topic} has a publisher, but nothing comes'


def message_of(field: ObservationField) -> type:
    """Return the type of the messages that bring the stream of an observation field."""
    return _MESSAGES.get(field.kind) or PICTURES[field.encoding]


def wrong_frame(message: PoseStamped, robot: RobotSpec) -> str:
    """Say why a pose is not in the frame of the arm's base; '': it is, or tells of no frame."""
    frame = message.header.frame_id
    if frame in ('', robot.driver_frame):
        return ''
    return (
        f'is in frame {frame!r}, right is {robot.driver_frame!r}, the base of {robot.name}: '
        'nothing here transforms it'
    )


def camera_path(node: Node, camera: str) -> Path:
    """Return where image_feed and policy of one namespace and ROS domain meet."""
    return frame_path(node.context.get_domain_id(), node.get_namespace(), camera)


def _pose(pose: Any) -> dict[str, Any]:
    position, orientation = pose.position, pose.orientation
    return {
        'position': [position.x, position.y, position.z],
        'orientation': xyzw_to_wxyz([orientation.x, orientation.y, orientation.z, orientation.w]),
    }
