"""The window sampler: n-step transitions and sequences from Steps, computed when sampled.

It serves a ring buffer that is being written and memory-mapped episodes alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from robot_rl.errors import StorageError
from robot_rl.storage.priorities import Priorities
from robot_rl.storage.steps import (
    ACTION,
    DISCOUNT,
    FIRST,
    LAST,
    MID,
    OBSERVATION,
    REWARD,
    STATE,
    STEP_TYPE,
    Steps,
)

# How often starts are drawn and refused before all starts that can be sampled are listed.
_DRAWS = 8


class Transitions(NamedTuple):
    """A batch of B transitions over k <= n steps each; k is n except at an episode's end.

    With d the environment's discounts, D_i = gamma^i d_{t+1} ... d_{t+i} and D_0 = 1:
    reward R = sum_{i<k} D_i r_{t+i+1}, discount = D_k, to be used as it is:
    target = reward + discount * value(next_observation).

    Without priorities all weights are 1.
    """

    observation: dict[str, np.ndarray]  # o_t            {field: [B, ...]}
    action: np.ndarray  #                 a_t            [B, A]
    reward: np.ndarray  #                 R              [B] float32
    discount: np.ndarray  #               D_k            [B] float32
    next_observation: dict[str, np.ndarray]  # o_{t+k}   {field: [B, ...]}
    # Batches that are made by hand, with no Steps behind them, may leave these out.
    weight: np.ndarray | None = None  #   importance     [B] float32
    place: np.ndarray | None = None  #    of o_t, for update_priorities  [B] int64


class Sequences(NamedTuple):
    """A batch of B sequences for recurrent agents, time-major: T learned steps and their context.

    A sequence is L = burn_in + T + n_step rows of one episode; index burn_in is its first learned
    step s. Before s lie as many rows as the episode and the ring have, at most burn_in, to warm
    up the recurrent state from the one that was stored with the first of them (stored state and
    burn-in: Kapturowski et al. 2019, Recurrent Experience Replay in Distributed Reinforcement
    Learning, section 3). Indexes before the first row or behind the last repeat that row; the
    state must not be advanced where `real` is False.

    Learned step t is index burn_in + t and bootstraps from index burn_in + t + following[t];
    reward and discount are those of Transitions. Where the episode or what is stored ends before
    t or its n-step window is complete, `valid` is False, reward, discount and following are 0 and
    the action means nothing. The first learned step is always valid.
    """

    observation: dict[str, np.ndarray]  # {field: [L, B, ...]}
    real: np.ndarray  #       False where a burn-in row is only a copy  [burn_in, B] bool
    state: dict[str, np.ndarray]  # before the first real row   {name: [B, ...]}
    action: np.ndarray  #     [T, B, A]
    reward: np.ndarray  #     R             [T, B] float32
    discount: np.ndarray  #   D_k           [T, B] float32
    following: np.ndarray  #  k             [T, B] int64
    valid: np.ndarray  #      [T, B] bool
    weight: np.ndarray  #     importance    [B] float32
    place: np.ndarray  #      of s, for update_priorities  [B] int64


class Windows(NamedTuple):
    """B windows as places in Steps: `lane` and `age` of the start, and k, the steps inside."""

    lane: np.ndarray
    age: np.ndarray
    count: np.ndarray


class WindowSampler:
    """Draws n-step transitions or sequences from every start that `steps` can serve.

    Starts are drawn uniformly, or in proportion to `priorities` over the flat rows of `steps`.

    A window never joins LAST to FIRST: it is shorter at the end of an episode, where a
    truncation keeps its discount (and so bootstraps) and a termination has discount 0. A start
    whose window would run past the newest row is left for later, when its window is complete,
    unless the episode ends first. The sampling is reproduced by `rng` (its bit generator's state
    can be saved and restored) and the contents of `steps`.

    Observations, actions and states come from `take(column, rows)` where it is given, in whatever
    form it returns them: from a copy on another device, say.

    The n-step return is that of acme's NStepTransitionAdder (acme/adders/reverb/transition.py).
    """

    def __init__(
        self,
        steps: Steps,
        n_step: int = 1,
        gamma: float = 0.99,
        rng: np.random.Generator | int = 0,
        priorities: Priorities | None = None,
        take: Callable[[str, np.ndarray], Any] | None = None,
    ):
        if n_step < 1:
            raise StorageError(f'window sampler: n_step {n_step} must be at least 1')
        if priorities is not None and priorities.rows != steps.lanes * steps.length:
            raise StorageError(
                f'window sampler: priorities of {priorities.rows} rows do not belong to '
                f'{steps.lanes} lanes of {steps.length} rows'
            )
        self.steps = steps
        self.n_step = n_step
        self.gamma = gamma
        self.rng = np.random.default_rng(rng)
        self.priorities = priorities
        self._offsets = np.arange(n_step + 1)
        self._take = take or self._take_array
        self._observations = [(name, OBSERVATION + name) for name in steps.observation_names]

    def transitions(self, batch_size: int) -> Transitions:
        """Return `batch_size` transitions, drawn independently.

        Raises StorageError where no start can be served yet.
        """
        return self.gather(self._draw(batch_size))

    def gather(self, windows: Windows) -> Transitions:
        """Return the transitions of `windows`."""
        steps = self.steps
        start = steps.rows(windows.lane, windows.age)
        end = steps.rows(windows.lane, windows.age + windows.count)
        reward, discount = self._returns(windows)
        return Transitions(
            {name: self._take(column, start) for name, column in self._observations},
            self._take(ACTION, start),
            reward,
            discount,
            {name: self._take(column, end) for name, column in self._observations},
            self._weights(start),
            start,
        )

    def sequences(self, batch_size: int, length: int, burn_in: int = 0) -> Sequences:
        """Return sequences of `length` learned steps behind up to `burn_in` rows of warming up.

        The first learned step is drawn as the start of a transition is, so the early steps of
        episodes are learned from as often as others.

        Raises StorageError where no start can be served yet.
        """
        if length < 1 or burn_in < 0:
            raise StorageError(
                f'window sampler: sequences of length {length} and burn_in {burn_in}, expected '
                'a length of 1 or more and a burn_in of 0 or more'
            )
        lane, age, _ = self._draw(batch_size)
        steps = self.steps
        before, after = self._extent(lane, age, burn_in, length + self.n_step - 1)
        offsets = np.arange(-burn_in, length + self.n_step)[:, None]
        rows = steps.rows(lane, age + np.clip(offsets, -before, after))
        learned, valid = self._learned(lane, age, after, length)
        reward, discount = self._returns(learned)
        first, place = steps.rows(lane, age - before), steps.rows(lane, age)
        return Sequences(
            {name: self._take(column, rows) for name, column in self._observations},
            offsets[:burn_in] >= -before,
            {name: self._take(STATE + name, first) for name in steps.state_names},
            self._take(ACTION, rows[burn_in : burn_in + length]),
            np.where(valid, reward, 0),
            np.where(valid, discount, 0),
            learned.count,
            valid,
            self._weights(place),
            place,
        )

    def _take_array(self, column: str, rows: np.ndarray) -> np.ndarray:
        return self.steps.flat[column].take(rows, axis=0)

    def update_priorities(self, place: np.ndarray, priorities: np.ndarray) -> None:
        """Give the starts at `place` [B] their new priorities [B]; without priorities do nothing.

        Call it before the rows at `place` are overwritten. Raises StorageError for a priority
        that is negative or not finite.
        """
        if self.priorities is not None:
            self.priorities.set(place, priorities)

    def available(self) -> Windows:
        """Return every window that can be sampled, in the order of lanes, then ages."""
        lane, age = np.divmod(np.arange(self.steps.lanes * self.steps.size), self.steps.size or 1)
        return self._served(lane, age)

    def _draw(self, batch_size: int) -> Windows:
        """Draw starts over all rows and refuse those that cannot be served."""
        steps, priorities, parts, found = self.steps, self.priorities, [], 0
        drawable = steps.size and (priorities is None or priorities.total)
        for _ in range(_DRAWS if drawable else 0):
            # A little more than needed: most draws then need no second round.
            size = (batch_size - found) * 9 // 8 + 8
            if priorities is None:
                place = self.rng.integers(steps.lanes * steps.size, size=size)
                parts.append(self._served(*np.divmod(place, steps.size)))
            else:
                parts.append(self._served(*steps.places(priorities.draw(self.rng, size))))
            found += len(parts[-1].lane)
            if found >= batch_size:
                columns = zip(*parts, strict=True)
                return Windows(*(np.concatenate(column)[:batch_size] for column in columns))
        return self._draw_from(self.available(), batch_size)

    def _draw_from(self, served: Windows, batch_size: int) -> Windows:
        """Draw among windows that were listed, in the same proportions as _draw does."""
        steps, shares = self.steps, None
        if not len(served.lane):
            raise StorageError(
                f'window sampler: no window of {self.n_step} steps among {steps.lanes} lanes of '
                f'{steps.size} rows yet; sample after more steps or a finished episode'
            )
        if self.priorities is not None:
            shares = self.priorities.scaled(steps.rows(served.lane, served.age))
            if not shares.any():
                raise StorageError(
                    f'window sampler: none of {len(shares)} windows has a priority above 0; '
                    'give rows a priority when they are written'
                )
            shares = shares / shares.sum()
        chosen = self.rng.choice(len(served.lane), size=batch_size, p=shares)
        return Windows(*(part[chosen] for part in served))

    def _served(self, lane: np.ndarray, age: np.ndarray) -> Windows:
        """Return the windows that start at (lane, age) [M], without those not to be served."""
        count, good = self._counts(lane, age)
        return Windows(lane[good], age[good], count[good])

    def _counts(self, lane: np.ndarray, age: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return k of the windows that start at (lane, age) [...], and which can be served."""
        ages = age[..., None] + self._offsets
        types = self.steps.flat[STEP_TYPE].take(self.steps.rows(lane[..., None], ages))
        types = np.where(ages < self.steps.size, types, MID)  # what lies past the newest row
        # An episode ends at LAST, or before the FIRST of the next one where it was cut.
        ends = (types[..., :-1] == LAST) | (types[..., 1:] == FIRST)
        stops = np.ones(ends.shape, dtype=bool)
        stops[..., :-1] = ends[..., 1:]
        count = stops.argmax(axis=-1) + 1
        return count, ~ends[..., 0] & (age + count < self.steps.size)

    def _extent(
        self, lane: np.ndarray, age: np.ndarray, most_before: int, most_after: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return how many rows [B] of its episode lie before and after each start [B]."""
        ages = age[:, None] + np.arange(-most_before, most_after + 1)
        types = self.steps.flat[STEP_TYPE].take(self.steps.rows(lane[:, None], ages))
        inside = (ages >= 0) & (ages < self.steps.size)
        # Whether a row and the next one belong together.
        joined = (types[:, :-1] != LAST) & (types[:, 1:] != FIRST)
        joined &= inside[:, :-1] & inside[:, 1:]
        before, after = joined[:, :most_before][:, ::-1], joined[:, most_before:]
        return before.cumprod(axis=1).sum(axis=1), after.cumprod(axis=1).sum(axis=1)

    def _learned(
        self, lane: np.ndarray, age: np.ndarray, after: np.ndarray, length: int
    ) -> tuple[Windows, np.ndarray]:
        """Return the windows of the learned steps, k = 0 where not valid, and which are [T, B]."""
        times = np.arange(length)[:, None]
        lanes, ages = np.broadcast_arrays(lane, age + times)
        count, served = self._counts(lanes, ages)
        valid = served & (times <= after)
        return Windows(lanes, ages, np.where(valid, count, 0)), valid

    def _returns(self, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
        """Return R and D_k (see Transitions) of windows [...], each [...] float32."""
        lane, age, count = windows
        offsets = self._offsets[:-1]
        rows = self.steps.rows(lane[..., None], age[..., None] + offsets)
        inside = offsets < count[..., None]
        rewards = np.where(inside, self.steps.flat[REWARD].take(rows), 0.0)
        factors = np.where(inside, self.gamma * self.steps.flat[DISCOUNT].take(rows), 1.0)
        products = np.cumprod(factors, axis=-1)
        returns = rewards[..., 0] + (products[..., :-1] * rewards[..., 1:]).sum(axis=-1)
        return returns.astype(np.float32), products[..., -1].astype(np.float32)

    def _weights(self, place: np.ndarray) -> np.ndarray:
        """Return the importance weights [B] float32 of the starts at `place` [B]."""
        if self.priorities is None:
            return np.ones(len(place), np.float32)
        return self.priorities.weights(place)
