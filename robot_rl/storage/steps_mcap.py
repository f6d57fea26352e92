"""Writes columns as messages, so that what shows MCAP files shows an episode without streams."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.errors import StorageError
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.episode import EpisodeReader
from robot_rl.storage.pictures import Pictures
from robot_rl.storage.schemas import message_definition

_JOINT_STATE, _PICTURE = 'sensor_msgs/msg/JointState', 'sensor_msgs/msg/CompressedImage'
_IMAGE, _NUMBERS = 'sensor_msgs/msg/Image', 'std_msgs/msg/Float64MultiArray'
_JOINTS = 'joint_states.'
# topic, type, and for each row the fields of its message
_Stream = tuple[str, str, list[dict[str, Any]]]


def write(episode: EpisodeReader, path: Path) -> None:
    """Write an episode's columns and rewards into a new MCAP file, as ROS 2 messages.

    joint_states is a JointState, pictures are CompressedImages, columns [T, h, w] Images of
    floats, and all others, also the rewards, Float64MultiArrays. Raises StorageError where the
    columns cannot be read, the file not written, or a message's definition is not installed.
    """
    from mcap_ros2.writer import Writer

    columns = aligned_columns(episode)
    times_ns = np.round(columns['time'] * 1e9).astype(np.int64)
    told = [*_streams(episode, columns, times_ns), *_rewards(episode, times_ns)]
    kinds = {kind: message_definition(kind) for _, kind, _ in told}
    try:
        with path.open('xb') as file, contextlib.closing(_Finished(Writer(file))) as writer:
            schemas = {kind: writer.register_msgdef(kind, text) for kind, text in kinds.items()}
            rows = [
                (int(time_ns), topic, schemas[kind], message)
                for topic, kind, messages in told
                for time_ns, message in zip(times_ns, messages, strict=False)
            ]
            for time_ns, topic, schema, message in sorted(rows, key=lambda row: row[0]):
                writer.write_message(topic, schema, message, time_ns, time_ns)
    except OSError as error:
        raise StorageError(f'{path}: cannot be written ({error.strerror or error})') from None


class _Finished:
    """A writer that is finished by close()."""

    def __init__(self, writer: Any):
        self.register_msgdef, self.write_message = writer.register_msgdef, writer.write_message
        self.close = writer.finish


def _streams(
    episode: EpisodeReader, columns: Mapping[str, Any], times_ns: np.ndarray
) -> Iterator[_Stream]:
    headers = [_header(int(time_ns)) for time_ns in times_ns]
    joints = {
        name.removeprefix(_JOINTS): values
        for name, values in columns.items()
        if name.startswith(_JOINTS) and values.ndim == 2
    }
    if joints:
        yield '/joint_states', _JOINT_STATE, _joint_states(episode, joints, headers)
    for name, values in columns.items():
        topic = '/' + name.replace('.', '/').replace('-', '_')
        if isinstance(values, Pictures):
            yield topic, _PICTURE, [_picture(h, values.file(i)) for i, h in enumerate(headers)]
        elif values.ndim == 3 and values.dtype.kind == 'f':
            yield topic, _IMAGE, [_image(h, v) for h, v in zip(headers, values, strict=False)]
        elif name != 'time' and not name.startswith(_JOINTS):
            yield topic, _NUMBERS, [_numbers(row) for row in values]


def _rewards(episode: EpisodeReader, times_ns: np.ndarray) -> Iterator[_Stream]:
    for info in episode.rewards():
        values = episode.reward(info.id)
        if info.times_ns is not None:
            values = np.interp(times_ns, info.times_ns, values)
        place = ''.join(c if c.isalnum() and c.isascii() else '_' for c in info.author)
        yield f'/rewards/{info.kind}_{place}', _NUMBERS, [_numbers(value) for value in values]


def _joint_states(
    episode: EpisodeReader, quantities: Mapping[str, np.ndarray], headers: list[dict]
) -> list[dict[str, Any]]:
    count = next(iter(quantities.values())).shape[1]
    robot = episode.header.robot_spec
    names = list(robot.joints) if robot else [f'joint_{i}' for i in range(count)]
    return [
        {'header': header, 'name': names}
        | {
            quantity: quantities[quantity][row].tolist() if quantity in quantities else []
            for quantity in ('position', 'velocity', 'effort')
        }
        for row, header in enumerate(headers)
    ]


def _header(time_ns: int) -> dict[str, Any]:
    return {'stamp': {'sec': time_ns // 10**9, 'nanosec': time_ns % 10**9}, 'frame_id': ''}


def _picture(header: dict[str, Any], file: bytes) -> dict[str, Any]:
    kind = 'png' if file.startswith(b'\x89PNG') else 'jpeg'
    return {'header': header, 'format': kind, 'data': file}


def _image(header: dict[str, Any], values: np.ndarray) -> dict[str, Any]:
    height, width = values.shape
    data = np.ascontiguousarray(values, '<f4').tobytes()
    fields = {'height': height, 'width': width, 'encoding': '32FC1', 'is_bigendian': 0}
    return fields | {'header': header, 'step': 4 * width, 'data': data}


def _numbers(row: np.ndarray) -> dict[str, Any]:
    values = np.asarray(row, np.float64).ravel().tolist()
    return {'layout': {'dim': [], 'data_offset': 0}, 'data': values}
