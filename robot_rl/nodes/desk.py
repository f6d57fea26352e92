"""The terminal beside a device of teleop: keys for the session, and what is going on."""

from __future__ import annotations

import contextlib
import threading
import time

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Log
from rclpy.node import Node
from std_msgs.msg import Bool, String

from robot_rl.control.session import SessionInfo
from robot_rl.errors import RobotRLError, SpecError
from robot_rl.nodes import support
from robot_rl.nodes.keys import SESSION_HELP, SESSION_KEYS, JogKeys
from robot_rl.nodes.screen import Board, Screen
from robot_rl.nodes.terminal import Terminal
from robot_rl.specs import RobotSpec, Spec

_DRAWN_EVERY_S = 0.25


class Desk:
    """Reads keys, and shows session, guard, recorder and warnings: as a screen, or as lines.

    `device` is what the person leads with, or where that is found. `jog_keys` are given the keys
    that are none of the session's. Without a terminal there are lines on standard output, and no
    keys; who jogs by keys needs one: RobotRLError.
    """

    def __init__(
        self, node: Node, robot: RobotSpec, given: Spec, device: str, jog_keys: JogKeys | None
    ):
        self._keys, self._calls = jog_keys, []
        self._board = Board(f'{robot.name}: {device}', given.episodes)
        self._lock = threading.Lock()  # the thread that draws and the one that closes
        self._terminal = None
        try:
            self._terminal = Terminal(given.terminal)
        except RobotRLError:
            if jog_keys:
                raise
        draws = given.screen and self._terminal
        self._screen = Screen(self._terminal.output) if draws else None
        self._recorder = f'{node.get_namespace().strip("/")}/episode_recorder'.lstrip('/')
        self._listen(node)

    def look(self, now: float) -> None:
        """Take the keys that were pressed until the steady time `now` [s]."""
        for key in self._terminal.keys() if self._terminal else ():
            if key in SESSION_KEYS:
                self._calls.append(SESSION_KEYS[key])
            elif self._keys:
                self._keys.press(key, now)

    def calls(self) -> list[str]:
        """Return what was asked for since the last call; see teleop.Device."""
        calls, self._calls = self._calls, []
        return calls

    def close(self) -> None:
        """Give the terminal back."""
        with self._lock:
            screen, self._screen = self._screen, None
            if screen:
                with contextlib.suppress(OSError):  # the terminal is gone
                    screen.close()
            if self._terminal:
                self._terminal.close()

    def _listen(self, node: Node) -> None:
        reader = support.LATCHED_READER
        node.create_subscription(String, support.SESSION_STATE, self._on_session, reader)
        node.create_subscription(String, support.SOURCE, self._on_source, reader)
        node.create_subscription(Bool, 'command_guard/estop_active', self._on_estop, reader)
        node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        node.create_subscription(Log, '/rosout', self._on_log, 10)
        if self._screen:
            node.create_timer(_DRAWN_EVERY_S, self._draw)

    def _on_session(self, message: String) -> None:
        with contextlib.suppress(SpecError):  # others tell of it
            info = SessionInfo.from_json(message.data, origin=support.SESSION_STATE)
            former = self._board.session.state
            line = self._board.hear_session(info, time.monotonic())
            if line and 'running' in (former, info.state):
                self._ring()
            self._say(line)

    def _on_source(self, message: String) -> None:
        self._board.source = message.data

    def _on_estop(self, message: Bool) -> None:
        if message.data and not self._board.stopped:
            self._say('EMERGENCY STOP')
        self._board.stopped = message.data

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == self._recorder:
                values = {pair.key: pair.value for pair in status.values}
                self._board.hear_recorder(status.message, values, time.monotonic())

    def _on_log(self, message: Log) -> None:
        if message.level >= Log.WARN:
            line = f'{message.name}: {message.msg}'
            self._board.lines.append(line)
            self._say(line)

    def _say(self, line: str) -> None:
        if line and not self._screen:
            print(line, flush=True)

    def _ring(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._screen:
                self._screen.ring()

    def _draw(self) -> None:
        keys = self._keys
        self._board.mode = keys.mode if keys else ''
        self._board.help = (*(keys.help if keys else ()), *SESSION_HELP)
        with self._lock, contextlib.suppress(OSError):
            if self._screen:
                self._screen.show(self._board)
