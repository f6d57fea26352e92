"""From streams to what a policy sees: in simulation over a batch, beside the arm from messages.

Streams are {stream: {quantity: array [..., *element]}}: joint_states.position and .velocity [n]
in the order of RobotSpec.joints, command.position [n], goals for the joints with position [n],
poses with position [3] and orientation [4] (wxyz), cameras with image [height, width, 3] uint8,
tool, the forward kinematics of the measured joints, and gripper with width [1], as its joint says.
"""

from __future__ import annotations

import dataclasses
import functools
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


class Chain(Protocol):
    """The part of robots.kinematics.KinematicChain that observations need."""

    @property
    def joints(self) -> tuple[str, ...]:
        """The joint names, in the order of the positions that forward() takes."""
        ...

    def forward(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map joint positions [..., n] to tool position [..., 3] and quaternion [..., 4]."""
        ...

    def position(self, positions: np.ndarray) -> np.ndarray:
        """Map joint positions [..., n] to tool position [..., 3] alone."""
        ...


class Observer:
    """Reads a contract's fields off the streams of one moment, without history.

    `chain` is needed where a field reads tool.* and the streams hold no tool. What stays the same
    is looked up once: a control loop asks up to 500 times a second. Raises ContractMismatch for
    names that a field's stream does not have.
    """

    def __init__(self, contract: Contract, chain: Chain | None = None):
        self._chain = chain
        joints = tuple(chain.joints) if chain is not None else ()
        self._readings = [_Reading.of(field, joints) for field in contract.observation]
        self._from_tool = {r.stream for r in self._readings if r.quantity == FROM_TOOL}
        of_tool = {r.quantity for r in self._readings if r.stream == 'tool'}
        self._reads_tool = bool(self._from_tool or of_tool)
        self._reads_orientation = 'orientation' in of_tool

    def observe(self, streams: Streams) -> Observation:
        """Return {field: [..., *shape]}; leading axes stay.

        Raises ContractMismatch where a stream or quantity is missing or of another shape.
        """
        streams = dict(streams)
        if self._reads_tool and 'tool' not in streams and 'joint_states' in streams:
            self._add_tool(streams)
        for stream in self._from_tool & streams.keys():
            vector = np.asarray(streams[stream]['position']) - streams['tool']['position']
            streams[stream] = {**streams[stream], FROM_TOOL: vector}
        return {reading.name: reading.read(streams) for reading in self._readings}

    def _add_tool(self, streams: dict[str, Mapping[str, np.ndarray]]) -> None:
        if self._chain is None:
            return
        joints = streams['joint_states']['position']
        if self._reads_orientation:  # costs more than the position
            position, orientation = self._chain.forward(joints)
            streams['tool'] = {'position': position, 'orientation': orientation}
        else:
            streams['tool'] = {'position': self._chain.position(joints)}


class _Reading(NamedTuple):
    """Where a field's values stand: a stream's quantity and, of that, the elements `index`."""

    name: str
    stream: str
    quantity: str
    index: list[int] | None
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, field: ObservationField, joints: tuple[str, ...]) -> Self:
        """Look up where the elements that `field` names stand; `joints`: those of the chain."""
        elements = POSE_ELEMENTS.get(field.quantity, field.names)
        if field.kind == 'joints' or field.stream == 'command':
            elements = joints
        index = None
        if field.names and field.names != elements:
            index = _indices(field, elements)
        shape = tuple(field.shape)
        return cls(field.name, field.stream, field.quantity, index, shape, field.dtype)

    def read(self, streams: Streams) -> np.ndarray:
        """Return the values [..., *shape], the elements in the field's order, as its dtype."""
        try:
            values = streams[self.stream][self.quantity]
        except KeyError:
            found = [f'{stream}.{quantity}' for stream in streams for quantity in streams[stream]]
            raise ContractMismatch(
                f'observation {self.name}: no {self.source!r}; found {", ".join(found) or "none"}'
            ) from None
        if not hasattr(values, 'astype'):  # as a column of recorded pictures has, undecoded
            values = np.asarray(values)
        if self.index is not None:
            values = values[..., self.index]
        if values.shape[values.ndim - len(self.shape) :] != self.shape:
            raise ContractMismatch(
                f'observation {self.name}: {self.source} has shape {list(values.shape)}, '
                f'right is [..., {", ".join(map(str, self.shape))}]'
            )
        return values.astype(self.dtype)

    @property
    def source(self) -> str:
        """As ObservationField.source."""
        return f'{self.stream}.{self.quantity}'


def _indices(field: ObservationField, elements: tuple[str, ...]) -> list[int]:
    unknown = [name for name in field.names if name not in elements]
    if unknown:
        raise ContractMismatch(
            f'observation {field.name}: {unknown} missing in {field.source}, '
            f'which has {list(elements)}'
        )
    return [elements.index(name) for name in field.names]


def with_history(contract: Contract, observation: Observation) -> Observation:
    """Return the steps of one episode {field: [T, *shape]} as History gives them one by one."""
    stacked = dict(observation)
    for field in contract.observation:
        if field.history > 1:
            steps = np.arange(len(observation[field.name]))[:, None]
            rows = np.maximum(steps + np.arange(1 - field.history, 1), 0)
            stacked[field.name] = observation[field.name][rows]
    return stacked


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
        stacked = self.stacked(observation, first)
        self.keep(stacked)
        return stacked

    def keep(self, stacked: Observation) -> None:
        """Let what stacked() has returned be the last step."""
        self._stacks = {field.name: stacked[field.name] for field in self._fields}

    def stacked(self, observation: Observation, first: np.ndarray | None = None) -> Observation:
        """Return what push() would, and add nothing."""
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
            stacked[field.name] = stack
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
        return cls(field.name, field.age_limit_s, field.is_set)


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
        self._gripper = robot.gripper if 'gripper' in self._kinds else None
        self._observer = Observer(contract, chain)
        self._indices = functools.lru_cache(maxsize=16)(robot.indices)  # the same names each time
        self._history = History(contract)
        self._samples: dict[str, _Sample] = {}
        self.version = 0  # counts the samples that were taken

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
            names = tuple(names or self.robot.driver_joints)
            taken = self._joint_values(stream, stamp_s, values, names)
        elif kind == 'image':
            taken = {quantity: np.asarray(pixels) for quantity, pixels in values.items()}
        else:
            taken = _pose_values(stream, values)
        self._samples[stream] = _Sample(stamp_s, taken)
        self.version += 1

    def withdraw(self, stream: str) -> None:
        """Forget the newest sample of `stream`: nothing of it has come."""
        self._samples.pop(stream, None)
        self.version += 1

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

    def require(self, now_s: float) -> None:
        """Raise ContractMismatch where missing() has something to say."""
        problems = self.missing(now_s)
        if problems:
            raise ContractMismatch('observation: ' + '; '.join(problems))

    def assemble(self, now_s: float, command: ArrayLike) -> tuple[Observation, float]:
        """Return ({field: [*full_shape]}, stamp of the joint_states it was made of).

        `command` [n] is the last commanded position. keep() moves the history on, once a control
        tick. Raises ContractMismatch as require() does.
        """
        self.require(now_s)
        streams = {stream: sample.values for stream, sample in self._samples.items()}
        streams['command'] = {'position': require_finite('command', command)}
        if self._gripper is not None:
            streams['gripper'] = {'width': streams['joint_states']['width']}
        observation = self._observer.observe(streams)
        return self._history.stacked(observation), self._samples['joint_states'].stamp_s

    def keep(self, observation: Observation) -> None:
        """Let what assemble() has returned be what was seen at the last tick."""
        self._history.keep(observation)

    def _joint_values(
        self, stream: str, stamp_s: float, values: Mapping[str, ArrayLike], names: tuple[str, ...]
    ) -> dict[str, np.ndarray]:
        index = self._indices(names)
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
        if stream == 'joint_states' and self._gripper is not None:
            taken['width'] = self._width(position, names)
        return taken

    def _width(self, position: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        """Return the gripper's width [1] [m]. Raises ContractMismatch without its joint."""
        joint = self.robot.driver_gripper
        if joint not in names:
            raise ContractMismatch(
                f'gripper.width: its joint {joint!r} is missing in joint_states, which has '
                f'{list(names)}'
            )
        place = position[[names.index(joint)]]
        return require_finite('gripper.width', self._gripper.width(place))

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
