"""The window sampler: n-step transitions from Steps, computed when they are sampled.

It serves a ring buffer that is being written and memory-mapped episodes alike.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from robot_rl.errors import StorageError
from robot_rl.storage.steps import (
    ACTION,
    DISCOUNT,
    FIRST,
    LAST,
    MID,
    OBSERVATION,
    REWARD,
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
    """

    observation: dict[str, np.ndarray]  # o_t            {field: [B, ...]}
    action: np.ndarray  #                 a_t            [B, A]
    reward: np.ndarray  #                 R              [B] float32
    discount: np.ndarray  #               D_k            [B] float32
    next_observation: dict[str, np.ndarray]  # o_{t+k}   {field: [B, ...]}


class Windows(NamedTuple):
    """B windows as places in Steps: `lane` and `age` of the start, and k, the steps inside."""

    lane: np.ndarray
    age: np.ndarray
    count: np.ndarray


class WindowSampler:
    """Draws n-step transitions uniformly from every start that `steps` can serve.

    A window never joins LAST to FIRST: it is shorter at the end of an episode, where a
    truncation keeps its discount (and so bootstraps) and a termination has discount 0. A start
    whose window would run past the newest row is left for later, when its window is complete,
    unless the episode ends first. The sampling is reproduced by `rng` (its bit generator's state
    can be saved and restored) and the contents of `steps`.

    The n-step return is that of acme's NStepTransitionAdder (acme/adders/reverb/transition.py).
    """

    def __init__(
        self,
        steps: Steps,
        n_step: int = 1,
        gamma: float = 0.99,
        rng: np.random.Generator | int = 0,
    ):
        if n_step < 1:
            raise StorageError(f'window sampler: n_step {n_step} must be at least 1')
        self.steps = steps
        self.n_step = n_step
        self.gamma = gamma
        self.rng = np.random.default_rng(rng)
        self._offsets = np.arange(n_step + 1)
        self._observations = [(name, OBSERVATION + name) for name in steps.observation_names]

    def transitions(self, batch_size: int) -> Transitions:
        """Return `batch_size` transitions, drawn independently and uniformly.

        Raises StorageError where no start can be served yet.
        """
        return self.gather(self._draw(batch_size))

    def gather(self, windows: Windows) -> Transitions:
        """Return the transitions of `windows`."""
        steps, flat = self.steps, self.steps.flat
        start = steps.rows(windows.lane, windows.age)
        end = steps.rows(windows.lane, windows.age + windows.count)
        reward, discount = self._returns(windows)
        return Transitions(
            {name: flat[column].take(start, axis=0) for name, column in self._observations},
            flat[ACTION].take(start, axis=0),
            reward,
            discount,
            {name: flat[column].take(end, axis=0) for name, column in self._observations},
        )

    def available(self) -> Windows:
        """Return every window that can be sampled, in the order of lanes, then ages."""
        lane, age = np.divmod(np.arange(self.steps.lanes * self.steps.size), self.steps.size or 1)
        return self._served(lane, age)

    def _draw(self, batch_size: int) -> Windows:
        """Draw starts uniformly over all rows and refuse those that cannot be served."""
        steps, parts, found = self.steps, [], 0
        for _ in range(_DRAWS if steps.size else 0):
            # A little more than needed: most draws then need no second round.
            size = (batch_size - found) * 9 // 8 + 8
            place = self.rng.integers(steps.lanes * steps.size, size=size)
            parts.append(self._served(*np.divmod(place, steps.size)))
            found += len(parts[-1].lane)
            if found >= batch_size:
                columns = zip(*parts, strict=True)
                return Windows(*(np.concatenate(column)[:batch_size] for column in columns))
        served = self.available()
        if not len(served.lane):
            raise StorageError(
                f'window sampler: no window of {self.n_step} steps among {steps.lanes} lanes of '
                f'{steps.size} rows yet; sample after more steps or a finished episode'
            )
        chosen = self.rng.integers(len(served.lane), size=batch_size)
        return Windows(*(part[chosen] for part in served))

    def _served(self, lane: np.ndarray, age: np.ndarray) -> Windows:
        """Return the windows that start at (lane, age), without those that cannot be served."""
        ages = age[:, None] + self._offsets
        types = self.steps.flat[STEP_TYPE].take(self.steps.rows(lane[:, None], ages))
        types = np.where(ages < self.steps.size, types, MID)  # what lies past the newest row
        # An episode ends at LAST, or before the FIRST of the next one where it was cut.
        ends = (types[:, :-1] == LAST) | (types[:, 1:] == FIRST)
        stops = np.ones((len(lane), self.n_step), dtype=bool)
        stops[:, :-1] = ends[:, 1:]
        count = stops.argmax(axis=1) + 1
        good = ~ends[:, 0] & (age + count < self.steps.size)
        return Windows(lane[good], age[good], count[good])

    def _returns(self, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
        """Return R and D_k (see Transitions), each [B] float32."""
        lane, age, count = windows
        offsets = self._offsets[:-1]
        rows = self.steps.rows(lane[:, None], age[:, None] + offsets)
        inside = offsets < count[:, None]
        rewards = np.where(inside, self.steps.flat[REWARD].take(rows), 0.0)
        factors = np.where(inside, self.gamma * self.steps.flat[DISCOUNT].take(rows), 1.0)
        products = np.cumprod(factors, axis=1)
        returns = rewards[:, 0] + (products[:, :-1] * rewards[:, 1:]).sum(axis=1)
        return returns.astype(np.float32), products[:, -1].astype(np.float32)
