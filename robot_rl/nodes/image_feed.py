"""image_feed: decodes the cameras' pictures and hands the newest ones over to the policy."""

from __future__ import annotations

import threading
import time

import cv2
import numpy as np
import pydantic
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from robot_rl.control.session import SessionInfo
from robot_rl.control.shared_frame import FrameWriter
from robot_rl.errors import ContractMismatch, RobotRLError
from robot_rl.images import as_jpeg, decoded, unpacked
from robot_rl.nodes import support
from robot_rl.nodes.main import End
from robot_rl.nodes.streams import PICTURES, camera_path
from robot_rl.specs import Contract, ObservationField, RobotSpec, Spec


class Parameters(Spec):
    """The ROS parameters of image_feed."""

    robot: str = pydantic.Field(
        'ur5e',
        description='robot in config/robots or a YAML file, whose cameras have topics; '
        '@<tf_prefix> may follow',
    )


class Feed:
    """One camera: hears its pictures, and hands each over in the size that the policy sees."""

    def __init__(self, node: Node, robot: RobotSpec, field: ObservationField):
        self.topic = node.resolve_topic_name(robot.topic(field))
        self.refusal = ''  # why the newest picture was none
        self.age_s = 0.0  # of the newest picture when it was handed over
        self._node, self._field = node, field
        self._any, self._count, self._seconds = False, 0, 0.0
        self._writer = FrameWriter(camera_path(node, field.stream), *field.shape[:2])
        self._lock = threading.Lock()  # close() may come from another thread
        self._subscription = node.create_subscription(
            PICTURES[field.encoding], self.topic, self._take, support.SENSOR
        )

    def serves(self, field: ObservationField) -> bool:
        """Tell whether another contract's field gets the same pictures."""
        return all(
            getattr(field, part) == getattr(self._field, part)
            for part in ('encoding', 'shape', 'lossless')
        )

    def missing(self) -> str:
        """Say what is wrong where no picture has been handed over yet."""
        if self._any:
            return ''
        return self.refusal or f'{self.topic}: no picture has come'

    def taken(self) -> tuple[int, float]:
        """Return how many pictures have been handed over since the last call, and the work [s]."""
        taken = self._count, self._seconds
        self._count, self._seconds = 0, 0.0
        return taken

    def close(self) -> None:
        """Unsubscribe, and take the picture away."""
        self._node.destroy_subscription(self._subscription)
        with self._lock:
            self._writer.close()

    def _take(self, message: CompressedImage | Image) -> None:
        start = time.perf_counter()
        try:
            picture = self._decode(message)
        except ContractMismatch as error:
            self.refusal = f'{self.topic}: {error}'
            self._node.get_logger().error(self.refusal, throttle_duration_sec=1.0)
            return
        stamp = message.header.stamp
        with self._lock:
            if self._writer.closed:
                return
            self._writer.write(support.nanoseconds(stamp), picture)
        self.refusal, self._any = '', True
        self.age_s = self._node.get_clock().now().nanoseconds * 1e-9 - support.seconds(stamp)
        self._count += 1
        self._seconds += time.perf_counter() - start

    def _decode(self, message: CompressedImage | Image) -> np.ndarray:
        shape = self._field.shape
        if isinstance(message, CompressedImage):
            return decoded(message.data, shape)
        size = message.height, message.width
        picture = unpacked(message.data, message.encoding, size, message.step, shape)
        # What columns keep of it is what a policy learns from: that is what it sees here.
        return picture if self._field.lossless else decoded(as_jpeg(picture), shape)


class ImageFeed(Node):
    """Serves the contract of the episode that is prepared, and is ready with a picture of each.

    Decoding a picture takes longer than many a control tick: it is kept out of the policy's
    process.
    """

    def __init__(self) -> None:
        super().__init__('image_feed')
        support.declare_parameters(self, Parameters)
        self._robot = RobotSpec.load(support.read_parameters(self, Parameters).robot)
        cv2.setNumThreads(1)
        self._feeds: dict[str, Feed] = {}
        self._episode = ''
        self._said: str | None = ''  # what the episode waits for, as told; '': nothing
        self._participant = support.Participant(self, self._on_session)
        self._diagnostics = support.Diagnostics(self, self._robot.name)
        self.create_timer(0.05, self._answer)
        self._diagnostics.repeat(self._report)

    def start(self, end: End) -> None:
        """Begin: all is done in callbacks."""

    def close(self) -> None:
        """Take all pictures away."""
        for feed in self._feeds.values():
            feed.close()

    def _on_session(self, info: SessionInfo) -> None:
        if info.state != 'prepare' or info.episode == self._episode:
            return
        self._episode, self._said = info.episode, None
        try:
            fields = Contract.parse(info.contract).observation if info.contract else ()
            self._serve({field.stream: field for field in fields if field.kind == 'image'})
        except RobotRLError as error:
            self._said = ''
            self._participant.report('error', str(error))

    def _serve(self, fields: dict[str, ObservationField]) -> None:
        """Feed these cameras, and no others; those that go on as they are have no gap."""
        for camera, feed in list(self._feeds.items()):
            if camera not in fields or not feed.serves(fields[camera]):
                self._feeds.pop(camera).close()
        for camera, field in fields.items():
            if camera not in self._feeds:
                self._feeds[camera] = Feed(self, self._robot, field)

    def _answer(self) -> None:
        """Say what the episode that is prepared waits for, until it waits for nothing."""
        if self._said == '':
            return
        missing = '; '.join(filter(None, (feed.missing() for feed in self._feeds.values())))
        if not missing:
            self._participant.report('ready', ', '.join(f.topic for f in self._feeds.values()))
        elif missing != self._said:
            self._participant.report('preparing', missing)
        self._said = missing

    def _report(self) -> None:
        """Say how many pictures come, how old they are and how long they take."""
        problems, values = [], {}
        for camera, feed in self._feeds.items():
            count, seconds = feed.taken()
            values |= {
                f'{camera}.rate_hz': count,
                f'{camera}.age_ms': round(feed.age_s * 1e3, 1),
                f'{camera}.work_ms': round(seconds / max(count, 1) * 1e3, 2),
            }
            if not count:
                problems.append(feed.refusal or f'{feed.topic}: no picture for a second')
        level = DiagnosticStatus.WARN if problems else DiagnosticStatus.OK
        words = '; '.join(problems) or f'{len(self._feeds)} cameras'
        self._diagnostics.publish(level, words, values)
