"""How large the last episodes of a kind were: what the next one will take on the disk."""

from __future__ import annotations

import contextlib
import heapq
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from robot_rl.errors import StorageError
from robot_rl.storage.episode import DISCARDED, PARTIAL, EpisodeHeader, read_header

# Episodes that the mean is of, and directories that are looked at for them, newest first.
_KEPT, _LOOKED_AT = 5, 50


class RecentSizes:
    """The sizes of the last episodes by kind, that is, task and source; without the index.

    `root` need not be there. Those of a kind are looked for once, and then told by `add`.
    """

    def __init__(self, root: Path):
        self._root = root
        self._sizes: dict[tuple[str, str], deque[int]] = {}

    def add(self, header: EpisodeHeader) -> None:
        """Take in an episode that has been committed."""
        # Of a kind that nobody has asked for it is found among the directories.
        if (kind := (header.task, header.source)) in self._sizes:
            self._sizes[kind].append(_size(header))

    def mean(self, task: str, source: str) -> float | None:
        """Return the mean size of the last episodes of a kind [bytes]; None: there is none."""
        sizes = self._of(task, source)
        return sum(sizes) / len(sizes) if sizes else None

    def _of(self, task: str, source: str) -> deque[int]:
        if (task, source) not in self._sizes:
            found = [_size(h) for h in self._newest() if (h.task, h.source) == (task, source)]
            self._sizes[task, source] = deque(found[:_KEPT][::-1], maxlen=_KEPT)
        return self._sizes[task, source]

    def _newest(self) -> Iterator[EpisodeHeader]:
        """Yield the headers of the newest episodes: their names sort by the time of making."""
        names: list[str] = []
        with contextlib.suppress(OSError):
            names = [n for n in os.listdir(self._root) if not n.endswith((PARTIAL, DISCARDED))]
        for name in heapq.nlargest(_LOOKED_AT, names):
            with contextlib.suppress(StorageError):  # no episode, or a damaged one
                yield read_header(self._root / name)


def _size(header: EpisodeHeader) -> int:
    return sum(file.bytes for file in header.files)
