"""Who commanded the arm: of every step, and how often a person took over."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

# What stands in the column `source` of an episode's steps.
POLICY, PERSON, HOLD, ESTOP = range(4)
NAMES = 'policy', 'person', 'hold', 'estop'
# As command_guard calls them; while it is 'starting' or 'idle' nobody commands.
_NUMBERS = {'policy': POLICY, 'hold': HOLD, 'estop': ESTOP, 'starting': HOLD, 'idle': HOLD}


def number(source: str) -> int:
    """Return a source of command_guard as a number; any but the policy is a person's device."""
    return _NUMBERS.get(source, PERSON)


def by_policy(source: str) -> bool:
    """Tell whether the `source` of an episode's header is a policy, as where it says nothing."""
    return source in ('', 'policy')


def count_steps(column: np.ndarray) -> dict[str, int]:
    """Return how many steps each source led, of a column `source` [T]."""
    found = np.bincount(column, minlength=len(NAMES)).tolist()
    return {name: count for name, count in zip(NAMES, found, strict=True) if count}


def count_interventions(sources: Iterable[int]) -> int:
    """Return how often a person took over, of who led in turn, step by step or change by change.

    A person who lets go and commands again before the policy does has not given back. Of an
    episode that a policy runs: one in which a person leads from the first step on begins with one.
    """
    led = [source for source in sources if source in (POLICY, PERSON)]
    return sum(pair == (POLICY, PERSON) for pair in itertools.pairwise([POLICY, *led]))
