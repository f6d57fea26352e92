"""What the screen of a recording shows, drawn by rich; it knows nothing of ROS."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from robot_rl.control.session import SessionInfo

# Those whose word on /diagnostics is shown, in this order.
NODES = ('session', 'command_guard', 'episode_recorder', 'teleop')
# The levels of DiagnosticStatus, and of lines that nodes say, by what they look like.
_STYLES = ('green', 'yellow', 'bold red', 'magenta')
_STATES = {'running': 'bold white on red', 'ready': 'bold green', 'prepare': 'yellow'}
_RESULTS = {'success': 'bold green', 'failure': 'bold red'}
_WORDS_KEPT = 6


@dataclasses.dataclass(frozen=True)
class Report:
    """What a node last said of itself on /diagnostics."""

    level: int = 0
    message: str = ''
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def get(self, name: str) -> str:
        """Return a value, '' where the node does not say it."""
        return self.values.get(name, '')


class Board:
    """Keeps what is heard of a recording, and draws it."""

    def __init__(self, keys: Iterable[tuple[str, str]] = ()):
        self.keys = list(keys)  # of the device, and what they do
        self.session, self.source = SessionInfo(), ''
        self.reports: dict[str, Report] = {}
        self._results: dict[str, str] = {}  # of ended episodes
        self._words: collections.deque[Text] = collections.deque(maxlen=_WORDS_KEPT)
        self._began = 0.0

    def on_session(self, info: SessionInfo, now: float) -> bool:
        """Take the state of the session at `now` [s]; tell whether an episode starts or stops."""
        former, self.session = self.session, info
        if info.state == former.state and info.episode == former.episode:
            return False
        self._results.pop(info.instead_of, None)  # it is recorded again
        if info.state == 'running':
            self._began = now
        if info.state == 'ended':
            self._results[info.episode] = info.result
            style = _RESULTS.get(info.result, 'yellow')
            self._words.append(Text(f'episode {info.index + 1}: {info.result}', style))
        return info.state == 'running' or former.state == 'running'

    def say(self, node: str, line: str, level: int) -> None:
        """Keep a line that a node has said, at a `level` as of Report."""
        self._words.append(Text(f'{node}: {line}', _STYLES[level]))

    def draw(self, now: float) -> RenderableType:
        """Return the picture at `now` [s]."""
        parts = [self._heading(now), self._nodes(), *self._topics()]
        parts += [Text('\n').join(self._words)] if self._words else []
        return Group(*parts, *self._keys())

    def _heading(self, now: float) -> RenderableType:
        """Which episode, in what state, what became of those before, and for how many is room."""
        info, of = self.session, self._report('session').get('episodes')
        number = f'episode {info.index + 1}' + (f' of {of}' if of not in ('', '0') else '')
        counts = collections.Counter(self._results.values())
        counted = ', '.join(f'{n} {result}' for result, n in counts.items())
        state = f' {info.state} '
        if info.state == 'running':
            state += f'{now - self._began:.1f} s '
        grid = _grid(('left', 'right'), expand=True)
        grid.add_row(
            Text.assemble((info.task, 'bold'), f'  {number}  ' if info.episode else '  ', counted),
            Text.assemble((state, _STATES.get(info.state, '')), f'  {self._room()}'),
        )
        return grid

    def _room(self) -> str:
        recorder = self._report('episode_recorder')
        if left := recorder.get('episodes_left'):
            return f'room for {left} episodes'
        free = recorder.get('disk_free_gb')
        return f'{free} GB free' if free else ''

    def _nodes(self) -> RenderableType:
        """How the nodes are, in their own words."""
        grid = _grid(('left', 'left'))
        for name in NODES:
            if (report := self.reports.get(name)) is None:
                continue
            words = report.message
            if name == 'command_guard' and self.source:
                words += f', source {self.source}'
            grid.add_row(name, Text(words, _STYLES[report.level]))
        return grid

    def _topics(self) -> Iterable[RenderableType]:
        """Rates and longest gaps of what is recorded, in the episode in hand."""
        recorder = self._report('episode_recorder')
        table = Table(box=None, pad_edge=False, header_style='dim')
        table.add_column('recorded topic', no_wrap=True)
        for name in ('rate [Hz]', 'longest gap [s]'):
            table.add_column(Text(name), justify='right')  # no markup: [s] would be one
        for name, rate in recorder.values.items():
            if name.endswith(' [Hz]'):
                topic = name.removesuffix(' [Hz]')
                table.add_row(topic, rate, recorder.get(f'{topic} gap [s]'))
        if lost := recorder.get('lost'):
            table.add_row('messages lost', Text(lost, _STYLES[0 if lost == '0' else 2]))
        if table.row_count:
            yield table

    def _keys(self) -> Iterable[RenderableType]:
        if self.keys:
            words = [Text.assemble((key, 'bold cyan'), f' {what}') for key, what in self.keys]
            yield Columns(words, padding=(0, 3))

    def _report(self, node: str) -> Report:
        return self.reports.get(node, Report())


def _grid(justified: tuple[str, ...], expand: bool = False) -> Table:
    grid = Table.grid(padding=(0, 2), expand=expand)
    for justify in justified:
        grid.add_column(justify=justify)
    return grid
