"""Batches drawn ahead of the learner, in a thread: reading and decoding hide behind learning."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, Self, TypeVar

from robot_rl.errors import StorageError

Batch = TypeVar('Batch')


class Prefetch(Generic[Batch], Iterator[Batch]):
    """Iterates over what `draw` returns, call after call, up to `ahead` of them made beforehand.

    The calls are made one after another, so the batches are those that would have been drawn
    without it, as long as nothing that `draw` depends on changes meanwhile: the columns of
    recorded episodes do not, while a ring that is being written, and priorities, do.

    An error in `draw` is raised by `next` once the batches before it are taken, and again by
    every later one. Leaving the `with` block, or `close`, ends the thread; what was drawn ahead
    is lost.
    """

    def __init__(self, draw: Callable[[], Batch], ahead: int = 2):
        if ahead < 1:
            raise StorageError(f'prefetch: {ahead} batches ahead, expected 1 or more')
        self._draw, self._stop = draw, threading.Event()
        self._ready: queue.Queue[tuple[Batch | None, BaseException | None]] = queue.Queue(ahead)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name='prefetch', daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __next__(self) -> Batch:
        if self._stop.is_set():
            raise StorageError('prefetch: closed; there is no batch any more')
        if self._error is None:
            batch, self._error = self._ready.get()
        if self._error is not None:
            raise self._error
        return batch

    def close(self) -> None:
        """End the thread, once the draw in hand is done. Calling it again does nothing."""
        self._stop.set()
        # It may wait for a free place; with one it comes round to see that it is to stop.
        while not self._ready.empty():
            self._ready.get_nowait()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                item = self._draw(), None
            except BaseException as error:  # whatever it is belongs to who asks for the batch
                item = None, error
            self._ready.put(item)
            if item[1] is not None:
                return
