"""The window sampler: n-step transitions and sequences from Steps, computed when sampled.

It serves a ring buffer that is being written and memory-mapped episodes alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from robot_rl.errors import StorageError
from robot_rl.storage.mixture import Mixing, Mixture, Part
from robot_rl.storage.priorities import Priorities
from robot_rl.storage.steps import (
    ACTION,
    DISCOUNT,
    FIRST,
    LAST,
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


class _Block(NamedTuple):
    """The rows behind windows [T, B] of up to n steps, and before the first of them.

    `ends`: a row is the last one of its episode. `joined`: it and the next one are stored, and of
    one episode.
    """

    rows: np.ndarray  #    [T + n - 1, B]
    ends: np.ndarray  #    [T + n - 1, B] bool
    joined: np.ndarray  #  [burn_in + T + n - 1, B] bool


class WindowSampler:
    """Draws n-step transitions or sequences from every start that `steps` can serve.

    Starts are drawn uniformly, or in proportion to `priorities` over the flat rows of `steps`.
    `parts` {name: Part} mixes several queries instead: parts may overlap, and `mixing` says how
    each gets its share of a batch, by exact 'quota' or by 'bernoulli' per element. In a batch the
    parts stand one after another; `mixture` counts what each has had.

    A window never joins LAST to FIRST: it is shorter at the end of an episode, where a
    truncation keeps its discount (and so bootstraps) and a termination has discount 0. A start
    whose window would run past the newest row is left for later, when its window is complete,
    unless the episode ends first. The sampling is reproduced by `rng` (its bit generator's state
    can be saved and restored) and the contents of `steps`.

    Observations, actions and states come from `take(column, rows)` where it is given, in whatever
    form it returns them: from a copy on another device, say. Rewards [...] of the steps in flat
    rows [...] come from `rewards(rows)` where it is given, each time that they are drawn: from a
    model that changes, say. The histories of fields that `steps` keeps one step of are gathered
    here; a row of which the oldest steps are overwritten is not served.

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
        parts: Mapping[str, Part] | None = None,
        mixing: Mixing = 'quota',
        rewards: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        if n_step < 1:
            raise StorageError(f'window sampler: n_step {n_step} must be at least 1')
        if parts is not None and priorities is not None:
            raise StorageError('window sampler: of several parts each has priorities of its own')
        self.steps = steps
        self.n_step = n_step
        self.gamma = gamma
        self.rng = np.random.default_rng(rng)
        parts = {'all': Part(priorities=priorities)} if parts is None else parts
        self.mixture = Mixture(parts, steps.lanes * steps.length, mixing)
        self._take = take or self._take_array
        self._rewards = rewards or self.steps.flat[REWARD].take

    def transitions(self, batch_size: int) -> Transitions:
        """Return `batch_size` transitions, drawn independently.

        Raises StorageError where no start can be served yet.
        """
        windows, weight = self._draw(batch_size)
        return self.gather(windows)._replace(weight=weight)

    def gather(self, windows: Windows) -> Transitions:
        """Return the transitions of `windows`, all with weight 1."""
        steps, (lane, age, count) = self.steps, windows
        ages = age + np.arange(self.n_step)[:, None]
        rows = steps.rows(lane, np.minimum(ages, steps.size - 1))
        reward, discount = self._returns(rows, count[None])
        # Both observations at once: half the reads.
        ends = np.array([rows[0], steps.rows(lane, age + count)])
        seen = self._see(ends)
        return Transitions(
            {name: values[0] for name, values in seen.items()},
            self._take(ACTION, rows[0]),
            reward[0],
            discount[0],
            {name: values[1] for name, values in seen.items()},
            np.ones(len(lane), np.float32),
            rows[0],
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
        (lane, age, _), weight = self._draw(batch_size)
        steps, block = self.steps, self._block(lane, age, burn_in, length)
        before = _unbroken(block.joined[:burn_in][::-1])
        after = _unbroken(block.joined[burn_in:])
        offsets = np.arange(-burn_in, length + self.n_step)[:, None]
        rows = steps.rows(lane, age + np.clip(offsets, -before, after))
        count, served = self._counts(block)
        valid = served & (offsets[burn_in : burn_in + length] <= after)
        count = np.where(valid, count, 0)
        reward, discount = self._returns(block.rows, count)
        return Sequences(
            self._see(rows),
            offsets[:burn_in] >= -before,
            {
                name: self._take(STATE + name, steps.rows(lane, age - before))
                for name in steps.state_names
            },
            self._take(ACTION, rows[burn_in : burn_in + length]),
            reward,
            np.where(valid, discount, np.float32(0)),
            count,
            valid,
            weight,
            block.rows[0],
        )

    def update_priorities(self, place: np.ndarray, priorities: np.ndarray) -> None:
        """Give the starts at `place` [B] their new priorities [B], in each part that holds them.

        Where there are no priorities nothing happens. Call it before the rows at `place` are
        overwritten. Raises StorageError for a priority that is negative or not finite.
        """
        for part in self.mixture.parts:
            part.update_priorities(place, priorities)

    def available(self) -> Windows:
        """Return every window that can be sampled, in the order of lanes, then ages."""
        lane, age = np.divmod(np.arange(self.steps.lanes * self.steps.size), self.steps.size or 1)
        return self._served(lane, age)

    def _take_array(self, column: str, rows: np.ndarray) -> np.ndarray:
        return self.steps.flat[column].take(rows, axis=0)

    def _see(self, rows: np.ndarray) -> dict[str, Any]:
        """Return the observations of flat `rows` [...], {field: [..., *full_shape]}."""
        return observed(self.steps, self._take, rows)

    def _draw(self, batch_size: int) -> tuple[Windows, np.ndarray]:
        """Draw each part's windows; return them with their importance weights [B] float32."""
        counts = self.mixture.counts(self.rng, batch_size)
        windows, weights = [], []
        for part, count in zip(self.mixture.parts, counts, strict=True):
            if count or batch_size == 0:
                windows.append(self._draw_part(part, count))
                weights.append(part.weights(self.steps, windows[-1].lane, windows[-1].age))
        return _together(windows), weights[0] if len(weights) == 1 else np.concatenate(weights)

    def _draw_part(self, part: Part, count: int) -> Windows:
        """Draw starts over all rows of a part and refuse those that cannot be served."""
        parts, found = [], 0
        for _ in range(_DRAWS if self.steps.size and part.drawable else 0):
            # A little more than needed: most draws then need no second round.
            size = (count - found) * 9 // 8 + 8
            parts.append(self._served(*part.draw(self.rng, self.steps, size)))
            found += len(parts[-1].lane)
            if found >= count:
                return Windows(*(column[:count] for column in _together(parts)))
        return self._draw_listed(part, count)

    def _draw_listed(self, part: Part, count: int) -> Windows:
        """Draw among all windows of a part, in the same proportions as _draw_part does."""
        steps, served = self.steps, self.available()
        here = part.holds(steps.rows(served.lane, served.age))
        served = Windows(*(column[here] for column in served))
        if not len(served.lane):
            raise StorageError(
                f'window sampler: no window of {self.n_step} steps among {steps.lanes} lanes of '
                f'{steps.size} rows yet; sample after more steps or a finished episode'
            )
        shares = part.shares_of(steps.rows(served.lane, served.age))
        chosen = self.rng.choice(len(served.lane), size=count, p=shares)
        return Windows(*(column[chosen] for column in served))

    def _served(self, lane: np.ndarray, age: np.ndarray) -> Windows:
        """Return the windows that start at (lane, age) [M], without those not to be served."""
        (count,), (good,) = self._counts(self._block(lane, age, 0, 1))
        return Windows(lane[good], age[good], count[good])

    def _block(self, lane: np.ndarray, age: np.ndarray, burn_in: int, length: int) -> _Block:
        """Return what the `length` windows from each start (lane, age) [B] on are made of."""
        steps = self.steps
        ages = age + np.arange(-burn_in, length + self.n_step)[:, None]
        nearest = np.maximum(np.minimum(ages, steps.size - 1), 0)
        rows, inside = steps.rows(lane, nearest), nearest == ages
        if steps.histories:
            inside &= ages >= steps.first_whole()[lane]
        types = steps.flat[STEP_TYPE].take(rows)
        # An episode ends at LAST, or before the FIRST of the next one where it was cut.
        ends = (types[:-1] == LAST) | ((types[1:] == FIRST) & inside[1:])
        joined = inside[:-1] & inside[1:] & ~ends
        return _Block(rows[burn_in:-1], ends[burn_in:], joined)

    def _counts(self, block: _Block) -> tuple[np.ndarray, np.ndarray]:
        """Return k of the windows of a block [T, B], and which of them can be served."""
        length = len(block.ends) - self.n_step + 1
        joined = block.joined[-len(block.ends) :]
        inside = started = joined[:length]
        count, ended = inside.astype(np.int64), np.zeros_like(inside)
        for step in range(1, self.n_step):
            ended |= inside & block.ends[step : step + length]
            inside = inside & joined[step : step + length]
            count += inside
        return count, started & (inside | ended)

    def _returns(self, rows: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return R and D_k (see Transitions) of windows of k = `count` [T, B] steps, as float32.

        `rows` [T + n - 1, B] are those of their steps. Where k is 0, R is 0 and D_k is 1.
        """
        steps = np.arange(self.n_step)[:, None]
        inside, windows = steps[..., None] < count, steps + np.arange(len(count))
        rewards = np.where(inside, self._rewards(rows).take(windows, axis=0), np.float32(0))
        discounts = self.gamma * self.steps.flat[DISCOUNT].take(rows)
        factors = np.where(inside, discounts.take(windows, axis=0), np.float32(1))
        # From the last step to the first: R_t = r_t + d_t R_{t+1}.
        returns, products = rewards[-1], factors[-1]
        for reward, factor in zip(rewards[-2::-1], factors[-2::-1], strict=True):
            returns = reward + factor * returns
            products = factor * products
        return returns.astype(np.float32), products.astype(np.float32)


def observed(
    steps: Steps, take: Callable[[str, np.ndarray], Any], rows: np.ndarray
) -> dict[str, Any]:
    """Return the observations of flat `rows` [...] of `steps`, {field: [..., *full_shape]}.

    `take` is that of a WindowSampler.
    """
    behind = {n: steps.behind(rows, n) for n in {*steps.histories.values()}}
    return {
        name: take(OBSERVATION + name, behind.get(steps.histories.get(name), rows))
        for name in steps.observation_names
    }


def _unbroken(joined: np.ndarray) -> np.ndarray:
    """Return how many of `joined` [K, B] hold one after another from the first on [B]."""
    return np.logical_and.accumulate(joined, axis=0).sum(axis=0)


def _together(windows: Sequence[Windows]) -> Windows:
    """Return several windows as one."""
    if len(windows) == 1:
        return windows[0]
    return Windows(*(np.concatenate(columns) for columns in zip(*windows, strict=True)))
