"""RobotSpec: what an arm is, in SI units and radians, joints by name."""

from __future__ import annotations

import operator
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import pydantic
from numpy.typing import ArrayLike

from robot_rl import resources
from robot_rl.errors import SpecError
from robot_rl.specs.base import Spec
from robot_rl.specs.contract import ObservationField
from robot_rl.specs.files import at_most, was_recorded
from robot_rl.specs.ros_names import Prefix, Relative, Topic, TopicOrNone

PositiveFloat = pydantic.PositiveFloat
# How often nodes in Python can command or hear an arm at all [Hz].
Rate = Annotated[PositiveFloat, at_most(1000, '')]
# An arm that is told a velocity and no other goes on with it for so long at the most [s].
LONGEST_DRIVER_TIMEOUT_S = 1.0
# No joint of an arm turns as fast [rad/s], or slides [m/s].
Speed = Annotated[PositiveFloat, at_most(30, '; in degrees?')]


class JointLimits(Spec):
    """Limits of one joint, under the keys of ros2_control's joint_limits.<joint>.*.

    Positions in rad (m for a slide), velocities per second, accelerations per second squared.
    """

    min_position: float
    max_position: float
    max_velocity: Speed
    max_acceleration: PositiveFloat | None = None
    max_jerk: PositiveFloat | None = None
    max_effort: PositiveFloat | None = None

    @pydantic.model_validator(mode='after')
    def _ordered(self) -> Self:
        if self.min_position >= self.max_position:
            raise ValueError(
                f'min_position {self.min_position} must be below max_position {self.max_position}'
            )
        return self


class Box(Spec):
    """An axis-aligned box in the base frame [m]."""

    lower: tuple[float, float, float]
    upper: tuple[float, float, float]

    @pydantic.model_validator(mode='after')
    def _ordered(self) -> Self:
        if any(low >= high for low, high in zip(self.lower, self.upper, strict=True)):
            raise ValueError(f'lower {self.lower} must be below upper {self.upper} on every axis')
        return self

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Tell which of `points` [..., 3] lie inside -> bool [...]."""
        points = np.asarray(points)
        inside = (points >= np.asarray(self.lower)) & (points <= np.asarray(self.upper))
        return inside.all(axis=-1)


class Controller(Spec):
    """How the arm is commanded, named as ros2_control names it."""

    kind: Literal['forward_position', 'forward_velocity', 'joint_trajectory'] = 'forward_position'
    topic: Topic = 'forward_position_controller/commands'
    rate_hz: Rate = 100.0
    # Time after which the driver itself stops the arm when no command comes; None: it never does.
    driver_timeout_s: PositiveFloat | None = None
    # How long the one point of a joint_trajectory may take; None: two periods.
    time_from_start_s: PositiveFloat | None = None

    @property
    def period_s(self) -> float:
        """Time between two commands [s]."""
        return 1.0 / self.rate_hz

    @property
    def point_duration_s(self) -> float:
        """How long the one point of a joint_trajectory takes [s]."""
        return self.time_from_start_s or 2 * self.period_s

    @pydantic.model_validator(mode='after')
    def _velocity_needs_a_timeout(self, info: pydantic.ValidationInfo) -> Self:
        if self.kind != 'forward_velocity' or was_recorded(info):
            return self
        if self.driver_timeout_s is None:
            raise ValueError(
                'kind forward_velocity needs driver_timeout_s: an arm that keeps its last '
                'velocity when commands stop is not commanded by velocity'
            )
        if not self.period_s < self.driver_timeout_s <= LONGEST_DRIVER_TIMEOUT_S:
            raise ValueError(
                f'driver_timeout_s {self.driver_timeout_s:g}: with kind forward_velocity it is '
                f'more than a period ({self.period_s:g} s), or the driver stops between two '
                f'commands, and at most {LONGEST_DRIVER_TIMEOUT_S:g} s'
            )
        return self


class Gripper(Spec):
    """A gripper with one degree of freedom: 0 is closed, `open_width` [m] is open."""

    joint: str
    open_width: PositiveFloat
    topic: Topic
    # What goes there, one number: where the joint is to stand, as a forward controller of
    # ros2_control takes it; or the width [m], for a node of yours that passes it on to a driver.
    # An episode of before there was a choice has the width.
    kind: Literal['forward_position', 'width'] = 'width'
    # Where its joint stands when closed and when open; None: 0 and half of open_width, as one of
    # two fingers that slide.
    positions: tuple[float, float] | None = None
    # How long it takes to close on something, or to let it go [s].
    closing_s: PositiveFloat = 0.35

    @pydantic.model_validator(mode='after')
    def _moves(self) -> Self:
        if self.positions and self.positions[0] == self.positions[1]:
            raise ValueError(f'positions: closed and open are both {self.positions[0]}')
        return self

    def position(self, width: ArrayLike) -> np.ndarray:
        """Return where the joint stands [...] at a width [...] [m]."""
        closed, opened = self.positions or (0.0, self.open_width / 2)
        return closed + np.asarray(width) / self.open_width * (opened - closed)

    def width(self, position: ArrayLike) -> np.ndarray:
        """Return the width [...] [m] at a position [...] of the joint."""
        closed, opened = self.positions or (0.0, self.open_width / 2)
        return (np.asarray(position) - closed) / (opened - closed) * self.open_width

    def command(self, width: float) -> float:
        """Return what is published on `topic` for a width [m]."""
        return float(self.position(width)) if self.kind == 'forward_position' else width

    def commanded_width(self, command: float) -> float:
        """Return the width [m] of what is published on `topic`."""
        return float(self.width(command)) if self.kind == 'forward_position' else command


class Tip(Spec):
    """What the arm touches things with, about the tool: of a gripper, its closed fingers [m]."""

    # How far it reaches beyond the tool, along its z; and sideways, from that axis.
    reach: pydantic.NonNegativeFloat = 0.012
    radius: pydantic.NonNegativeFloat = 0.012


class Camera(Spec):
    """A camera by its ROS name, with the size of its pictures [pixels] and rate [Hz]."""

    name: Relative
    # Where its driver publishes raw pictures; empty: <name>/image_raw.
    topic: TopicOrNone = ''
    width: pydantic.PositiveInt
    height: pydantic.PositiveInt
    rate_hz: PositiveFloat = 30.0
    # The camera's name in the model, where it differs.
    mjcf: str = ''

    @property
    def mjcf_name(self) -> str:
        """Its name in the model."""
        return self.mjcf or self.name

    @property
    def raw_topic(self) -> str:
        """Where raw pictures are (sensor_msgs/Image)."""
        return self.topic or f'{self.name}/image_raw'

    @property
    def compressed_topic(self) -> str:
        """Where compressed ones are (sensor_msgs/CompressedImage), as image_transport has it."""
        return f'{self.raw_topic}/compressed'

    @property
    def info_topic(self) -> str:
        """Where its calibration is (sensor_msgs/CameraInfo): beside the raw pictures."""
        return '/'.join([*self.raw_topic.split('/')[:-1], 'camera_info'])

    @property
    def frame(self) -> str:
        """The frame of its pictures: z forward, x right, y down (REP 103)."""
        return f'{self.name}_optical_frame'


class RobotSpec(Spec):
    """One arm: joints by name, limits, home, workspace, model, and how it is commanded."""

    schema_version: Literal[1] = 1
    name: str
    # As the driver names them, less its tf_prefix.
    joints: tuple[str, ...] = pydantic.Field(min_length=1)
    joint_limits: dict[str, JointLimits]
    home: dict[str, float]
    workspace: Box
    # A model, as resources.model() finds it: of the arm alone or of a scene that it stands in.
    mjcf: str
    # {name among joints, or the gripper's: its name in the model} where the two differ.
    mjcf_joints: dict[str, str] = pydantic.Field(default_factory=dict)
    # The model's body that is base_frame, where its name differs.
    mjcf_base: str | None = None
    # The model's site, or else body, that is the tool.
    tool_site: str
    tip: Tip = Tip()
    base_frame: str = 'base_link'
    # What this arm's driver puts before the names of joints and frames, as in 'left_'.
    tf_prefix: Prefix = ''
    joint_states_topic: Topic = 'joint_states'
    joint_states_rate_hz: Annotated[PositiveFloat, at_most(5000, '')] = 100.0
    controller: Controller = Controller()
    gripper: Gripper | None = None
    cameras: tuple[Camera, ...] = ()

    @pydantic.model_validator(mode='after')
    def _every_joint_is_described(self) -> Self:
        if len(set(self.joints)) != len(self.joints):
            raise ValueError(f'joints: a name stands twice in {list(self.joints)}')
        for field in ('joint_limits', 'home'):
            given = set(getattr(self, field))
            missing, unknown = set(self.joints) - given, given - set(self.joints)
            if missing:
                raise ValueError(f'{field}: missing for {sorted(missing)}')
            if unknown:
                raise ValueError(
                    f'{field}: {sorted(unknown)} not among joints {list(self.joints)}'
                )
        for joint, position in self.home.items():
            limits = self.joint_limits[joint]
            if not limits.min_position <= position <= limits.max_position:
                raise ValueError(
                    f'home.{joint}: {position} lies outside '
                    f'[{limits.min_position}, {limits.max_position}]'
                )
        return self

    @pydantic.model_validator(mode='after')
    def _gripper_is_apart(self, info: pydantic.ValidationInfo) -> Self:
        if self.gripper is None or was_recorded(info):
            return self
        if self.gripper.joint in self.joints:
            raise ValueError(f'gripper.joint: {self.gripper.joint!r} is one of joints')
        for name in ('controller.topic', 'joint_states_topic'):
            if operator.attrgetter(name)(self) == self.gripper.topic:
                raise ValueError(f'gripper.topic: {self.gripper.topic!r} is {name} as well')
        return self

    @pydantic.model_validator(mode='after')
    def _cameras_are_distinct(self) -> Self:
        names = [camera.name for camera in self.cameras]
        if len(set(names)) != len(names):
            raise ValueError(f'cameras: a name stands twice in {names}')
        return self

    @pydantic.model_validator(mode='after')
    def _jerk_needs_accelerations(self) -> Self:
        limits = self.joint_limits
        unbounded = [joint for joint in self.joints if limits[joint].max_acceleration is None]
        if unbounded and any(limits[joint].max_jerk for joint in self.joints):
            raise ValueError(
                'joint_limits: max_jerk needs max_acceleration, of all joints: it bounds how fast '
                f'an acceleration builds up, and that of {unbounded} has no bound'
            )
        return self

    @pydantic.model_validator(mode='after')
    def _model_joints_are_distinct(self) -> Self:
        jaw = {self.gripper.joint} if self.gripper else set()
        if unknown := self.mjcf_joints.keys() - set(self.joints) - jaw:
            raise ValueError(
                f'mjcf_joints: {sorted(unknown)} not among joints {list(self.joints)}'
            )
        if len(set(self.model_joints)) != len(self.joints):
            raise ValueError(f'mjcf_joints: a name stands twice in {list(self.model_joints)}')
        return self

    @classmethod
    def load(cls, name: str) -> RobotSpec:
        """Read the robot called `name` from config/robots, or a YAML file by its path.

        '<name>@<prefix>' is that robot behind a driver with this tf_prefix. Raises SpecError,
        UnknownName.
        """
        plain, at, prefix = name.rpartition('@')
        if at and not Path(name).is_file():
            if not prefix:
                raise SpecError(
                    f'robot {name!r}: a tf_prefix is needed after @, as in {name}left_'
                )
            return cls.load(plain).prefixed(prefix)
        return cls.from_yaml(resources.find('config/robots', name))

    def prefixed(self, prefix: str) -> RobotSpec:
        """Return the same arm behind a driver that puts `prefix` before joints and frames.

        Only what the driver says and hears changes: policies, contracts and models keep the
        names in `joints`.
        """
        return self.replace(name=f'{self.name}@{prefix}', tf_prefix=prefix + self.tf_prefix)

    @property
    def driver_joints(self) -> tuple[str, ...]:
        """The joint names in the driver's messages, in the order of `joints`."""
        return tuple(self.tf_prefix + joint for joint in self.joints)

    @property
    def driver_gripper(self) -> str:
        """The name of the gripper's joint in the driver's messages; '' without a gripper."""
        return self.tf_prefix + self.gripper.joint if self.gripper else ''

    @property
    def driver_frame(self) -> str:
        """The name of base_frame in the driver's messages."""
        return self.tf_prefix + self.base_frame

    @property
    def model_joints(self) -> tuple[str, ...]:
        """The joint names in the MJCF, in the order of `joints`."""
        return tuple(self.mjcf_joints.get(joint, joint) for joint in self.joints)

    @property
    def model_base(self) -> str:
        """The name of base_frame's body in the MJCF."""
        return self.mjcf_base or self.base_frame

    @property
    def lower(self) -> np.ndarray:
        """Lower position limits [n], in the order of `joints`."""
        return np.array([self.joint_limits[joint].min_position for joint in self.joints])

    @property
    def upper(self) -> np.ndarray:
        """Upper position limits [n], in the order of `joints`."""
        return np.array([self.joint_limits[joint].max_position for joint in self.joints])

    @property
    def max_velocity(self) -> np.ndarray:
        """Velocity limits [n], in the order of `joints`."""
        return np.array([self.joint_limits[joint].max_velocity for joint in self.joints])

    @property
    def max_acceleration(self) -> np.ndarray:
        """Acceleration limits [n], in the order of `joints`; infinite where none is given."""
        return self._limit_or_none('max_acceleration')

    @property
    def max_jerk(self) -> np.ndarray:
        """Jerk limits [n], in the order of `joints`; infinite where none is given."""
        return self._limit_or_none('max_jerk')

    @property
    def home_position(self) -> np.ndarray:
        """Home joint positions [n], in the order of `joints`."""
        return np.array([self.home[joint] for joint in self.joints])

    def camera(self, name: str) -> Camera | None:
        """Return the camera called `name`, or None where this robot names none."""
        return next((camera for camera in self.cameras if camera.name == name), None)

    def topic(self, field: ObservationField) -> str:
        """Return the topic that brings the stream of an observation field."""
        if field.stream == 'joint_states':
            return self.joint_states_topic
        if field.kind != 'image':
            return field.stream
        height, width, _ = field.shape
        camera = self.camera(field.stream) or Camera(name=field.stream, width=width, height=height)
        return camera.compressed_topic if field.encoding == 'jpeg' else camera.raw_topic

    def is_among(self, names: Collection[str]) -> bool:
        """Tell whether a driver's message of these joints is about this arm, if only in part.

        One without names has those of the arm.
        """
        return not names or not set(self.driver_joints).isdisjoint(names)

    def indices(self, names: tuple[str, ...] | list[str]) -> list[int]:
        """Return where each joint stands in the driver's `names`; others may stand there too.

        Raises SpecError that lists the missing joints.
        """
        missing = [joint for joint in self.driver_joints if joint not in names]
        if missing:
            raise SpecError(
                f'joint names: {missing} of robot {self.name} are missing; found {list(names)}'
            )
        return [list(names).index(joint) for joint in self.driver_joints]

    def _limit_or_none(self, name: str) -> np.ndarray:
        given = (getattr(self.joint_limits[joint], name) for joint in self.joints)
        return np.array([np.inf if limit is None else limit for limit in given])
