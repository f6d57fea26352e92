"""Several queries in one batch: each part has its share, by exact quota or by chance.

Mixing by quota is how Cabi et al. 2019 (Scaling data-driven robotics with reward sketching and
batch reinforcement learning, 75 % everything and 25 % the task) draw their batches; per-element
Bernoulli is that of R2D3 (Gulcehre et al. 2020, Making efficient use of demonstrations).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from robot_rl.errors import StorageError
from robot_rl.storage.priorities import Priorities
from robot_rl.storage.steps import Steps

Mixing = Literal['quota', 'bernoulli']


class Part:
    """The starts that a share of each batch is drawn from.

    `spans` [E, 2] are flat rows [begin, end) of Steps, the rows of E episodes say, ascending and
    apart; None: all that Steps has. Starts are drawn uniformly, or in proportion to
    `priorities`, which should give rows outside of the spans none: they are drawn and refused.

    Raises StorageError for a share that is not a positive number, and for spans that are empty,
    out of order or overlap.
    """

    def __init__(
        self,
        share: float = 1.0,
        spans: np.ndarray | None = None,
        priorities: Priorities | None = None,
    ):
        if not 0 < share < np.inf:
            raise StorageError(f'mixture: share {share}, expected a number above 0')
        self.share, self.priorities = share, priorities
        self.spans = None if spans is None else np.asarray(spans, np.int64).reshape(-1, 2)
        if self.spans is not None:
            borders = self.spans.reshape(-1)
            if (
                not len(borders)
                or (np.diff(borders)[::2] < 1).any()
                or (np.diff(borders) < 0).any()
            ):
                raise StorageError(
                    'mixture: spans must be rows [begin, end) of at least one episode, ascending '
                    'and apart'
                )
            lengths = np.diff(self.spans, axis=1)[:, 0]
            self._ends = np.cumsum(lengths)  # of the spans, in the rows of all of them together
            self._shifts = self.spans[:, 1] - self._ends

    @property
    def drawable(self) -> bool:
        """Whether there is a row to draw."""
        return self.priorities is None or self.priorities.total > 0

    def draw(
        self, rng: np.random.Generator, steps: Steps, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return lane and age of at most `size` rows, each drawn independently."""
        if self.priorities is not None:
            rows = self.priorities.draw(rng, size)
            return steps.places(rows[self.holds(rows)])
        if self.spans is None:
            return np.divmod(rng.integers(steps.lanes * steps.size, size=size), steps.size)
        row = rng.integers(self._ends[-1], size=size)
        return steps.places(row + self._shifts[np.searchsorted(self._ends, row, side='right')])

    def holds(self, rows: np.ndarray) -> np.ndarray:
        """Return which of the flat `rows` [M] belong to this part."""
        if self.spans is None:
            return np.ones(len(rows), bool)
        span = np.searchsorted(self.spans[:, 1], rows, side='right')
        begins = np.append(self.spans[:, 0], np.iinfo(np.int64).max)
        return rows >= begins[span]

    def shares_of(self, rows: np.ndarray) -> np.ndarray | None:
        """Return the probability of each of the flat `rows` [M] of this part; None: all alike.

        Raises StorageError where none of them has a priority.
        """
        if self.priorities is None:
            return None
        scaled = self.priorities.scaled(rows)
        if not scaled.any():
            raise StorageError(
                f'window sampler: none of {len(scaled)} windows has a priority above 0; '
                'give rows a priority when they are written'
            )
        return scaled / scaled.sum()

    def weights(self, steps: Steps, lane: np.ndarray, age: np.ndarray) -> np.ndarray:
        """Return the importance weights [B] float32 of drawn starts; without priorities 1."""
        if self.priorities is None:
            return np.ones(len(lane), np.float32)
        return self.priorities.weights(steps.rows(lane, age))

    def update_priorities(self, rows: np.ndarray, priorities: np.ndarray) -> None:
        """Give those of `rows` [M] that belong to this part their new priorities [M]."""
        if self.priorities is not None:
            here = self.holds(rows)
            self.priorities.set(rows[here], priorities[here])


class Mixture:
    """How many elements of a batch each part gets, and how many each has had.

    'quota': as many as its share of each batch, exactly where that is a whole number; else the
    parts that lag behind most get one more, so that the shares are exact in the long run.
    'bernoulli': each element's part is drawn, independently, by the shares.

    Raises StorageError where there is no part, or a span lies outside of `rows` flat rows.
    """

    def __init__(self, parts: Mapping[str, Part], rows: int, mixing: Mixing = 'quota'):
        if not parts:
            raise StorageError('mixture: no part to draw from')
        if mixing not in get_args(Mixing):
            raise StorageError(f'mixture: {mixing!r}, expected one of {list(get_args(Mixing))}')
        for name, part in parts.items():
            if part.priorities is not None and part.priorities.rows != rows:
                raise StorageError(
                    f'mixture: priorities of {part.priorities.rows} rows do not belong to '
                    f'{rows} rows of steps (part {name!r})'
                )
            if part.spans is not None and not 0 <= part.spans[0, 0] < part.spans[-1, 1] <= rows:
                raise StorageError(
                    f'mixture: part {name!r} spans rows {part.spans[0, 0]} to '
                    f'{part.spans[-1, 1]}, outside of {rows} rows of steps'
                )
        self.names, self.parts, self.mixing = list(parts), list(parts.values()), mixing
        shares = np.array([part.share for part in self.parts])
        self.shares = shares / shares.sum()
        self.drawn = np.zeros(len(self.parts), np.int64)  # elements from each part so far

    def counts(self, rng: np.random.Generator, size: int) -> list[int]:
        """Return how many of `size` elements come from each part [P], and take note of it."""
        counts = self._counts(rng, size) if len(self.parts) > 1 else [size]
        self.drawn += counts
        return counts

    def _counts(self, rng: np.random.Generator, size: int) -> list[int]:
        if self.mixing == 'bernoulli':
            # Independent draws, counted: which element is whose does not matter in a batch.
            return rng.multinomial(size, self.shares).tolist()
        counts = np.floor(self.shares * size + 1e-9).astype(np.int64)  # 0.7 * 10 is below 7
        owed = self.shares * (self.drawn.sum() + size) - self.drawn - counts
        counts[np.argsort(-owed, kind='stable')[: size - counts.sum()]] += 1
        return counts.tolist()

    def fractions(self) -> dict[str, float]:
        """Return each part's share of all elements drawn so far, as it came out."""
        total = max(int(self.drawn.sum()), 1)
        return {name: int(n) / total for name, n in zip(self.names, self.drawn, strict=True)}
