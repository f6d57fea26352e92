"""Names as ROS 2 has them; source: docs.ros.org, Topic and Service name mapping to DDS."""

from __future__ import annotations

import re
from typing import Annotated

import pydantic

from robot_rl.specs.files import of_files

# Tokens of letters, digits and _ between slashes.
_TOKENS = r'[A-Za-z_]\w*(/[A-Za-z_]\w*)*'


def _topic(name: str) -> str:
    if not re.fullmatch(f'/?{_TOKENS}', name, re.ASCII):
        raise ValueError(
            f'{name!r} is no name of a ROS topic: letters, digits and _ between slashes, such as '
            "'controller/commands'"
        )
    return name


def _topic_or_none(name: str) -> str:
    return name and _topic(name)


def require_namespace(name: str) -> str:
    """Return `name`, a namespace, or '' or '/', which are none. Raises ValueError."""
    if not re.fullmatch(f'/?({_TOKENS})?', name, re.ASCII):
        raise ValueError(
            f'{name!r} is no ROS namespace: letters, digits and _, and no digit first, such as '
            "'left'"
        )
    return name


def _prefix(text: str) -> str:
    if not re.fullmatch(r'[\w./-]*', text, re.ASCII):
        raise ValueError(
            f'{text!r} is no beginning of the names of joints and frames: letters, digits and '
            "_ . / -, such as 'left_'"
        )
    return text


def _relative(name: str) -> str:
    if name.startswith('/'):
        raise ValueError(f'{name!r} begins with /: it is the beginning of topics and frames')
    return _topic(name)


Topic = Annotated[str, of_files(_topic)]
TopicOrNone = Annotated[str, of_files(_topic_or_none)]
Relative = Annotated[str, of_files(_relative)]
Namespace = Annotated[str, pydantic.AfterValidator(require_namespace)]
Prefix = Annotated[str, of_files(_prefix)]
