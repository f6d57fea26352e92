"""Rules for what people write now, which what was recorded before them need not keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pydantic

# As pydantic's context: what is read was recorded, by a robot_rl of its time.
RECORDED = {'recorded': True}


def was_recorded(info: pydantic.ValidationInfo) -> bool:
    """Tell whether what is validated is a part of an episode."""
    return bool(info.context and info.context.get('recorded'))


def of_files(check: Callable[[Any], Any]) -> pydantic.AfterValidator:
    """Return the validator that holds values to `check`, but for those that were recorded."""

    def validate(value: Any, info: pydantic.ValidationInfo) -> Any:
        return value if was_recorded(info) else check(value)

    return pydantic.AfterValidator(validate)


def at_most(bound: float, words: str) -> pydantic.AfterValidator:
    """Return the validator of numbers up to `bound`; `words` say what more of it would mean."""

    def check(value: float) -> float:
        if value > bound:
            raise ValueError(f'{value:g}: at most {bound:g} is right{words}')
        return value

    return of_files(check)
