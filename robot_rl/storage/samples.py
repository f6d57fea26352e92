"""Samples: what an episode's messages say, stream by stream, in the order in which they came."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from robot_rl.specs import ObservationField
from robot_rl.specs.contract import POSE_ELEMENTS
from robot_rl.storage.episode import EpisodeReader
from robot_rl.storage.streams import StreamMessage

# Makes one sample {quantity: values} of a message; raises ValueError where it is none.
Take = Callable[[Any], dict[str, Any]]
Sample = tuple[int, int, dict[str, Any]]  # arrival and stamp [ns], values


@dataclasses.dataclass
class Series:
    """M samples of one stream in the order in which they came.

    A message that is no sample (joints that are missing, a number that is not finite, half a
    picture) is passed over, as beside the arm: the sample before it holds.
    """

    arrivals_ns: np.ndarray  # [M] on the recorder's clock
    stamps_ns: np.ndarray  # [M] on the sensor's
    values: dict[str, Any]  # {quantity: [M, ...], or a list of M files}
    refusal: str = ''  # why the first message that was no sample was none

    @classmethod
    def of(cls, samples: Sequence[Sample], refusal: str = '') -> Series:
        """Put samples into the order of their arrival."""
        samples = sorted(samples, key=lambda sample: sample[0])
        times = np.array([sample[:2] for sample in samples], np.int64).reshape(-1, 2)
        values: dict[str, Any] = {}
        for quantity in samples[0][2] if samples else ():
            column = [sample[2][quantity] for sample in samples]
            values[quantity] = column if isinstance(column[0], bytes) else np.array(column)
        return cls(times[:, 0], times[:, 1], values, refusal)

    def __len__(self) -> int:
        return len(self.arrivals_ns)

    def where(self, chosen: np.ndarray) -> Series:
        """Return the samples that a mask [M] of them chooses, of quantities that are arrays."""
        values = {quantity: column[chosen] for quantity, column in self.values.items()}
        return Series(self.arrivals_ns[chosen], self.stamps_ns[chosen], values, self.refusal)

    def known(self, times_ns: np.ndarray) -> np.ndarray:
        """Return which sample was the newest to have come by each of `times_ns`; -1: none was."""
        return np.searchsorted(self.arrivals_ns, times_ns, side='right') - 1

    def stamped(self, times_ns: np.ndarray) -> np.ndarray:
        """Return which sample was stamped last by each of `times_ns`; -1: none was."""
        order = np.argsort(self.stamps_ns, kind='stable')
        found = np.searchsorted(self.stamps_ns[order], times_ns, side='right') - 1
        return np.where(found < 0, -1, order[found])


def read_series(
    episode: EpisodeReader, topics: Mapping[str, tuple[str, Take]]
) -> dict[str, Series]:
    """Read the messages of `topics`, {topic: (stream, what makes a sample of a message)}.

    Every stream has a series, an empty one where it has no samples. Raises StorageError where
    the episode cannot be read.
    """
    found: dict[str, list[Sample]] = {stream: [] for stream, _ in topics.values()}
    refusals: dict[str, str] = defaultdict(str)
    for item in episode.messages(topics):
        stream, take = topics[item.topic]
        try:
            values = take(item.message)
        except ValueError as error:
            refusals[stream] = refusals[stream] or f'a message on {item.topic}: {error}'
        else:
            found[stream].append((item.log_time_ns, stamp_ns(item), values))
    return {stream: Series.of(part, refusals[stream]) for stream, part in found.items()}


def stamp_ns(item: StreamMessage) -> int:
    """Return the time of a message's sample; that of its publication where it has none."""
    if not hasattr(item.message, 'header'):
        return item.publish_time_ns
    stamp = item.message.header.stamp
    return stamp.sec * 1_000_000_000 + stamp.nanosec or item.publish_time_ns


def point_positions(message: Any, wanted: Sequence[str]) -> np.ndarray:
    """Return the positions of a JointTrajectory's one point in the order `wanted`."""
    if len(message.points) != 1:
        raise ValueError(f'{len(message.points)} points, expected one')
    return _by_name(message.joint_names, message.points[0].positions, wanted)


def joint_state(message: Any, joints: Sequence[str]) -> dict[str, np.ndarray]:
    """Return position and velocity [n] of a JointState in the order `joints`.

    A message without names has them in that order; velocities that are left out are NaN.
    """
    names = message.name or joints
    velocity = message.velocity if len(message.velocity) else [np.nan] * len(names)
    position = _by_name(names, message.position, joints)
    return {
        'position': _finite(position, 'position'),
        'velocity': _by_name(names, velocity, joints),
    }


def width(message: Any) -> dict[str, np.ndarray]:
    """Return position [1] [m] of a Float64MultiArray that a gripper is told."""
    values = np.array(message.data, np.float64)
    if values.shape != (1,):
        raise ValueError(f'{values.size} widths, expected one')
    return {'position': _finite(values, 'width')}


def pose(message: Any) -> dict[str, np.ndarray]:
    """Return position [3] and orientation [4] (wxyz) of a PoseStamped."""
    parts = message.pose.position, message.pose.orientation
    return {
        quantity: _finite(np.array([getattr(part, e) for e in elements], np.float64), quantity)
        for (quantity, elements), part in zip(POSE_ELEMENTS.items(), parts, strict=True)
    }


def picture(message: Any, field: ObservationField) -> dict[str, bytes]:
    """Return the file of a picture that decodes to what the live path makes of the message.

    What came compressed is kept as it came. What came raw is brought to the field's size and made
    a JPEG, as beside the arm, where it is decoded again; or a PNG, where the field is lossless.
    """
    from robot_rl import images  # OpenCV takes a while: only who reads pictures imports it

    if hasattr(message, 'format'):
        images.decoded(message.data, field.shape)  # or refused, as beside the arm
        return {'image': bytes(message.data)}
    size = message.height, message.width
    seen = images.unpacked(message.data, message.encoding, size, message.step, field.shape)
    return {'image': images.lossless(seen) if field.lossless else images.as_jpeg(seen)}


def fill_velocities(series: Series, rule: Literal['none', 'zero', 'difference']) -> Series:
    """Put what `rule` says where the driver gave no velocity, as control.observation does.

    By 'none' a sample without velocities is no sample.
    """
    velocity, position = series.values['velocity'], series.values['position']
    absent = ~np.isfinite(velocity)
    if rule == 'none':
        whole = ~absent.any(axis=1)
        found = series.where(whole)
        if not whole.all():
            found.refusal = (
                found.refusal or "velocities are missing, and the contract's fill rule is 'none'"
            )
        return found
    elapsed_s = np.diff(series.stamps_ns, prepend=series.stamps_ns[:1]) * 1e-9
    filled = np.where(absent, 0.0, velocity)
    for row in np.flatnonzero(absent.any(axis=1)) if rule == 'difference' else ():
        stand_in = np.zeros_like(position[row])
        if row and elapsed_s[row] > 0:
            stand_in = (position[row] - position[row - 1]) / elapsed_s[row]
        elif row:  # sent twice or out of order: no time to divide by
            stand_in = filled[row - 1]
        filled[row] = np.where(absent[row], stand_in, velocity[row])
    return dataclasses.replace(series, values=series.values | {'velocity': filled})


def _by_name(names: Sequence[str], values: Sequence[float], wanted: Sequence[str]) -> np.ndarray:
    """Return the values of the names `wanted`. Raises ValueError where they do not fit."""
    if len(names) != len(values):
        raise ValueError(f'{len(values)} values for {len(names)} names')
    found = dict(zip(names, values, strict=True))
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f'{missing} missing among the names {list(names)}')
    return np.array([found[name] for name in wanted], dtype=np.float64)


def _finite(values: np.ndarray, quantity: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError(f'{quantity} is not finite: {values.tolist()}')
    return values
