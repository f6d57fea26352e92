"""The device `page` of teleop: a web page for a mouse, a touch screen or a phone."""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import Any

import cv2
from rcl_interfaces.msg import Log
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Bool, String

from robot_rl.control.jog import Wish
from robot_rl.control.session import SessionInfo
from robot_rl.errors import ContractMismatch, SpecError
from robot_rl.images import unpacked
from robot_rl.nodes import support, wiring
from robot_rl.nodes.page_helm import Helm
from robot_rl.nodes.page_server import PageServer, Pictures
from robot_rl.specs import RobotSpec, Spec

# How often the page learns what the arm does, and who is in the graph [s].
_TELL_EVERY_S, _LOOK_EVERY_S = 0.05, 1.0
# Joint states that are older are not shown [s].
_STALE_S = 1.0
# Pictures that nobody has compressed yet are not taken more often [s].
_COMPRESS_EVERY_S = 0.1
# What pages show of the session.
_SHOWN = {'state', 'index', 'result'}
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 80]


class Page:
    """Serves the page, and is a Device; it prints the page's address in one line.

    Raises RobotRLError where a package is missing or the address is not to be had.
    """

    def __init__(self, node: Node, robot: RobotSpec, given: Spec):
        self._node, self._robot = node, robot
        self._helm, pictures = Helm(len(robot.joints), given.stale_s), Pictures()
        self._cameras = Cameras(node, pictures)
        self._joint_states = support.JointStates(node, robot)
        self._measured: tuple[float, dict[str, float]] = -float('inf'), {}
        self._source, self._stopped, self._guarded = '', False, False
        self._session: SessionInfo | None = None  # nobody runs episodes
        self._results: dict[str, str] = {}  # of ended episodes
        self._warnings, self._warning = 0, ''  # how many, and the last
        reader = support.LATCHED_READER
        node.create_subscription(String, support.SOURCE, self._on_source, reader)
        node.create_subscription(Bool, 'command_guard/estop_active', self._on_estop, reader)
        node.create_subscription(String, support.SESSION_STATE, self._on_session, reader)
        node.create_subscription(Log, '/rosout', self._on_log, 10)
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        node.create_timer(_TELL_EVERY_S, self._tell, clock=clock)
        node.create_timer(_LOOK_EVERY_S, self._look, clock=clock)
        self._tell()  # before the first page asks
        self._server = PageServer(self._helm, pictures, _about(robot), given)
        self.url = self._server.url
        print(f'page: {self.url}', flush=True)
        node.get_logger().info(f'page: {self.url}')  # for the screen of a recording

    def wish(self, now: float) -> Wish:
        """Return what the page in control asks of the arm at steady time `now` [s]."""
        return self._helm.wish(now)

    def calls(self) -> list[str]:
        """Return what was asked for since the last call."""
        return self._helm.calls()

    def close(self) -> None:
        """Close all pages."""
        self._server.close()

    def _on_source(self, message: String) -> None:
        self._source = message.data

    def _on_estop(self, message: Bool) -> None:
        self._stopped = message.data

    def _on_session(self, message: String) -> None:
        try:
            info = SessionInfo.from_json(message.data, origin=support.SESSION_STATE)
        except SpecError as error:
            self._node.get_logger().error(str(error))
            return
        self._results.pop(info.instead_of, None)  # it is recorded again
        if info.result:
            self._results[info.episode] = info.result
        self._session = info

    def _on_log(self, message: Log) -> None:
        """Take what a node of this arm warns of: why a call or a command is refused, say."""
        if message.level >= Log.WARN and (name := support.speaker(self._node, message)):
            self._warnings += 1
            self._warning = f'{name}: {message.msg}'

    def _look(self) -> None:
        """See who is there: a latched topic outlives nobody, but its last word does."""
        self._guarded = self._node.count_publishers(support.SOURCE) > 0
        if not self._node.count_publishers(support.SESSION_STATE):
            self._session = None
        self._cameras.look()

    def _tell(self) -> None:
        """Let the pages know how things are, and hear the cameras that they show."""
        now = time.monotonic()
        if (message := self._joint_states.newest()) is not None:
            self._measured = now, dict(zip(message.name, message.position, strict=False))
        at, by_name = self._measured
        positions = [by_name.get(name, math.nan) for name in self._robot.driver_joints]
        known = now - at < _STALE_S and all(map(math.isfinite, positions))
        news: dict[str, Any] = {
            'joints': positions if known else None,
            'width': self._width(by_name) if known else None,
            'guard': self._source if self._guarded else '',
            'estop': self._stopped and self._guarded,
            'session': self._session and self._session.model_dump(include=_SHOWN),
            'counts': Counter(self._results.values()),
            'cameras': self._cameras.names,
            'warning': {'number': self._warnings, 'line': self._warning},
        }
        self._helm.tell(news)
        self._cameras.hear()

    def _width(self, by_name: dict[str, float]) -> float | None:
        """Return how far the gripper is open [m], where its joint is measured."""
        gripper = self._robot.gripper
        if not gripper:
            return None
        width = float(gripper.width(by_name.get(self._robot.driver_gripper, math.nan)))
        return width if math.isfinite(width) else None


class Cameras:
    """Hears the cameras that pages show: whoever publishes pictures in the node's namespace.

    Pictures that nobody looks at are not asked for: the twin's would be drawn for nothing.
    """

    def __init__(self, node: Node, pictures: Pictures):
        self._node, self._pictures = node, pictures
        self._topics: dict[str, tuple[str, type]] = {}  # of each camera that is there
        self._heard: dict[str, Any] = {}  # subscriptions, by camera
        self._compressed_at: dict[str, float] = {}

    @property
    def names(self) -> list[str]:
        """The cameras that are there, sorted."""
        return sorted(self._topics)

    def look(self) -> None:
        """See which cameras are there; of one that publishes both ways, the compressed one."""
        space = self._node.get_namespace().rstrip('/') + '/'
        found: dict[str, tuple[str, type]] = {}
        for kind in (Image, CompressedImage):
            for topic, types in self._node.get_topic_names_and_types():
                if (
                    wiring.type_name(kind) in types
                    and topic.startswith(space)
                    and not topic.endswith('compressedDepth')
                    and self._node.count_publishers(topic)
                ):
                    found[_camera_name(topic.removeprefix(space))] = topic, kind
        self._topics = found

    def hear(self) -> None:
        """Subscribe to what is looked at, and to nothing else."""
        watched = self._pictures.watched() & self._topics.keys()
        for camera in self._heard.keys() - watched:
            self._node.destroy_subscription(self._heard.pop(camera))
        for camera in watched - self._heard.keys():
            topic, kind = self._topics[camera]
            take = self._take_compressed if kind is CompressedImage else self._take_raw
            self._heard[camera] = self._node.create_subscription(
                kind, topic, lambda message, camera=camera, take=take: take(camera, message),
                support.SENSOR,
            )  # fmt: skip

    def _take_compressed(self, camera: str, message: CompressedImage) -> None:
        self._pictures.put(camera, bytes(message.data))

    def _take_raw(self, camera: str, message: Image) -> None:
        now = time.monotonic()
        if now - self._compressed_at.get(camera, 0.0) < _COMPRESS_EVERY_S:
            return
        self._compressed_at[camera] = now
        size = message.height, message.width
        try:
            picture = unpacked(message.data, message.encoding, size, message.step, (*size, 3))
        except ContractMismatch as error:
            words = f'camera {camera}: {error}'
            self._node.get_logger().error(words, throttle_duration_sec=10.0)
            return
        _, jpeg = cv2.imencode('.jpg', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), _JPEG)
        self._pictures.put(camera, jpeg.tobytes())


def _about(robot: RobotSpec) -> dict[str, Any]:
    """Return what a page has to know of the arm."""
    return {
        'robot': robot.name,
        'joints': [
            {'name': name, 'lower': float(lower), 'upper': float(upper)}
            for name, lower, upper in zip(robot.joints, robot.lower, robot.upper, strict=True)
        ],
        'gripper': robot.gripper is not None,
    }


def _camera_name(topic: str) -> str:
    """Return what a person calls the camera of a topic: front of front/image_raw/compressed."""
    return topic.removesuffix('/compressed').removesuffix('/image_raw')
