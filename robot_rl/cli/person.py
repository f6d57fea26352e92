"""A person at the terminal of a command that runs trials."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from typing import TYPE_CHECKING

from robot_rl.errors import StorageError
from robot_rl.nodes.supervisor import Supervisor
from robot_rl.storage.store import Store

if TYPE_CHECKING:
    from robot_rl.nodes.calls import Caller


class Person:
    """Who judges trials, or puts things back between them, at this terminal, a line each.

    While a trial runs 'y' or 'n' ends it, as a success or a failure; after one that ended by
    itself they say what it was. Enter starts the next one. The session's services do the same.
    """

    def __init__(self, store: Store, judges: bool, starts: bool):
        self._store, self._judges = store, judges
        self._unjudged: list[str] = []
        self._start = ''  # what is asked where a trial waits to be started
        self._caller: Caller | None = None
        at_terminal = sys.stdin is not None and sys.stdin.isatty()
        self._hears = (judges or starts) and at_terminal
        self._has_gone = False
        self._begun = ''  # a line without its end

    def may_start(self, number: int, count: int, again: bool = False) -> None:
        """Ask for the start of a trial, or for it `again` where not all nodes got ready."""
        what = 'mend what is not ready' if again else 'put everything in its place'
        self._start = f'trial {number} of {count}: {what}, then Enter'
        self._ask_next()

    def has_ended(self, episode: str, result: str) -> None:
        """Ask for a judgement of a trial that nobody has judged."""
        self._start = ''
        if self._judges and result not in ('success', 'failure'):
            self._unjudged.append(episode)
            self._ask_next()

    def listen(self, supervisor: Supervisor) -> bool:
        """Do what lines say that have come, if any.

        Returns whether that is all: a trial waits for a start by somebody who has gone.
        """
        if self._hears and self._caller is None:
            from robot_rl.nodes.calls import Caller

            self._caller = Caller(supervisor.environment)
        if self._hears and select.select([sys.stdin], [], [], 0)[0]:
            self._read()
        if self._has_gone and self._start:
            _ask('nobody is at the terminal any more: no further trial is started')
            return True
        return False

    def finish(self) -> None:
        """Wait for the judgements that are still to be given, for Ctrl-C, or for a SIGTERM."""
        for number in (signal.SIGINT, signal.SIGTERM):  # up.Stop would only take a note of them
            signal.signal(number, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            while self._unjudged and self._hears:
                self._read()

    def close(self) -> None:
        """Leave the graph."""
        if self._caller is not None:
            self._caller.close()

    def _read(self) -> None:
        # Not by sys.stdin: what it keeps for later nobody can wait for.
        data = b''
        with contextlib.suppress(OSError):  # a terminal that was closed
            data = os.read(sys.stdin.fileno(), 4096)
        if not data:
            self._hears, self._has_gone = False, True
            _leave_closed()
            return
        *lines, self._begun = (self._begun + data.decode(errors='replace')).split('\n')
        for line in lines:
            self._take(line.strip().lower())

    def _take(self, word: str) -> None:
        if word in ('y', 'n') and self._unjudged:
            self._label(self._unjudged.pop(0), word == 'y')
        elif word in ('y', 'n') and self._judges:
            self._call('success' if word == 'y' else 'failure')
        elif not word and self._start and not self._unjudged:
            self._start = ''
            self._call('start')
        self._ask_next()

    def _label(self, episode: str, success: bool) -> None:
        try:
            self._store.label(episode, success)
        except StorageError as error:  # which is no reason to end the trial that runs
            _ask(f'{error}; it is left open')

    def _call(self, name: str) -> None:
        problem = self._caller.call(f'session/{name}')
        if problem:
            _ask(problem)

    def _ask_next(self) -> None:
        """Ask for a judgement before anything else is begun; nobody, where nobody is there."""
        if not self._hears:
            return
        if self._unjudged:
            _ask(f'{self._unjudged[0]}: did it succeed? y or n, then Enter')
        elif self._start:
            _ask(self._start)


def _leave_closed() -> None:
    """Say nothing more where a terminal was closed: it is an error to write there."""
    for stream in (sys.stdout, sys.stderr):
        try:
            os.write(stream.fileno(), b'')
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _ask(text: str) -> None:
    print(f'robot-rl: {text}', file=sys.stderr, flush=True)
