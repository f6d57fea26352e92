"""Steps: recorded interaction as columns over time, in RLDS row semantics.

Row t holds the observation o_t, the action a_t taken in it, the reward r_{t+1} and the discount
d_{t+1} that followed that action, and the step type of o_t. Of a LAST row only the observation is
valid. Columns are named 'observation/<field>', 'action', 'reward', 'discount' and 'step_type';
'state/<name>' may hold the recurrent state that belongs to o_t: the one before the policy saw it.
Of a field with a history a row may hold the newest step alone; `histories` says of how many.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Self

import numpy as np

from robot_rl.errors import StorageError

# The step types of dm_env, which sim.environment.StepType repeats.
FIRST, MID, LAST = 0, 1, 2

OBSERVATION, STATE = 'observation/', 'state/'
ACTION, REWARD, DISCOUNT, STEP_TYPE = 'action', 'reward', 'discount', 'step_type'


class Steps:
    """A view of columns [N, T, ...]: N lanes in time order, each a ring of T rows.

    All lanes advance together: `size` rows are valid in each, and `head` is where the next row
    goes, so the newest row is head - 1 and the oldest head - size (both modulo T). Whoever owns
    the arrays moves `head` and `size`. The newest row may be an observation whose action is not
    known yet. A lane may hold an episode that was cut (a FIRST row follows a row that is not
    LAST): the row before the cut counts as its last observation.

    `histories` {field: steps} are those whose rows hold one step, and are seen with the steps
    before it: see `behind`.

    Raises StorageError where columns are missing, differ in [N, T] or are not C-contiguous
    (a contiguous array, or a memory map, is never copied).
    """

    histories: Mapping[str, int] = MappingProxyType({})

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        size: int | None = None,
        head: int = 0,
        histories: Mapping[str, int] = MappingProxyType({}),
    ):
        missing = {ACTION, REWARD, DISCOUNT, STEP_TYPE} - set(columns)
        if missing:
            raise StorageError(f'steps: columns {sorted(missing)} are missing in {list(columns)}')
        self.columns = dict(columns)
        self.lanes, self.length = columns[STEP_TYPE].shape
        for name, column in columns.items():
            if column.shape[:2] != (self.lanes, self.length) or not column.flags.c_contiguous:
                raise StorageError(
                    f'steps: column {name!r} has shape {list(column.shape)}, expected '
                    f'a contiguous [{self.lanes}, {self.length}, ...] as {STEP_TYPE!r} has'
                )
        # [N * T, ...] views: one flat index gathers faster than a pair of them.
        self.flat = {
            name: column.reshape(-1, *column.shape[2:]) for name, column in columns.items()
        }
        self.size = self.length if size is None else size
        self.head = head
        self.histories = histories

    @classmethod
    def concatenate(cls, episodes: Iterable[Mapping[str, np.ndarray]]) -> Self:
        """Return one lane that holds `episodes`, each {column: [T + 1, ...]}, one after another.

        Raises StorageError where there is no episode or two of them differ in their columns.
        """
        episodes = list(episodes)
        if not episodes:
            raise StorageError('steps: no episode to concatenate')
        names = set(episodes[0])
        for number, episode in enumerate(episodes):
            if set(episode) != names:
                raise StorageError(
                    f'steps: episode {number} has columns {sorted(episode)}, '
                    f'the first one {sorted(names)}'
                )
        return cls(
            {
                name: np.ascontiguousarray(
                    np.concatenate([np.asarray(episode[name]) for episode in episodes])[None]
                )
                for name in episodes[0]
            }
        )

    @property
    def observation_names(self) -> list[str]:
        """The observation fields that have a column, without the column prefix."""
        return self._names(OBSERVATION)

    @property
    def state_names(self) -> list[str]:
        """The recurrent states that have a column, without the column prefix."""
        return self._names(STATE)

    def rows(self, lane: np.ndarray, age: np.ndarray) -> np.ndarray:
        """Return the flat row of the `age`-th oldest valid step of `lane`; ages broadcast."""
        oldest = (self.head - self.size) % self.length
        if oldest == 0:
            return lane * self.length + age
        row = oldest + age
        # It wraps at most once: a quarter of the time of a division.
        return lane * self.length + np.where(row >= self.length, row - self.length, row)

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return lane and age of flat `rows`; an age of `size` or more is no valid step's."""
        lane, row = np.divmod(rows, self.length)
        return lane, (row - self.head + self.size) % self.length

    def following(self, rows: np.ndarray) -> np.ndarray:
        """Return the flat rows of the steps after `rows`; the newest row of a lane stays."""
        lane, age = self.places(rows)
        return self.rows(lane, np.minimum(age + 1, self.size - 1))

    def behind(self, rows: np.ndarray, count: int) -> np.ndarray:
        """Return flat `rows` [...] with those before them, oldest first: [..., count].

        As control.observation.History stacks them: an episode's first row stands for those before
        it. So does the oldest row that is kept; whoever wants whole histories asks `first_whole`.
        """
        lane, age = self.places(rows)
        stack = [rows]
        for _ in range(count - 1):
            begins = self.flat[STEP_TYPE].take(stack[-1]) == FIRST
            age = np.where(begins, age, np.maximum(age - 1, 0))
            stack.append(self.rows(lane, age))
        return np.stack(stack[::-1], axis=-1)

    def first_whole(self) -> np.ndarray:
        """Return the age of each lane's oldest row whose histories are kept whole [N]."""
        depth = min(max(self.histories.values(), default=1) - 1, self.size)
        if depth == 0:
            return np.zeros(self.lanes, np.int64)
        rows = self.rows(np.arange(self.lanes)[:, None], np.arange(depth))
        begins = self.flat[STEP_TYPE].take(rows) == FIRST
        return np.where(begins.any(axis=1), begins.argmax(axis=1), depth)

    def with_column(self, name: str, values: np.ndarray) -> Self:
        """Return the same steps with another flat column [N * T, ...] in the place of `name`."""
        other = copy.copy(self)
        other.flat = self.flat | {name: values}
        return other

    def _names(self, prefix: str) -> list[str]:
        return [name.removeprefix(prefix) for name in self.flat if name.startswith(prefix)]
