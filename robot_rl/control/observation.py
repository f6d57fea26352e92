"""From streams to what a policy sees: in simulation over a batch, beside the arm from messages.

Streams are {stream: {quantity: array [..., *element]}}: joint_states.position and .velocity [n]
in the order of RobotSpec.joints, command.position [n], goals for the joints with position [n],
poses with position [3] and orientation [4] (wxyz), cameras with image [height, width, 3] uint8,
and tool, the forward kinematics of the measured joints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike

from robot_rl.control.limiter import require_finite
from robot_rl.errors import ContractMismatch
from robot_rl.specs import Contract, ObservationField, RobotSpec
from robot_rl.specs.contract import DERIVED, FROM_TOOL, POSE_ELEMENTS

Streams = Mapping[str, Mapping[str, np.ndarray]]
Observation = dict[str, np.ndarray]

# How old a picture may be where the contract says nothing [s].
IMAGE_MAX_AGE_S = 0.5


class Chain(Protocol):
    """The part of robots.kinematics.KinematicChain that observations need."""

    @property
    def joints(self) -> tuple[str, ...]:
        """The joint names, in the order of the positions that forward() takes."""
        ...

    def forward(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map joint positions [..., n] to tool position [..., 3] and quaternion [..., 4]."""
        ...


def observe(contract: Contract, chain: Chain | None, streams: Streams) -> Observation:
    """Return {field: [..., *shape]} of one moment, without history; leading axes stay.

    `chain` is needed where a field reads tool.* and `streams` holds no tool. Raises
    ContractMismatch where a stream, a quantity or a name is missing or of another shape.
    """
    streams = dict(streams)
    from_tool = {f.stream for f in contract.observation if f.quantity == FROM_TOOL}
    reads_tool = from_tool or any(field.stream == 'tool' for field in contract.observation)
    if reads_tool and 'tool' not in streams and chain is not None and 'joint_states' in streams:
        position, orientation = chain.forward(streams['joint_states']['position'])
        streams['tool'] = {'position': position, 'orientation': orientation}
    for stream in from_tool & streams.keys():
        vector = np.asarray(streams[stream]['position']) - streams['tool']['position']
        streams[stream] = {**streams[stream], FROM_TOOL: vector}
    joints = tuple(chain.joints) if chain is not None else ()
    return {field.name: _read(field, streams, joints) for field in contract.observation}


def _read(field: ObservationField, streams: Streams, joints: tuple[str, ...]) -> np.ndarray:
    """Return one field's values: the elements it names, in its order, as its dtype."""
    try:
        values = np.asarray(streams[field.stream][field.quantity])
    except KeyError:
        found = [f'{stream}.{quantity}' for stream in streams for quantity in streams[stream]]
        raise ContractMismatch(
            f'observation {field.name}: no {field.source!r}; found {", ".join(found) or "none"}'
        ) from None
    if field.names:
        elements = POSE_ELEMENTS.get(field.quantity, field.names)
        if field.kind == 'joints' or field.stream == 'command':
            elements = joints
        if field.names != elements:
            values = values[..., _indices(field, elements)]
    if values.shape[values.ndim - len(field.shape) :] != field.shape:
        raise ContractMismatch(
            f'observation {field.name}: {field.source} has shape {list(values.shape)}, '
            f'right is [..., {", ".join(map(str, field.shape))}]'
        )
    return values.astype(field.dtype)


def _indices(field: ObservationField, elements: tuple[str, ...]) -> list[int]:
    unknown = [name for name in field.names if name not in elements]
    if unknown:
        raise ContractMismatch(
            f'observation {field.name}: {unknown} missing in {field.source}, '
            f'which has {list(elements)}'
        )
    return [elements.index(name) for name in field.names]


class History:
    """Stacks the last steps of every field with history > 1, oldest first.

    The first step after a reset stands for the steps before it.
    """

    def __init__(self, contract: Contract):
        self._fields = [field for field in contract.observation if field.history > 1]
        self._stacks: Observation = {}

    def reset(self) -> None:
        """Forget all steps."""
        self._stacks = {}

    def push(self, observation: Observation, first: np.ndarray | None = None) -> Observation:
        """Add a step {field: [..., *shape]} and return {field: [..., *full_shape]}.

        `first` (bool, the leading axes) marks lanes of a batch in which an episode begins.
        """
        stacked = dict(observation)
        for field in self._fields:
            step = observation[field.name]
            axis = step.ndim - len(field.shape)
            fresh = np.repeat(np.expand_dims(step, axis), field.history, axis)
            old = self._stacks.get(field.name, fresh)
            older = np.take(old, range(1, field.history), axis)
            stack = np.concatenate([older, np.expand_dims(step, axis)], axis)
            if first is not None:
                lanes = np.reshape(first, first.shape + (1,) * (stack.ndim - first.ndim))
                stack = np.where(lanes, fresh, stack)
            self._stacks[field.name] = stacked[field.name] = stack
        return stacked


@dataclasses.dataclass(frozen=True)
class _Sample:
    stamp_s: float
    values: dict[str, np.ndarray]


class _Need(NamedTuple):
    """What is asked of a stream's samples: the strictest field's age limit [s]."""

    field: str
    max_age_s: float
    is_set: bool = False

    @classmethod
    def of(cls, field: ObservationField) -> Self:
        """Return what one field asks of its stream."""
        default = IMAGE_MAX_AGE_S if field.kind == 'image' else np.inf
        return cls(field.name, field.max_age_s or default, field.is_set)


class ObservationAssembler:
    """Keeps the newest sample of each stream and makes the policy's observation of them.

    Samples come with their own stamps [s] on the clock that `now_s` is read from. Joint states
    may be `joint_states_max_age_s` old, or less where the contract says so; goals that are set
    stay for good. Raises ContractMismatch at once for a contract that this robot cannot serve.
    """

    def __init__(
        self,
        contract: Contract,
        robot: RobotSpec,
        chain: Chain,
        joint_states_max_age_s: float = np.inf,
    ):
        self.contract, self.robot, self.chain = contract, robot, chain
        self._fills = {f.fill for f in contract.observation if _reads_velocity(f)}
        if len(self._fills) > 1:
            raise ContractMismatch(f'joint_states.velocity: different fill rules {self._fills}')
        self._needed = {'joint_states': _Need('joint_states', joint_states_max_age_s)}
        for field in contract.observation:
            if field.stream in DERIVED and field.stream != 'tool':
                continue
            stream = 'joint_states' if field.stream == 'tool' else field.stream
            need, former = _Need.of(field), self._needed.get(stream)
            if former is None or need.max_age_s < former.max_age_s:
                self._needed[stream] = need
        self._kinds = {f.stream: f.kind for f in contract.observation}
        self._history = History(contract)
        self._samples: dict[str, _Sample] = {}

    def reset(self) -> None:
        """Forget every sample that grows old, and the history: a new episode."""
        kept = {stream for stream, need in self._needed.items() if need.is_set}
        self._samples = {s: sample for s, sample in self._samples.items() if s in kept}
        self.reset_history()

    def reset_history(self) -> None:
        """Forget the history only: the next tick is an episode's first."""
        self._history.reset()

    def latest(self, stream: str) -> dict[str, np.ndarray] | None:
        """Return the newest sample of `stream` (joints in the robot's order), or None."""
        sample = self._samples.get(stream)
        return None if sample is None else sample.values

    def put(
        self,
        stream: str,
        stamp_s: float,
        values: Mapping[str, ArrayLike],
        names: Sequence[str] | None = None,
    ) -> None:
        """Take one message's values; joints are found by `names`, in any order, among others.

        Raises SpecError for missing joints and ContractMismatch for wrong sizes and non-finite
        values (velocities aside, where the contract has a fill rule); the former sample stays.
        """
        kind = 'joints' if stream == 'joint_states' else self._kinds.get(stream)
        if kind == 'joints':
            names = list(names or self.robot.driver_joints)
            taken = self._joint_values(stream, stamp_s, values, names)
        elif kind == 'image':
            taken = {quantity: np.asarray(pixels) for quantity, pixels in values.items()}
        else:
            taken = _pose_values(stream, values)
        self._samples[stream] = _Sample(stamp_s, taken)

    def absent(self) -> list[str]:
        """Return the streams that must be brought and of which nothing has come."""
        return [stream for stream in self._needed if stream not in self._samples]

    def expired(self, now_s: float) -> list[str]:
        """Say of which streams the newest sample is too old, or stamped too far ahead."""
        problems = []
        for stream, sample in self._samples.items():
            need = self._needed.get(stream)
            if need is None or need.is_set:
                continue
            age = now_s - sample.stamp_s
            if abs(age) > need.max_age_s:
                side = 'old' if age > 0 else 'in the future'
                problems.append(
                    f'{need.field}: the newest of {stream} is {abs(age):.3f} s {side}, '
                    f'at most {need.max_age_s:g} s'
                )
        return problems

    def missing(self, now_s: float) -> list[str]:
        """Say what has not come or has expired; nothing: all is there."""
        return [*(f'{stream}: none has come' for stream in self.absent()), *self.expired(now_s)]

    def assemble(self, now_s: float, command: ArrayLike) -> tuple[Observation, float]:
        """Return ({field: [*full_shape]}, stamp of the joint_states it was made of).

        `command` [n] is the last commanded position. Call it once a control tick: it moves the
        history on. Raises ContractMismatch where missing() has something to say.
        """
        problems = self.missing(now_s)
        if problems:
            raise ContractMismatch('observation: ' + '; '.join(problems))
        streams = {stream: sample.values for stream, sample in self._samples.items()}
        streams['command'] = {'position': require_finite('command', command)}
        observation = observe(self.contract, self.chain, streams)
        return self._history.push(observation), self._samples['joint_states'].stamp_s

    def _joint_values(
        self, stream: str, stamp_s: float, values: Mapping[str, ArrayLike], names: list[str]
    ) -> dict[str, np.ndarray]:
        index = self.robot.indices(names)
        position = np.asarray(values.get('position', ()), np.float64)
        if position.shape != (len(names),):
            raise ContractMismatch(
                f'{stream}.position: {position.size} values for {len(names)} joint names'
            )
        taken = {'position': require_finite(f'{stream}.position', position[index])}
        if stream == 'joint_states' and self._fills:
            velocity = np.asarray(values.get('velocity', ()), np.float64)
            if velocity.size == 0:
                velocity = np.full(len(names), np.nan)
            if velocity.shape != (len(names),):
                raise ContractMismatch(
                    f'joint_states.velocity: {velocity.size} values for {len(names)} joint names'
                )
            taken['velocity'] = self._fill(stamp_s, taken['position'], velocity[index])
        return taken

    def _fill(self, stamp_s: float, position: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """Put what the fill rule says where the driver gives no velocity."""
        absent = ~np.isfinite(velocity)
        (fill,) = self._fills
        if not absent.any():
            return velocity
        if fill == 'none':
            raise ContractMismatch(
                'joint_states.velocity: empty or not finite, and the contract has no fill rule '
                "for it (fill: 'zero' or 'difference')"
            )
        return np.where(absent, self._stand_in(fill, stamp_s, position), velocity)

    def _stand_in(self, fill: str, stamp_s: float, position: np.ndarray) -> np.ndarray:
        last = self._samples.get('joint_states')
        if fill == 'zero' or last is None:
            return np.zeros_like(position)
        elapsed = stamp_s - last.stamp_s
        if elapsed <= 0:  # sent twice or out of order: no time to divide by
            return last.values['velocity']
        return (position - last.values['position']) / elapsed


def _pose_values(stream: str, values: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    taken = {k: require_finite(f'{stream}.{k}', v) for k, v in values.items()}
    for quantity, elements in POSE_ELEMENTS.items():
        if quantity in taken and taken[quantity].shape != (len(elements),):
            raise ContractMismatch(
                f'{stream}.{quantity}: shape {list(taken[quantity].shape)}, '
                f'right is [{len(elements)}]'
            )
    return taken


def _reads_velocity(field: ObservationField) -> bool:
    return field.source == 'joint_states.velocity'
