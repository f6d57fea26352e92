"""Contract: what a policy sees and commands, at what rate, in which order and units."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import pydantic

from robot_rl.errors import ContractMismatch, SpecError, did_you_mean
from robot_rl.specs.base import Spec

# The quantity of a pose stream that is its position less the tool's.
FROM_TOOL = 'from_tool'
# An action tells how long ago its streams were heard, up to this share of a period: those of
# before it did have a whole one there.
HEARD_WITHIN = 0.999
# Streams that are computed, not brought by messages.
DERIVED = ('command', 'tool', 'gripper', 'env')
# The elements of a pose's quantities, in their order.
POSE_ELEMENTS = {'position': ('x', 'y', 'z'), 'orientation': ('w', 'x', 'y', 'z')}
# How old a picture may be where the contract says nothing [s].
IMAGE_MAX_AGE_S = 0.5
# The elements of a cartesian_twist, in the base frame: the tool's velocity [m/s, rad/s].
TWIST = ('linear_x', 'linear_y', 'linear_z', 'angular_x', 'angular_y', 'angular_z')
# What a message of each kind brings.
QUANTITIES = {
    'joints': ('position', 'velocity'),
    'pose': (*POSE_ELEMENTS, FROM_TOOL),
    'image': ('image',),
}


class ObservationField(Spec):
    """One input of the policy.

    `source` is '<stream>.<quantity>': joint_states.position, joint_states.velocity,
    command.position (the last commanded joint positions), tool.position (forward kinematics of
    the measured joints), gripper.width (as the gripper's joint among the
    joint_states says), <pose stream>.position, .orientation or .from_tool (its position less the
    tool's, in the base frame: derived), <stream of joints>.position (`names` are the robot's
    joints), <camera>.image (pixels, rows from above, RGB), or env.<key> for simulated suites,
    which have no streams.
    `shape` is that of one step without history; the policy sees (history, *shape) where
    history > 1, oldest first.
    """

    name: str
    source: str
    names: tuple[str, ...] = ()
    shape: tuple[pydantic.NonNegativeInt, ...]
    dtype: Literal['float32', 'uint8'] = 'float32'
    unit: str = ''
    history: pydantic.PositiveInt = 1
    # How far from now the stamp of what is read may be [s]; None: as far as its reader allows.
    max_age_s: pydantic.PositiveFloat | None = None
    # What stands in for a velocity that the driver leaves empty or NaN.
    fill: Literal['none', 'zero', 'difference'] = 'none'
    # How pictures come: as they are, or compressed.
    encoding: Literal['', 'rgb8', 'jpeg'] = ''
    # What comes raw is seen, and kept in columns, without losses; else as images.as_jpeg() of it.
    lossless: bool = False
    # What the task wants, not what is measured. One without max_age_s is set once, on a latched
    # topic, and stays until another is set; with it, it is streamed as any other.
    goal: bool = False

    @pydantic.field_validator('source')
    @classmethod
    def _source_has_two_parts(cls, source: str) -> str:
        if not re.fullmatch(r'[A-Za-z_]\w*\.[A-Za-z_][\w\-/]*', source):
            raise ValueError(
                f"{source!r} is not '<stream>.<quantity>', such as 'joint_states.position'"
            )
        return source

    @pydantic.model_validator(mode='after')
    def _names_match_shape(self) -> Self:
        if self.names and self.shape != (len(self.names),):
            raise ValueError(f'shape {list(self.shape)} does not hold {len(self.names)} names')
        return self

    @pydantic.model_validator(mode='after')
    def _pictures_are_whole(self) -> Self:
        if self.lossless and self.encoding != 'rgb8':
            raise ValueError("lossless is for pictures that come raw: encoding 'rgb8'")
        if not self.encoding:
            if self.quantity == 'image' and self.stream not in DERIVED:
                raise ValueError("a picture needs an encoding, 'rgb8' or 'jpeg'")
            return self
        whole = len(self.shape) == 3 and self.shape[-1] == 3 and all(self.shape)
        if not (whole and self.dtype == 'uint8' and self.quantity == 'image'):
            raise ValueError(
                f'encoding {self.encoding!r} is of a picture: source <camera>.image, dtype uint8, '
                f'shape [height, width, 3]; found {self.source}, {self.dtype}, {list(self.shape)}'
            )
        if self.stream in DERIVED:
            raise ValueError(f'a picture comes from a camera; {self.stream!r} is computed')
        if self.goal:
            raise ValueError('a picture is no goal: it is streamed, and grows old')
        return self

    @property
    def stream(self) -> str:
        """The stream part of `source`."""
        return self.source.split('.', 1)[0]

    @property
    def quantity(self) -> str:
        """The quantity part of `source`."""
        return self.source.split('.', 1)[1]

    @property
    def kind(self) -> Literal['', 'joints', 'pose', 'image']:
        """What the messages of the stream are; '': none brings it, it is computed."""
        if self.stream in DERIVED:
            return ''
        if self.encoding:
            return 'image'
        of_joints = bool(self.names) and not {*'xyzw'} & {*self.names}
        if self.stream == 'joint_states' or (of_joints and self.quantity == 'position'):
            return 'joints'
        return 'pose'

    @property
    def is_picture(self) -> bool:
        """Whether it holds pixels [height, width, channels], of a camera or of a suite's own."""
        return self.dtype == 'uint8' and len(self.shape) == 3

    @property
    def is_set(self) -> bool:
        """Whether it is a goal that stays until another one is set."""
        return self.goal and self.max_age_s is None

    @property
    def age_limit_s(self) -> float:
        """How far from now the stamp of what is read may be [s]; inf: there is no limit."""
        default = IMAGE_MAX_AGE_S if self.kind == 'image' else math.inf
        return self.max_age_s or default

    @property
    def recorded(self) -> str:
        """The source that has to be measured or recorded; what is derived needs its parts."""
        return f'{self.stream}.position' if self.quantity == FROM_TOOL else self.source

    @property
    def full_shape(self) -> tuple[int, ...]:
        """The shape the policy sees, history included."""
        return (self.history, *self.shape) if self.history > 1 else tuple(self.shape)

    @property
    def size(self) -> int:
        """How many numbers the policy sees."""
        return math.prod(self.full_shape)


class ActionField(Spec):
    """One group of commands; `lower` and `upper` bound it, in `unit`.

    joint_delta, joint_velocity and cartesian_twist go on from the last command, never from the
    measured position: velocities for one control period. A cartesian_twist is the tool's, `names`
    are among TWIST and what is not named stays; a gripper has one name and is told a width [m].
    """

    name: str
    kind: Literal[
        'joint_position',
        'joint_delta',
        'joint_velocity',
        'cartesian_twist',
        'gripper',
        'effort',
        'generic',
    ]
    names: tuple[str, ...] = pydantic.Field(min_length=1)
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    unit: str = ''

    @pydantic.model_validator(mode='after')
    def _bounds_match_names(self) -> Self:
        for bound in ('lower', 'upper'):
            if len(getattr(self, bound)) != len(self.names):
                raise ValueError(
                    f'{bound}: {len(getattr(self, bound))} values for {len(self.names)} names'
                )
        if any(low >= high for low, high in zip(self.lower, self.upper, strict=True)):
            raise ValueError(f'lower {list(self.lower)} must be below upper {list(self.upper)}')
        return self


class Contract(Spec):
    """The view that a policy has of the streams, at a fixed control rate."""

    schema_version: Literal[2] = 2
    rate_hz: pydantic.PositiveFloat
    observation: tuple[ObservationField, ...] = pydantic.Field(min_length=1)
    action: tuple[ActionField, ...] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode='before')
    @classmethod
    def _migrate(cls, data: Any) -> Any:
        """Bring version 1 to 2: what came raw was always seen without losses."""
        if not isinstance(data, dict) or data.get('schema_version') != 1:
            return data
        if isinstance(fields := data.get('observation'), list | tuple):
            data = data | {'observation': [_without_losses(field) for field in fields]}
        return data | {'schema_version': 2}

    @pydantic.model_validator(mode='after')
    def _field_names_differ(self) -> Self:
        for group in ('observation', 'action'):
            names = [field.name for field in getattr(self, group)]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f'{group}: the names {twice} stand more than once')
        return self

    @pydantic.model_validator(mode='after')
    def _streams_are_of_one_kind(self) -> Self:
        messages: dict[str, str] = {}
        for field in self.observation:
            message = f'{field.kind} {"that is set" if field.is_set else "that is streamed"}'
            if field.kind == 'image':
                losses = ' without losses' if field.lossless else ''
                message = f'{field.encoding} of shape {list(field.shape)}{losses}'
            if messages.setdefault(field.stream, message) != message:
                raise ValueError(
                    f'observation: fields of {field.stream!r} expect different messages: '
                    f'{messages[field.stream]}, and {message}'
                )
        return self

    @property
    def period_s(self) -> float:
        """Seconds between two decisions."""
        return 1.0 / self.rate_hz

    @property
    def observation_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every observation field, in order, without a batch axis."""
        return {field.name: field.full_shape for field in self.observation}

    @property
    def pictures(self) -> tuple[ObservationField, ...]:
        """The observation fields that are pictures, in order."""
        return tuple(field for field in self.observation if field.is_picture)

    @property
    def action_size(self) -> int:
        """A, the length of the action vector."""
        return sum(len(field.names) for field in self.action)

    @property
    def action_names(self) -> tuple[str, ...]:
        """The names of all actions, in order."""
        return tuple(name for field in self.action for name in field.names)

    @property
    def action_lower(self) -> np.ndarray:
        """Lower bounds [A]."""
        return np.array([bound for field in self.action for bound in field.lower])

    @property
    def action_upper(self) -> np.ndarray:
        """Upper bounds [A]."""
        return np.array([bound for field in self.action for bound in field.upper])

    def without(self, hidden: Sequence[str]) -> Contract:
        """Return the contract of a policy that does not see the fields called `hidden`.

        Raises SpecError for a name that no field has, or where nothing would be left to see.
        """
        names = list(self.observation_shapes)
        for name in hidden:
            if name not in names:
                raise SpecError(f'hide: no observation field {name!r}{did_you_mean(name, names)}')
        left = [f.to_dict() for f in self.observation if f.name not in hidden]
        if not left:
            raise SpecError(f'hide: {", ".join(hidden)} leave nothing to see')
        return self.replace(observation=left) if hidden else self

    def also_seeing(self, other: Contract) -> Contract:
        """Return the contract of one who sees, too, the fields of `other` that are not here."""
        known = self.observation_shapes
        more = [field for field in other.observation if field.name not in known]
        fields = [field.to_dict() for field in (*self.observation, *more)]
        return self.replace(observation=fields) if more else self

    def action_slice(self, name: str) -> slice:
        """Return where the action field called `name` lies in the action vector."""
        start = 0
        for field in self.action:
            if field.name == name:
                return slice(start, start + len(field.names))
            start += len(field.names)
        raise KeyError(name)


def _without_losses(field: Any) -> Any:
    """Return the data of a field that, where its pictures come raw, loses nothing of them."""
    raw = isinstance(field, dict) and field.get('encoding') == 'rgb8'
    return field | {'lossless': True} if raw else field


def fits(contract: Contract, streams: Mapping[str, Sequence[str]]) -> list[str]:
    """Say what keeps `contract` from being served by `streams`; nothing: it fits.

    `streams` maps each available stream to the names of its elements (joint names, say; empty
    where elements have no names). More streams, or more names, than the contract reads are fine.
    """
    problems = []
    for field in contract.observation:
        if field.stream not in streams:
            problems.append(
                f'observation {field.name}: no stream {field.stream!r} '
                f'(available: {", ".join(sorted(streams)) or "none"})'
            )
            continue
        available = streams[field.stream]
        missing = [name for name in field.names if available and name not in available]
        if missing:
            problems.append(
                f'observation {field.name}: {missing} missing in {field.stream!r}, '
                f'which has {list(available)}'
            )
    commanded = streams.get('command', ())
    for action in contract.action:
        if action.kind not in ('joint_position', 'joint_delta', 'joint_velocity', 'effort'):
            continue
        missing = [name for name in action.names if name not in commanded]
        if missing:
            problems.append(
                f'action {action.name}: joints {missing} are not commanded here '
                f'(commanded: {", ".join(commanded) or "none"})'
            )
    return problems


def require_fit(contract: Contract, streams: Mapping[str, Sequence[str]], where: str = '') -> None:
    """Raise ContractMismatch with every problem that `fits` finds."""
    problems = fits(contract, streams)
    if problems:
        lead = f'{where}: ' if where else ''
        raise ContractMismatch(lead + 'the contract does not fit: ' + '; '.join(problems))
