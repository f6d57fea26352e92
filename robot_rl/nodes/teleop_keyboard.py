"""The device `keyboard` of teleop: keys of the terminal that the desk reads."""

from __future__ import annotations

from rclpy.node import Node

from robot_rl.control.jog import Wish
from robot_rl.nodes.keys import JogKeys
from robot_rl.specs import RobotSpec, Spec


class Keyboard:
    """Wishes by keys; `keys` are given to the desk, which also knows those of the session."""

    def __init__(self, node: Node, robot: RobotSpec, given: Spec):
        self.keys = JogKeys(len(robot.joints))

    def wish(self, now: float) -> Wish:
        """See teleop.Device."""
        return self.keys.wish(now)

    def calls(self) -> list[str]:
        """See teleop.Device."""
        return []

    def close(self) -> None:
        """See teleop.Device."""
