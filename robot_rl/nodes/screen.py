"""What a person who records demonstrations sees: a screen in the terminal, or lines. ROS-free."""

from __future__ import annotations

import collections
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from robot_rl.control.session import SessionInfo

BELL = '\a'
# So many warnings and errors of nodes are shown, the newest last.
_LINES = 4
# Older words of the recorder are not shown [s].
_STALE_S = 3.0
_COLOURS = {
    'running': 'bold white on green', 'ended': 'bold white on blue', 'ready': 'bold green'
}  # fmt: skip
_HZ = ' [Hz]'


class Board:
    """What is known of session, guard, recorder and nodes. Times are steady [s]."""

    def __init__(self, title: str, episodes: int = 0):
        self.title, self.episodes = title, episodes
        self.session, self.changed_at = SessionInfo(), time.monotonic()
        self.counts: collections.Counter[str] = collections.Counter()
        self.source, self.stopped = '', False
        self.mode, self.help = '', ()
        self._recorder: Mapping[str, str] = {}
        self._recorder_says, self._recorded_at = '', -float('inf')
        self.lines: collections.deque[str] = collections.deque(maxlen=_LINES)

    def hear_session(self, info: SessionInfo, now: float) -> str:
        """Take a state of the session; return it as a line, '' where it is none of interest."""
        former, self.session, self.changed_at = self.session, info, now
        if (former.episode, former.state) == (info.episode, info.state):
            return ''
        if info.state == 'ended':
            self.counts[str(info.result)] += 1
            return f'{self.episode}: {info.result} ({info.reason}); so far: {self.results}'
        return f'{self.episode}: {info.state}' if info.state in ('ready', 'running') else ''

    def hear_recorder(self, message: str, values: Mapping[str, str], now: float) -> None:
        """Take what the recorder says of itself."""
        self._recorder_says, self._recorder, self._recorded_at = message, values, now

    @property
    def episode(self) -> str:
        """Which episode is in hand; one that was discarded is recorded again."""
        of = f' of {self.episodes}' if self.episodes else ''
        return f'episode {self.session.index + 1}{of}'

    @property
    def results(self) -> str:
        """How many episodes have ended how."""
        return ', '.join(f'{count} {name}' for name, count in self.counts.items()) or 'none yet'

    @property
    def guard(self) -> str:
        """What the guard does."""
        if self.stopped:
            return 'EMERGENCY STOP is latched'
        says = {'hold': 'holds the arm', 'idle': 'idle', '': 'has not said anything'}
        return says.get(self.source, f'follows {self.source}')

    def disk(self, now: float) -> str:
        """Say how much room there is."""
        if now - self._recorded_at > _STALE_S:
            return 'the recorder has not said anything'
        free = f'{self._recorder.get("disk_free_gb", "?")} GB free'
        left = self._recorder.get('episodes_left')
        return f'{free}, room for {left} episodes' if left else free

    def topics(self, now: float) -> list[tuple[str, str]]:
        """Return topics and their rates [Hz], of the episode that is recorded."""
        if now - self._recorded_at > _STALE_S:
            return []
        found = ((key.removesuffix(_HZ), rate) for key, rate in self._recorder.items()
                 if key.endswith(_HZ))  # fmt: skip
        return sorted(found)

    def drawn(self, now: float) -> Panel:
        """Return the screen."""
        rows = Table.grid(padding=(0, 2))
        state = self.session.state
        if state == 'running':
            state = f'RUNNING {now - self.changed_at:.0f} s'
        elif state == 'ended':
            state = f'ended: {self.session.result}'
        elif state == 'ready':
            state = 'ready: Enter starts it'
        colour = _COLOURS.get(self.session.state, '')
        rows.add_row(self.episode, Text(f' {state} ', style=colour))
        rows.add_row('results', self.results)
        rows.add_row('guard', Text(self.guard, style='bold white on red' if self.stopped else ''))
        if self.mode:
            rows.add_row('you move', self.mode)
        rows.add_row('disk', self.disk(now))
        parts = [rows, *self._recorded(now)]
        parts += [Text(line, style='yellow', overflow='fold') for line in self.lines]
        parts += [Text(line, style='dim') for line in self.help]
        return Panel(Group(*parts), title=self.title)

    def _recorded(self, now: float) -> Sequence[Table | Text]:
        """Return the rates of topics, and what is wrong with them: gaps and lost messages."""
        topics = self.topics(now)
        if not topics:
            return []
        table = Table.grid(padding=(0, 2))
        for name, rate in topics:
            table.add_row(f'  {name}', Text(f'{float(rate):7.1f} Hz', justify='right'))
        says = self._recorder_says
        wrong = says not in ('recording', 'no episode')
        return [table, Text(says, style='bold red')] if wrong else [table]


class Screen:
    """Draws a board in a terminal, in place, and rings its bell."""

    def __init__(self, output: TextIO):
        self._output = output
        console = Console(file=output, force_terminal=True)
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False,
                          redirect_stderr=False)  # fmt: skip
        self._live.start()

    def show(self, board: Board) -> None:
        """Draw what is known now."""
        self._live.update(board.drawn(time.monotonic()), refresh=True)

    def ring(self) -> None:
        """Ring the bell."""
        self._output.write(BELL)
        self._output.flush()

    def close(self) -> None:
        """Leave the last picture, and the cursor below it."""
        self._live.stop()
