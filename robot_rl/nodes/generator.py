"""generator: what bench record records, sent from a process of its own as fast as it is to be.

Messages are made once and sent as bytes, with the time of their sending as stamp: what they cost
is what rclpy and DDS take.
"""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np
import pydantic
from geometry_msgs.msg import PoseStamped
from rclpy.publisher import Publisher
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import Float64MultiArray

from robot_rl.control.session import SessionInfo
from robot_rl.nodes import support
from robot_rl.specs import RobotSpec, Spec

# Where the stamp stands in a serialised message that begins with a header (CDR).
_STAMP = 4
# Different pictures, which take turns: as many as keep what is written from repeating itself.
_PICTURES = 32
# So many at the most: the publishers keep fifty until they are acknowledged.
_AT_ONCE = 20
# What is on its way when all are sent comes before the episode ends [s].
_REST_S = 1.0


class Parameters(Spec):
    """The ROS parameters of generator."""

    robot: str = pydantic.Field('ur5e', description='robot in config/robots or a YAML file')
    role: Literal['arm', 'camera'] = pydantic.Field('arm', description='what it stands for')
    camera: str = pydantic.Field('', description='the camera of the robot')
    seconds: pydantic.PositiveFloat = pydantic.Field(
        60.0, le=86_400, description='how long it sends [s]'
    )


class Generator(support.WorkingNode):
    """Sends while an episode runs, says that it is done, and prints {"sent": {topic: number}}.

    The arm: joint states, commands as the guard tells them, and commands as the arm hears them, at
    the rate of its controller. A camera: JPEGs of its size at its rate.
    """

    def __init__(self) -> None:
        super().__init__('generator')
        support.declare_parameters(self, Parameters)
        self._given = support.read_parameters(self, Parameters)
        self._robot = RobotSpec.load(self._given.robot)
        self._send, self._rate_hz = getattr(self, f'_be_{self._given.role}')()
        self._sent: dict[str, int] = {}
        self._runs = threading.Event()
        self._participant = support.Participant(self, self._on_session)

    def close(self) -> None:
        """Say what was sent."""
        super().close()
        print(json.dumps({'sent': self._sent}), flush=True)

    def _on_session(self, info: SessionInfo) -> None:
        if info.state == 'prepare':
            self._participant.report('ready')
        if info.state == 'running':
            self._runs.set()

    def _work(self, stop: threading.Event) -> None:
        while not self._runs.wait(0.01):
            if stop.is_set():
                return
        began, sent, seconds = time.monotonic(), 0, self._given.seconds
        total = round(seconds * self._rate_hz)
        for now in support.every(1.0 / self._rate_hz, stop):
            due = round(min(now - began, seconds) * self._rate_hz)
            for _ in range(min(due - sent, _AT_ONCE)):  # after a pause it makes up for it
                self._send(sent)
                sent += 1
            if sent == total or now - began > seconds + _REST_S / 2:
                break
        stop.wait(_REST_S)
        self._participant.report('done')

    def _be_arm(self) -> tuple[Callable[[int], None], float]:
        robot, zeros = self._robot, [0.0] * len(self._robot.joints)
        self.create_publisher(PoseStamped, support.TARGET_POSE, support.STREAM)  # the task has one
        joints = list(robot.driver_joints)
        state = JointState(name=joints, position=zeros, velocity=zeros)
        applied = support.trajectory(robot.joints, robot.controller.period_s)
        applied.points[0].positions = applied.points[0].velocities = zeros
        applied.header.frame_id = 'teleop'
        command = Float64MultiArray(data=zeros)
        topics = robot.joint_states_topic, support.APPLIED, robot.controller.topic
        publishers, messages = [], []
        for message, topic in zip((state, applied, command), topics, strict=True):
            publishers.append(self.create_publisher(type(message), topic, support.STREAM))
            messages.append(bytearray(serialize_message(message)))

        def send(_: int) -> None:
            for publisher, message in zip(publishers, messages, strict=True):
                self._publish(publisher, message, publisher.msg_type is not Float64MultiArray)

        return send, robot.controller.rate_hz

    def _be_camera(self) -> tuple[Callable[[int], None], float]:
        camera = self._robot.camera(self._given.camera)
        publisher = self.create_publisher(CompressedImage, camera.compressed_topic, support.STREAM)
        messages = [
            bytearray(serialize_message(CompressedImage(format='jpeg', data=picture)))
            for picture in pictures(camera.height, camera.width, camera.name)
        ]
        return lambda number: self._publish(
            publisher, messages[number % _PICTURES]
        ), camera.rate_hz

    def _publish(self, publisher: Publisher, message: bytearray, stamped: bool = True) -> None:
        if stamped:
            struct.pack_into('<iI', message, _STAMP, *divmod(time.time_ns(), 10**9))
        publisher.publish(bytes(message))
        self._sent[publisher.topic_name] = self._sent.get(publisher.topic_name, 0) + 1


def pictures(height: int, width: int, camera: str) -> list[bytes]:
    """Return JPEGs with about as much in them as a camera's: some 90 kB at 640 x 480."""
    rng, found = np.random.default_rng(list(camera.encode())), []
    for _ in range(_PICTURES):
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
        picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        found.append(cv2.imencode('.jpg', picture)[1].tobytes())
    return found
