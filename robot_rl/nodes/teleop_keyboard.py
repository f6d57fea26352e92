"""The device `keyboard` of teleop: keys of a terminal, for the arm and for the session."""

from __future__ import annotations

from rclpy.node import Node

from robot_rl.control.jog import Wish
from robot_rl.nodes.keys import JogKeys
from robot_rl.nodes.terminal import Terminal
from robot_rl.specs import RobotSpec, Spec


class Keyboard:
    """A Device: reads a terminal, and prints nothing to it.

    Raises RobotRLError where the terminal cannot be opened.
    """

    def __init__(self, node: Node, robot: RobotSpec, given: Spec):
        self._keys, self._log = JogKeys(len(robot.joints)), node.get_logger()
        self._terminal = Terminal(given.terminal)
        self._mode = self._keys.mode

    def wish(self, now: float) -> Wish:
        """See teleop.Device."""
        for key in self._terminal.pressed():
            self._keys.press(key, now)
        if self._mode != self._keys.mode:
            self._mode = self._keys.mode
            self._log.info(f'keys move: {self._mode}')
        return self._keys.wish(now)

    def calls(self) -> list[str]:
        """See teleop.Device."""
        return self._keys.calls()

    def close(self) -> None:
        """Give the terminal back as it was."""
        self._terminal.close()
