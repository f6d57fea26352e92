"""One batch from several Steps: what an agent lives through, and recorded demonstrations.

R2D3 draws each element from the demonstrations with a small probability (Gulcehre et al. 2020,
Making efficient use of demonstrations), RLPD half of each batch (Ball et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from robot_rl.errors import StorageError
from robot_rl.storage.mixture import Mixing, Mixture, Part
from robot_rl.storage.sampler import Sequences, Transitions, WindowSampler

Batch = TypeVar('Batch', Transitions, Sequences)
Concatenate = Callable[[Sequence[Any], int], Any]

# Sequences have time first in all but these.
_BY_ELEMENT = {'state', 'weight', 'place'}


class Source(NamedTuple):
    """A sampler, and its share of each batch."""

    sampler: WindowSampler
    share: float


class MixedSampler:
    """Draws a share of each batch from each of `sources` {name: Source}, one after another.

    'quota' and 'bernoulli' are those of Mixture, and `mixture` counts what each source has had.
    How many elements a source gives comes from `rng`; which ones, from its sampler's own, which
    may be the same. Recurrent states that a source did not record are zeros there, as at the
    start of an episode. `place` numbers the rows of all sources on, so that update_priorities
    knows whose they are.

    `concatenate(arrays, axis)` puts together what the samplers take from their columns.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        mixing: Mixing = 'quota',
        rng: np.random.Generator | int = 0,
        concatenate: Concatenate = np.concatenate,
    ):
        self.rng, self._concatenate = np.random.default_rng(rng), concatenate
        self.mixture = Mixture({name: Part(s.share) for name, s in sources.items()}, 0, mixing)
        self._samplers = [source.sampler for source in sources.values()]
        rows = [sampler.steps.lanes * sampler.steps.length for sampler in self._samplers]
        self._ends = np.cumsum(rows)
        self._begins = self._ends - rows

    def transitions(self, batch_size: int) -> Transitions:
        """Return `batch_size` transitions; see WindowSampler.transitions."""
        return self._draw(batch_size, lambda sampler, count: sampler.transitions(count))

    def sequences(self, batch_size: int, length: int, burn_in: int = 0) -> Sequences:
        """Return `batch_size` sequences; see WindowSampler.sequences."""
        return self._draw(
            batch_size, lambda sampler, count: sampler.sequences(count, length, burn_in)
        )

    def update_priorities(self, place: np.ndarray, priorities: np.ndarray) -> None:
        """Give the starts at `place` [B] their new priorities [B], each in its own source."""
        source = np.searchsorted(self._ends, place, side='right')
        for number, sampler in enumerate(self._samplers):
            here = source == number
            sampler.update_priorities(place[here] - self._begins[number], priorities[here])

    def save(self) -> list[int]:
        """Return what `restore` needs, beside the generators' states, for the same quotas."""
        return self.mixture.drawn.tolist()

    def restore(self, saved: Sequence[int]) -> None:
        """Take back what `save` returned. Raises StorageError where it is of other sources."""
        if len(saved) != len(self._samplers):
            raise StorageError(
                f'mixed sampler: {len(saved)} sources were saved, {len(self._samplers)} are there'
            )
        self.mixture.drawn[:] = saved

    def _draw(self, batch_size: int, draw: Callable[[WindowSampler, int], Batch]) -> Batch:
        counts = self.mixture.counts(self.rng, batch_size)
        batches = []
        for sampler, count, begin in zip(self._samplers, counts, self._begins, strict=True):
            batch = draw(sampler, count)
            batches.append(batch._replace(place=batch.place + begin))
        return joined(batches, self._concatenate)


def joined(batches: Sequence[Batch], concatenate: Concatenate = np.concatenate) -> Batch:
    """Return several batches of one kind as one, in their order."""
    kind = type(batches[0])
    by_time = 0 if kind is Transitions else 1

    def put_together(name: str) -> Any:
        values = [getattr(batch, name) for batch in batches]
        if name == 'state':
            values = _with_zeros(values, [len(batch.place) for batch in batches])
        axis = 0 if name in _BY_ELEMENT else by_time
        if isinstance(values[0], dict):
            return {key: concatenate([v[key] for v in values], axis) for key in values[0]}
        return concatenate(values, axis)

    return kind(*(put_together(name) for name in kind._fields))


def _with_zeros(states: Sequence[dict[str, Any]], counts: Sequence[int]) -> list[dict[str, Any]]:
    """Return states {name: [B, ...]} with zeros for those that only others have."""
    known = {name: value for state in states for name, value in state.items()}
    return [
        {
            name: state[name] if name in state else _zeros_like(value, count)
            for name, value in known.items()
        }
        for state, count in zip(states, counts, strict=True)
    ]


def _zeros_like(value: Any, count: int) -> Any:
    """Return zeros [count, ...] of the kind of `value` [B, ...], an array or a tensor."""
    if isinstance(value, np.ndarray):
        return np.zeros((count, *value.shape[1:]), value.dtype)
    return value.new_zeros((count, *value.shape[1:]))
