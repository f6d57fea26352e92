"""The device `leader` of teleop: another arm, led by hand, whose joint positions are followed."""

from __future__ import annotations

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool

from robot_rl.control.jog import Wish
from robot_rl.errors import SpecError
from robot_rl.nodes import support
from robot_rl.specs import RobotSpec, Spec
from robot_rl.specs.robot import Gripper


class Leader:
    """A Device: hears the joint states of a leader and its gripper, and its dead-man switch.

    The switch is std_msgs/Bool, said again and again while it is held; without a topic for it, a
    leader that can be heard leads.
    """

    def __init__(self, node: Node, robot: RobotSpec, given: Spec):
        self._names = given.leader_joints or robot.joints
        if len(self._names) != len(robot.joints):
            raise SpecError(
                f'parameter leader_joints: {len(self._names)} names, {len(robot.joints)} are '
                f'right: one for each of {list(robot.joints)}'
            )
        self._gripper = _leaders_gripper(robot, given)
        self._states = support.Polled(node, JointState, given.leader_topic, support.SENSOR)
        self._switch = None
        if given.switch_topic:
            self._switch = support.Polled(node, Bool, given.switch_topic, support.COMMAND)
        self._stale_s, self._log = given.stale_s, node.get_logger()
        self._positions: np.ndarray | None = None
        self._width: float | None = None
        self._heard_at = self._held_at = -float('inf')

    def wish(self, now: float) -> Wish:
        """See teleop.Device."""
        if (state := self._states.newest()) is not None:
            self._take(state, now)
        if self._switch and (held := self._switch.newest()) is not None:
            self._held_at = now if held.data else -float('inf')
        fresh = now - self._heard_at <= self._stale_s
        held = not self._switch or now - self._held_at <= self._stale_s
        if not (fresh and held):
            return Wish()
        return Wish(enabled=True, positions=self._positions, width=self._width)

    def calls(self) -> list[str]:
        """See teleop.Device."""
        return []

    def close(self) -> None:
        """See teleop.Device."""

    def _take(self, state: JointState, now: float) -> None:
        by_name = dict(zip(state.name, state.position, strict=False))
        if missing := [name for name in self._names if name not in by_name]:
            self._log.error(
                f'leader: joints {missing} are not among {list(state.name)}; see leader_joints',
                throttle_duration_sec=5.0,
            )
            return
        self._positions = np.array([by_name[name] for name in self._names])
        self._heard_at = now
        if self._gripper is not None:
            position = by_name.get(self._gripper.joint)
            self._width = None if position is None else float(self._gripper.width(position))


def _leaders_gripper(robot: RobotSpec, given: Spec) -> Gripper | None:
    """Return how a leader's gripper tells of its width, as wide as the robot's; None: it has none.

    Raises SpecError.
    """
    if robot.gripper is None:
        return None
    changes: dict[str, object] = {}
    if given.leader_gripper:
        changes['joint'] = given.leader_gripper
    if given.leader_gripper_range:
        changes['positions'] = given.leader_gripper_range
    try:
        return robot.gripper.replace(**changes)
    except SpecError as error:
        raise SpecError(
            'parameter leader_gripper_range: two positions are right, when closed and when open, '
            f'found {list(given.leader_gripper_range)}'
        ) from error
