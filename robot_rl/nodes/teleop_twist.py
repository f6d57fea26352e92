"""The device `twist` of teleop: geometry_msgs/Twist or TwistStamped, in m/s and rad/s.

Whoever publishes holds the dead-man switch: silence is its release.
"""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import Twist, TwistStamped
from rclpy.node import Node

from robot_rl.control.jog import Frame, Wish
from robot_rl.nodes import support
from robot_rl.specs import RobotSpec, Spec


class Twister:
    """A Device: hears a topic of twists. A stamped one may be in the tool's frame."""

    def __init__(self, node: Node, robot: RobotSpec, given: Spec):
        kind = TwistStamped if given.twist_stamped else Twist
        self._twists = support.Polled(node, kind, given.twist_topic, support.COMMAND)
        self._speeds = np.repeat([given.linear_speed, given.angular_speed], 3)
        self._frames: dict[str, Frame] = {
            '': 'base',
            robot.driver_frame: 'base',
            robot.tf_prefix + robot.tool_site: 'tool',
        }
        self._stale_s, self._log = given.stale_s, node.get_logger()
        self._heard_at, self._wish = -float('inf'), Wish()

    def wish(self, now: float) -> Wish:
        """See teleop.Device."""
        if (message := self._twists.newest()) is not None:
            self._heard_at, self._wish = now, self._asked(message)
        return self._wish if now - self._heard_at <= self._stale_s else Wish()

    def calls(self) -> list[str]:
        """See teleop.Device."""
        return []

    def close(self) -> None:
        """See teleop.Device."""

    def _asked(self, message: Twist | TwistStamped) -> Wish:
        frame: Frame | None = 'base'
        if isinstance(message, TwistStamped):
            frame = self._frames.get(message.header.frame_id)
            if frame is None:
                self._log.error(
                    f'twist in frame {message.header.frame_id!r}; right are '
                    f'{", ".join(map(repr, self._frames))}',
                    throttle_duration_sec=5.0,
                )
                return Wish()
            message = message.twist
        speeds = [getattr(part, axis) for part in (message.linear, message.angular)
                  for axis in 'xyz']  # fmt: skip
        return Wish(enabled=True, twist=np.array(speeds) / self._speeds, frame=frame)
