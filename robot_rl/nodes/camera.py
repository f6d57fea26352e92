"""camera: the simulated arm's cameras, drawn in a process beside the twin's."""

from __future__ import annotations

import array
import threading
import time
from typing import Any, NamedTuple

import cv2
import mujoco
import numpy as np
import pydantic
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.time import Time as RosTime
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Float64MultiArray

from robot_rl.errors import ContractMismatch, SpecError
from robot_rl.nodes import support
from robot_rl.nodes.main import End
from robot_rl.robots.mjcf import names
from robot_rl.sim.perturbation import Kind
from robot_rl.sim.rendering import Renderer, intrinsics
from robot_rl.sim.twin import World, perturbed_world, world_of
from robot_rl.specs import Camera, Spec

STATE = 'sim_robot/state'
# Some pictures for a recorder that is late; each may have a megabyte.
PICTURES = QoSProfile(depth=5)


class Parameters(Spec):
    """The ROS parameters of camera."""

    task: str = pydantic.Field('ur5e/reach', description="as sim_robot's")
    robot: str = pydantic.Field('', description="as sim_robot's")
    perturbation: Kind = pydantic.Field('none', description="as sim_robot's")
    cameras: tuple[str, ...] = pydantic.Field(
        (),
        description="names of cameras of the robot's file or of the model; empty: those that the "
        "task is seen by, else all of the robot's file or, where that has none, all of the model",
    )
    width: pydantic.PositiveInt = pydantic.Field(
        640,
        le=8192,
        description="of the pictures of cameras that neither the robot's file has nor the task is "
        'seen by [pixels]',
    )
    height: pydantic.PositiveInt = pydantic.Field(480, le=8192, description='likewise [pixels]')
    rate_hz: pydantic.PositiveFloat = pydantic.Field(30.0, le=1000, description='likewise')
    jpeg_quality: int = pydantic.Field(
        95, ge=1, le=100, description='of compressed pictures, as for image_transport'
    )

    fast: bool = pydantic.Field(
        False,
        description='draw without shadows and smoothed edges: a tenth of the work without a GPU; '
        'a task that is seen by cameras is drawn so, as training draws it',
    )

    def chosen(self, world: World, model: mujoco.MjModel) -> list[Camera]:
        """Return the cameras to draw. Raises SpecError where there are none, or no such one."""
        robot, seen = world.robot, world.cameras
        known = {camera.name: camera for camera in robot.cameras}
        wanted = self.cameras or tuple(seen) or tuple(known) or tuple(names(model, 'camera'))
        if not wanted:
            raise SpecError(f'robot {robot.name}: neither its file nor its model has a camera')
        sizes = {name: seen.get(name, (self.height, self.width)) for name in wanted}
        return [
            known.get(name) or Camera(name=name, width=width, height=height, rate_hz=self.rate_hz)
            for name, (height, width) in sizes.items()
        ]


class State:
    """The simulated state as sim_robot tells it."""

    def __init__(self, world: World):
        self._world, self._nominal, self._seed = world, world.model(), None
        self.model, self.data = world.model(), mujoco.MjData(self._nominal)
        parts = ('qpos', 'qvel', 'mocap_pos', 'mocap_quat')
        self._parts = [getattr(self.data, part) for part in parts]

    def take(self, values: Any) -> None:
        """Take what Twin.state gave. Raises ContractMismatch for that of another model."""
        values, size = np.asarray(values), 2 + sum(part.size for part in self._parts)
        if values.shape != (size,):
            raise ContractMismatch(
                f'{STATE}: {values.size} numbers, this model has {size}: '
                'is sim_robot of the same task and robot?'
            )
        self._enter(int(values[-1]))
        self.data.time, start = values[0], 1
        for part in self._parts:
            part[...] = values[start : start + part.size].reshape(part.shape)
            start += part.size
        mujoco.mj_forward(self.model, self.data)

    def _enter(self, seed: int) -> None:
        """Let the scene look as the world of this seed does."""
        given = self._world.randomisation
        if given.is_on and seed != self._seed:
            domain = given.drawn(seed, self._nominal, self._world.robot)
            domain.embody(self.model, self._nominal, self.data)
            self._seed = seed


class Topics(NamedTuple):
    """Where a camera's pictures go."""

    raw: Any
    compressed: Any
    info: Any

    def wanted(self) -> bool:
        """Tell whether anybody listens."""
        return any(publisher.get_subscription_count() for publisher in self)


class SimulatedCamera:
    """Draws the state for one camera, and publishes what somebody listens to."""

    def __init__(self, node: Node, spec: Camera, model: mujoco.MjModel, given: Parameters):
        self.spec = spec
        self.count, self.seconds = 0, 0.0  # of pictures drawn since the last report
        self._model_name = spec.mjcf_name
        self._info = _camera_info(spec, intrinsics(model, self._model_name, *self._size))
        self._renderer = Renderer(*self._size, fast=given.fast)
        self._quality = [cv2.IMWRITE_JPEG_QUALITY, given.jpeg_quality]
        self._due_s = 0.0
        self._topics = Topics(
            node.create_publisher(Image, spec.raw_topic, PICTURES),
            node.create_publisher(CompressedImage, spec.compressed_topic, PICTURES),
            node.create_publisher(CameraInfo, spec.info_topic, PICTURES),
        )

    def is_due(self, now_s: float) -> bool:
        """Tell whether the next picture is due, and is wanted: states come at another rate."""
        period_s = 1.0 / self.spec.rate_hz
        if now_s < self._due_s or not self._topics.wanted():
            return False
        self._due_s = max(self._due_s, now_s - period_s) + period_s
        return True

    def draw(self, state: State, stamp: Time) -> None:
        """Publish a picture of `state`."""
        start, topics = time.perf_counter(), self._topics
        self._info.header.stamp = stamp
        if topics.raw.get_subscription_count() or topics.compressed.get_subscription_count():
            picture = self._renderer.frame(state.model, state.data, self._model_name)
            if topics.raw.get_subscription_count():
                topics.raw.publish(self._raw(picture))
            if topics.compressed.get_subscription_count():
                topics.compressed.publish(self._compressed(picture))
        topics.info.publish(self._info)
        self.count, self.seconds = self.count + 1, self.seconds + time.perf_counter() - start

    def close(self) -> None:
        """Release the graphics."""
        self._renderer.close()

    @property
    def _size(self) -> tuple[int, int]:
        return self.spec.width, self.spec.height

    def _raw(self, picture: np.ndarray) -> Image:
        width, height = self._size
        return Image(
            header=self._info.header,
            height=height,
            width=width,
            encoding='rgb8',
            step=3 * width,
            data=array.array('B', picture.tobytes()),
        )

    def _compressed(self, picture: np.ndarray) -> CompressedImage:
        _, jpeg = cv2.imencode('.jpg', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), self._quality)
        return CompressedImage(
            header=self._info.header,
            format='rgb8; jpeg compressed bgr8',  # as image_transport says it
            data=array.array('B', jpeg.tobytes()),
        )


class CameraNode(Node):
    """Draws each state of the twin for the cameras that are due."""

    def __init__(self) -> None:
        super().__init__('camera')
        support.declare_parameters(self, Parameters)
        given = support.read_parameters(self, Parameters)
        world = perturbed_world(world_of(given.task, given.robot), given.perturbation)
        if world.cameras:
            given = given.replace(fast=True)
        cv2.setNumThreads(1)
        self._state, self._lock, self._closed = State(world), threading.Lock(), False
        model = self._state.model
        self._cameras = [
            SimulatedCamera(self, spec, model, given) for spec in given.chosen(world, model)
        ]
        self._diagnostics = support.Diagnostics(self, f'{world.robot.name} (simulated)')
        self._heard, self._reported_s = 0, time.monotonic()
        self.create_subscription(Float64MultiArray, STATE, self._on_state, support.SENSOR)
        self._diagnostics.repeat(self._report)

    def start(self, end: End) -> None:
        """Begin: all is done in callbacks."""

    def close(self) -> None:
        """Release the graphics."""
        with self._lock:
            self._closed = True
            for camera in self._cameras:
                camera.close()

    def _on_state(self, message: Float64MultiArray, about: dict[str, Any]) -> None:
        self._heard += 1
        stamp = self._measured_at(about)
        now_s = support.seconds(stamp)
        with self._lock:
            due = [] if self._closed else [c for c in self._cameras if c.is_due(now_s)]
            if due:
                self._state.take(message.data)
            for camera in due:
                camera.draw(self._state, stamp)

    def _measured_at(self, about: dict[str, Any]) -> Time:
        """Return when sim_robot published a state: on /clock, where time comes from there."""
        if self.get_clock().ros_time_is_active:
            return self.get_clock().now().to_msg()
        return RosTime(nanoseconds=about['source_timestamp']).to_msg()

    def _report(self) -> None:
        """Say how many pictures are drawn and how long each takes, camera by camera."""
        now_s = time.monotonic()
        elapsed, self._reported_s = now_s - self._reported_s, now_s
        states_hz, self._heard = self._heard / elapsed, 0
        problems, values = [], {'states_hz': round(states_hz, 1)}
        if not states_hz:
            topic = self.resolve_topic_name(STATE)
            problems.append(f'nothing comes on {topic}: sim_robot needs publish_state')
        for camera in self._cameras:
            spec, rate_hz = camera.spec, camera.count / elapsed
            work_s = camera.seconds / max(camera.count, 1)
            values[f'{spec.name}.rate_hz'] = round(rate_hz, 1)
            values[f'{spec.name}.work_ms'] = round(work_s * 1e3, 2)
            if camera.count and work_s > 1 / spec.rate_hz:
                problems.append(
                    f'{spec.name}: {rate_hz:.0f} of {spec.rate_hz:g} Hz, a picture takes '
                    f'{work_s * 1e3:.0f} ms (see the parameter fast)'
                )
            camera.count, camera.seconds = 0, 0.0
        level = DiagnosticStatus.WARN if problems else DiagnosticStatus.OK
        words = '; '.join(problems) or f'{len(self._cameras)} cameras'
        self._diagnostics.publish(level, words, values)


def _camera_info(spec: Camera, matrix: np.ndarray) -> CameraInfo:
    info = CameraInfo(height=spec.height, width=spec.width, distortion_model='plumb_bob')
    info.header.frame_id = spec.frame
    info.d, info.k, info.r = [0.0] * 5, matrix.ravel(), np.eye(3).ravel()
    info.p = np.pad(matrix, ((0, 0), (0, 1))).ravel()
    return info
