"""Message definitions as text, found in the share folders of a ROS installation, without rclpy."""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path

from robot_rl.errors import StorageError

_PRIMITIVES = {'bool', 'byte', 'char', 'float32', 'float64', 'string', 'wstring'} | {
    f'{sign}int{bits}' for sign in ('', 'u') for bits in (8, 16, 32, 64)
}
# The first word of a line in a .msg file is a type: package/Name, Name or a primitive one,
# perhaps bounded (string<=10) and perhaps an array; a constant looks the same up to here.
_FIELD_TYPE = re.compile(r'^\s*([A-Za-z]\w*(?:/[A-Za-z]\w*)*)(?:<=\d+)?(?:\[[^\]]*\])?\s+\w+')
_SEPARATOR = '=' * 80


@functools.cache
def message_definition(type_name: str) -> str:
    """Return the definition of `type_name` ('sensor_msgs/msg/JointState') for an MCAP schema.

    The text is rosbag2's 'ros2msg': the .msg file, then each type it depends on, once, after a
    line of '=' and 'MSG: package/Name'. The files are found below share/<package>/msg in
    AMENT_PREFIX_PATH and in this Python's prefix. Raises StorageError where one is missing.
    """
    package, name = _split(type_name)
    parts, pending, seen = [], [(package, name)], {(package, name)}
    while pending:
        package, name = pending.pop(0)
        text = _message_file(package, name).read_text(encoding='utf-8')
        parts.append(f'MSG: {package}/{name}\n{text}' if parts else text)
        for dependency in _dependencies(package, text):
            if dependency not in seen:
                seen.add(dependency)
                pending.append(dependency)
    return f'\n{_SEPARATOR}\n'.join(part.rstrip('\n') for part in parts) + '\n'


def _split(type_name: str) -> tuple[str, str]:
    parts = type_name.split('/')
    if len(parts) not in (2, 3) or (len(parts) == 3 and parts[1] != 'msg') or '' in parts:
        raise StorageError(
            f"message type {type_name!r}: expected 'package/msg/Name', e.g. 'std_msgs/msg/String'"
        )
    return parts[0], parts[-1]


def _message_file(package: str, name: str) -> Path:
    prefixes = [p for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    prefixes.append(sys.prefix)
    for prefix in prefixes:
        path = Path(prefix) / 'share' / package / 'msg' / f'{name}.msg'
        if path.is_file():
            return path
    raise StorageError(
        f'message type {package}/msg/{name}: no share/{package}/msg/{name}.msg below '
        f'{", ".join(prefixes)}; source the ROS workspace that holds {package}'
    )


def _dependencies(package: str, text: str) -> list[tuple[str, str]]:
    """Return the message types, as (package, name), that the fields of a definition have."""
    found = []
    for line in text.splitlines():
        match = _FIELD_TYPE.match(line.split('#')[0])
        if match and match[1] not in _PRIMITIVES:
            parts = match[1].split('/')
            found.append((parts[0] if len(parts) > 1 else package, parts[-1]))
    return found
