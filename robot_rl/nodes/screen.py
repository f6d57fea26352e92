"""screen: shows on a terminal how a recording goes: episodes, guard, rates, what nodes say."""

from __future__ import annotations

import os
import threading
import time
from typing import TextIO

import pydantic
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import Log
from rich.console import Console, ConsoleDimensions
from rich.live import Live
from std_msgs.msg import String

from robot_rl.control.session import SessionInfo
from robot_rl.errors import RobotRLError, SpecError
from robot_rl.nodes import support
from robot_rl.nodes.board import NODES, Board, Report
from robot_rl.nodes.keys import HELP
from robot_rl.specs import Spec

_PERIOD_S = 0.2


class Parameters(Spec):
    """The ROS parameters of screen."""

    terminal: str = pydantic.Field('/dev/tty', description='the terminal that it draws on')
    device: str = pydantic.Field('none', description='the device whose keys are listed')


class Screen(support.WorkingNode):
    """Draws a few times a second, and rings the bell where an episode starts and where it stops.

    It ends, with a line, where the terminal is gone.
    """

    def __init__(self) -> None:
        super().__init__('screen')
        support.declare_parameters(self, Parameters)
        self._given = support.read_parameters(self, Parameters)
        self._board = Board(HELP.items() if self._given.device == 'keyboard' else ())
        self._lock = threading.Lock()
        self._rings = False
        self._drawing = support.Tally()
        self._diagnostics = support.Diagnostics(self, self._given.terminal)
        self._diagnostics.repeat(self._report)
        self.create_subscription(
            String, support.SESSION_STATE, self._on_session, support.LATCHED_READER
        )
        self.create_subscription(String, support.SOURCE, self._on_source, support.LATCHED_READER)
        self.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        self.create_subscription(Log, '/rosout', self._on_log, support.LATCHED_READER)

    def _work(self, stop: threading.Event) -> None:
        path = self._given.terminal
        try:
            # Not as ours: signals of its keys are for whoever has started the nodes.
            with open(os.open(path, os.O_RDWR | os.O_NOCTTY), 'w') as terminal:
                self._draw(terminal, stop)
        except OSError as error:
            raise RobotRLError(
                f'screen: {path}: no terminal to draw on ({error.strerror}); '
                'screen:=false does without'
            ) from None

    def _report(self) -> None:
        """Once a second: how often it draws, and how long that takes."""
        count, mean_s, max_s = self._drawing.take()
        values = {'rate_hz': count, 'wanted_rate_hz': round(1 / _PERIOD_S)}
        values |= {'draw_mean_ms': round(mean_s * 1e3, 2), 'draw_max_ms': round(max_s * 1e3, 2)}
        self._diagnostics.publish(DiagnosticStatus.OK, 'drawing', values)

    def _draw(self, terminal: TextIO, stop: threading.Event) -> None:
        console = Console(file=terminal, force_terminal=True)
        with Live(console=console, auto_refresh=False, vertical_overflow='crop') as live:
            for now in support.every(_PERIOD_S, stop):
                console.size = _size(terminal)
                with self._lock:
                    picture, rings, self._rings = self._board.draw(now), self._rings, False
                live.update(picture, refresh=True)
                if rings:
                    console.bell()
                self._drawing.add(time.monotonic() - now)

    def _on_session(self, message: String) -> None:
        try:
            info = SessionInfo.from_json(message.data, origin=support.SESSION_STATE)
        except SpecError as error:
            self.get_logger().error(str(error))
            return
        with self._lock:
            self._rings |= self._board.on_session(info, time.monotonic())

    def _on_source(self, message: String) -> None:
        with self._lock:
            self._board.source = message.data

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        space = self.get_namespace().strip('/')
        names = {f'{space}/{name}'.lstrip('/'): name for name in NODES}
        with self._lock:
            for status in message.status:
                if name := names.get(status.name):
                    values = {value.key: value.value for value in status.values}
                    level = int.from_bytes(status.level)
                    self._board.reports[name] = Report(level, status.message, values)

    def _on_log(self, message: Log) -> None:
        """Keep warnings and errors, and all that the device says."""
        name = support.speaker(self, message)
        least = Log.INFO if name == 'teleop' else Log.WARN
        if name and message.level >= least:
            level = sum(message.level >= bound for bound in (Log.WARN, Log.ERROR))
            with self._lock:
                self._board.say(name, message.msg, level)


def _size(terminal: TextIO) -> ConsoleDimensions:
    """Return width and height of a terminal; of one that does not know, what is usual."""
    width, height = os.get_terminal_size(terminal.fileno())
    return ConsoleDimensions(width or 80, height or 24)
