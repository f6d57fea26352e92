"""Priorities: how often each row of Steps is drawn, kept in a sum tree.

Proportional prioritised replay: Schaul et al. 2016, Prioritized Experience Replay, section 3.3.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from robot_rl.errors import StorageError

# Children of a node: of 2 to 64 the one that draws fastest from a million rows.
_FAN = 16
_LARGEST = float(np.finfo(np.float32).max)


class Priorities:
    """A priority p_i for each of `rows` flat rows; row i is drawn with P_i ~ p_i^alpha.

    alpha 0 is uniform, 1 proportional; beta 0 leaves the bias that the priorities bring, 1 makes
    up for all of it. `beta` may be changed between draws (the paper raises it to 1 while it
    learns). Rows without a priority are never drawn. Leaves are assigned and the nodes above
    recomputed as sums, so rounding does not add up over updates.

    Raises StorageError where alpha or beta is not in [0, 1].
    """

    def __init__(self, rows: int, alpha: float = 0.6, beta: float = 0.4):
        for name, value in {'alpha': alpha, 'beta': beta}.items():
            if not 0 <= value <= 1:
                raise StorageError(f'priorities: {name} {value} must be in [0, 1]')
        self.rows, self.alpha, self.beta = rows, alpha, beta
        self.largest = 1.0  # priority seen; that of the first rows counts
        # Arrays [nodes, _FAN], from p_i^alpha up to the children of the root.
        self._levels = [np.zeros((max(-(-rows // _FAN), 1), _FAN))]
        while len(self._levels[-1]) > 1:
            self._levels.append(np.zeros((-(-len(self._levels[-1]) // _FAN), _FAN)))

    @property
    def total(self) -> float:
        """The sum of all p_i^alpha; 0 where there is nothing to draw."""
        return float(self._levels[-1].sum())

    def set(self, rows: np.ndarray, priorities: np.ndarray | float) -> None:
        """Give `rows` [M] their `priorities` [M]; of a row named twice the last one counts.

        Raises StorageError for a priority that is negative, not finite or beyond float32.
        """
        rows = np.asarray(rows)
        priorities = np.broadcast_to(np.asarray(priorities, np.float64), rows.shape)
        good = (priorities >= 0) & (priorities <= _LARGEST)
        if not good.all():
            row, priority = rows[~good][0], priorities[~good][0]
            raise StorageError(
                f'priorities: row {row} has priority {priority}, expected a finite float32 of 0 '
                'or more; check the errors that the learner makes priorities of'
            )
        if rows.size:
            self.largest = max(self.largest, float(priorities.max()))
            self._assign(rows, priorities**self.alpha)

    def set_newest(self, rows: np.ndarray) -> None:
        """Give new `rows` [M] the largest priority seen (1 at first), so that each gets a turn."""
        self._assign(np.asarray(rows), self.largest**self.alpha)

    def draw(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Return rows [size] int64, each drawn independently in proportion to p_i^alpha.

        They are not stratified as in the paper's appendix B.2.1: whoever refuses or cuts off some
        of an independent draw keeps the proportions among the others.

        Raises StorageError where no row has a priority above 0.
        """
        if not self.total:
            raise StorageError('priorities: no row has a priority above 0; set some, then draw')
        value = rng.random(size) * self.total
        node, draws = np.zeros(size, np.int64), np.arange(size)
        sums = np.zeros((size, _FAN + 1))  # before each child, and behind the last one
        for level in reversed(self._levels):
            np.cumsum(level[node], axis=1, out=sums[:, 1:])
            # Rounding may have put the value behind the last child that has a priority.
            value = np.minimum(value, np.nextafter(sums[:, -1], 0))
            child = (sums[:, 1:] <= value[:, None]).sum(axis=1)
            value = value - sums[draws, child]
            node = node * _FAN + child
        return node

    def weights(self, rows: np.ndarray) -> np.ndarray:
        """Return importance weights w_i / max_j w_j [M] float32 of drawn `rows`.

        w_i = (N P_i)^-beta (section 3.4); N and the sum in P_i cancel in the quotient, so it
        does not matter which rows could not be served.
        """
        scaled = np.maximum(self.scaled(rows), np.finfo(np.float64).tiny)
        return ((scaled.min(initial=np.inf) / scaled) ** self.beta).astype(np.float32)

    def scaled(self, rows: np.ndarray) -> np.ndarray:
        """Return p_i^alpha of `rows`, in their shape."""
        return self._levels[0].reshape(-1)[rows]

    def save(self, rows: np.ndarray) -> dict[str, Any]:
        """Return what `restore` needs to give `rows`, of any shape, their priorities back."""
        return {'scaled': self.scaled(rows), 'largest': self.largest}

    def restore(self, rows: np.ndarray, saved: Mapping[str, Any]) -> None:
        """Take back what `save` returned; other rows lose their priority.

        Draws are those of before where the rows are those of before.
        """
        leaves = np.zeros(self._levels[0].size)
        leaves[rows] = np.asarray(saved['scaled'])
        self.largest = float(saved['largest'])
        self._assign(np.arange(leaves.size), leaves)

    def _assign(self, rows: np.ndarray, scaled: np.ndarray | float) -> None:
        """Write leaves, then each sum that depends on one of them."""
        self._levels[0].reshape(-1)[rows] = scaled
        for below, above in itertools.pairwise(self._levels):
            # Many rows share few nodes: then each node is summed once, instead of once a row.
            rows = rows // _FAN if rows.size < len(below) else np.arange(len(below))
            above.reshape(-1)[rows] = below[rows].sum(axis=1)
