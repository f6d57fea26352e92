"""Names as ROS 2 has them; source: docs.ros.org, Topic and Service name mapping to DDS."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

import pydantic

from robot_rl.specs.files import of_files

# Tokens of letters, digits and _ between slashes.
_TOKENS = r'[A-Za-z_]\w*(/[A-Za-z_]\w*)*'


def _matching(pattern: str, words: str) -> Callable[[str], str]:
    """Return what returns a text that matches, and raises ValueError for another: no `words`."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise ValueError(f'{text!r} is no {words}')
        return text

    return check


_topic = _matching(
    f'/?{_TOKENS}',
    "name of a ROS topic: letters, digits and _ between slashes, such as 'controller/commands'",
)
# '' and '/' are none, and right.
require_namespace = _matching(
    f'/?({_TOKENS})?',
    "ROS namespace: letters, digits and _, and no digit first, such as 'left'",
)
_prefix = _matching(
    r'[\w./-]*',
    "beginning of the names of joints and frames: letters, digits and _ . / -, such as 'left_'",
)


def _topic_or_none(name: str) -> str:
    return name and _topic(name)


def _relative(name: str) -> str:
    if name.startswith('/'):
        raise ValueError(f'{name!r} begins with /: it is the beginning of topics and frames')
    return _topic(name)


Topic = Annotated[str, of_files(_topic)]
TopicOrNone = Annotated[str, of_files(_topic_or_none)]
Relative = Annotated[str, of_files(_relative)]
Namespace = Annotated[str, pydantic.AfterValidator(require_namespace)]
Prefix = Annotated[str, of_files(_prefix)]
