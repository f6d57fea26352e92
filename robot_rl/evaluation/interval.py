"""How far a success rate is to be trusted."""

from __future__ import annotations

import math

# The 97.5 % quantile of the normal distribution: 95 % lie within it on both sides.
_Z = 1.959963984540054


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a success rate (Wilson 1927, score interval without correction).

    It stays within [0, 1] and is right for few trials and for rates of 0 and 1, too. Without a
    trial nothing is known: (0, 1).
    """
    if not trials:
        return 0.0, 1.0
    rate, z2 = successes / trials, _Z**2
    middle = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials**2))
    half = _Z * spread / (1 + z2 / trials)
    return max(0.0, middle - half), min(1.0, middle + half)
