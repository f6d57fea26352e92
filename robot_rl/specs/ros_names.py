"""Names as ROS 2 has them; source: docs.ros.org, Topic and Service name mapping to DDS."""

from __future__ import annotations

import re
from typing import Annotated

import pydantic

# Tokens of letters, digits and _ between slashes.
_TOKENS = r'[A-Za-z_]\w*(/[A-Za-z_]\w*)*'


def _topic(name: str) -> str:
    if not re.fullmatch(f'(~/|/)?{_TOKENS}', name, re.ASCII):
        raise ValueError(
            f'{name!r} is no name of a ROS topic: letters, digits and _ between slashes, such as '
            "'controller/commands'"
        )
    return name


def require_namespace(name: str) -> str:
    """Return `name`, a namespace or '', which is none. Raises ValueError."""
    if not re.fullmatch(f'(/?{_TOKENS})?', name, re.ASCII):
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


Topic = Annotated[str, pydantic.AfterValidator(_topic)]
Namespace = Annotated[str, pydantic.AfterValidator(require_namespace)]
Prefix = Annotated[str, pydantic.AfterValidator(_prefix)]
