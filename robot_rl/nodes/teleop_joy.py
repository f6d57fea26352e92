"""The device `joy` of teleop: sensor_msgs/Joy of a gamepad or a SpaceMouse, by a mapping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
import pydantic
from rclpy.node import Node
from sensor_msgs.msg import Joy

from robot_rl import resources
from robot_rl.control.jog import Frame, Wish
from robot_rl.nodes import support
from robot_rl.specs import RobotSpec, Spec
from robot_rl.specs.contract import TWIST

Index = Annotated[int, pydantic.Field(ge=0, le=63)]
Call = Literal[
    'start', 'stop', 'success', 'failure', 'discard', 'rerecord', 'estop', 'estop_reset'
]  # fmt: skip


class Axis(Spec):
    """An axis of the joystick, and what a full deflection asks for."""

    axis: Index
    scale: float = pydantic.Field(1.0, ge=-1.0, le=1.0)


class JointMode(Spec):
    """How joints are moved, one each by an axis, in the place of the tool."""

    # The button that is held meanwhile, beside the dead-man button.
    button: Index
    # The axis of each joint, the arm's first one first; the arm may have more of them, or fewer.
    axes: tuple[Axis, ...] = pydantic.Field(min_length=1)


class Mapping(Spec):
    """What axes and buttons, by number, mean; a file in config/teleop."""

    schema_version: Literal[1] = 1
    # The button that is held while the arm is led.
    dead_man: Index
    # Deflections below are none.
    deadzone: float = pydantic.Field(0.1, ge=0.0, lt=1.0)
    frame: Frame = 'base'
    twist: dict[str, Axis]
    # Buttons that close and open the gripper while they are held; or one for both, in turn.
    close: Index | None = None
    open: Index | None = None
    toggle: Index | None = None
    joints: JointMode | None = None
    calls: dict[Call, Index] = pydantic.Field(default_factory=dict)

    @pydantic.model_validator(mode='after')
    def _names_elements_of_a_twist(self) -> Self:
        if unknown := [name for name in self.twist if name not in TWIST]:
            raise ValueError(f'twist: {unknown} are no elements of {list(TWIST)}')
        used = self._buttons
        if len(set(used)) != len(used):
            raise ValueError(f'a button stands twice in {sorted(used)}')
        return self

    @property
    def sizes(self) -> tuple[int, int]:
        """How many axes and buttons there have to be."""
        axes = [*self.twist.values(), *(self.joints.axes if self.joints else ())]
        return max((axis.axis for axis in axes), default=-1) + 1, max(self._buttons) + 1

    @property
    def _buttons(self) -> list[int]:
        """The numbers of all buttons that mean something."""
        named = [self.dead_man, self.close, self.open, self.toggle, *self.calls.values()]
        named.append(self.joints.button if self.joints else None)
        return [button for button in named if button is not None]


class Stick:
    """What the newest state of a joystick asks for. ROS-free; times are steady [s].

    A button counts only once it was seen released: neither at the start, nor when a joystick that
    was silent is back, does anything move by itself. A stop that is pressed then counts all the
    same: a joystick that speaks of changes only has been silent before.
    """

    def __init__(self, mapping: Mapping, stale_s: float, joints: int):
        self._mapping, self._stale_s, self._joints = mapping, stale_s, joints
        self._axes: Sequence[float] = ()
        self._buttons: Sequence[int] | None = None
        self._heard_at, self._released, self._closes = -float('inf'), False, False
        self._calls: list[str] = []

    def hear(self, axes: Sequence[float], buttons: Sequence[int], now: float) -> str:
        """Take a state; return why it is none for this mapping, '': it is one."""
        axes_needed, buttons_needed = self._mapping.sizes
        if len(axes) < axes_needed or len(buttons) < buttons_needed:
            return (
                f'joy: {len(axes)} axes and {len(buttons)} buttons; the mapping needs '
                f'{axes_needed} and {buttons_needed}'
            )
        self._look_for_silence(now)
        former, self._buttons, self._axes = self._buttons, buttons, axes
        self._heard_at = now
        self._released |= not buttons[self._mapping.dead_man]
        pairs = enumerate(zip(former or [0] * len(buttons), buttons, strict=False))
        pressed = {index for index, (was, held) in pairs if held and not was}
        if former is None:
            pressed &= {self._mapping.calls.get('estop')}
        self._calls += [call for call, i in self._mapping.calls.items() if i in pressed]
        self._closes ^= self._mapping.toggle in pressed
        return ''

    def wish(self, now: float) -> Wish:
        """Return what is asked of the arm."""
        self._look_for_silence(now)
        mapping, buttons = self._mapping, self._buttons
        if buttons is None or not (self._released and buttons[mapping.dead_man]):
            return Wish()
        held = [b is not None and bool(buttons[b]) for b in (mapping.open, mapping.close)]
        grip = float(held[0]) - float(held[1])
        if mapping.toggle is not None and buttons[mapping.toggle]:
            grip = -1.0 if self._closes else 1.0
        if mapping.joints and buttons[mapping.joints.button]:
            return Wish(enabled=True, joints=self._joint_shares(mapping.joints), grip=grip)
        twist = np.zeros(6)
        for name, axis in mapping.twist.items():
            twist[TWIST.index(name)] = self._deflection(axis)
        return Wish(enabled=True, twist=twist, frame=mapping.frame, grip=grip)

    def calls(self) -> list[str]:
        """Return what was asked for since the last call."""
        calls, self._calls = self._calls, []
        return calls

    def _joint_shares(self, mode: JointMode) -> np.ndarray:
        """Return the share of its speed of each joint [n]; 0 where no axis is left for it."""
        shares = np.zeros(self._joints)
        for joint, axis in enumerate(mode.axes[: self._joints]):
            shares[joint] = self._deflection(axis)
        return shares

    def _deflection(self, axis: Axis) -> float:
        """Return what an axis asks for; it begins with 0 where the dead zone ends."""
        value, zone = self._axes[axis.axis], self._mapping.deadzone
        beyond = float(np.sign(value)) * max(abs(value) - zone, 0.0) / (1 - zone)
        return axis.scale * beyond

    def _look_for_silence(self, now: float) -> None:
        if now - self._heard_at > self._stale_s:
            self._buttons, self._released = None, False


class Joystick:
    """A Device: hears a joystick's topic."""

    def __init__(self, node: Node, robot: RobotSpec, given: Spec):
        file = resources.find('config/teleop', given.mapping, kind='mapping')
        mapping = Mapping.from_yaml(file)
        self._stick = Stick(mapping, given.stale_s, len(robot.joints))
        self._log = node.get_logger()
        self._messages = support.Polled(node, Joy, given.joy_topic, support.STREAM)

    def wish(self, now: float) -> Wish:
        """See teleop.Device."""
        for message, _ in self._messages.drain():  # every one: a button may be pressed briefly
            if wrong := self._stick.hear(message.axes, message.buttons, now):
                self._log.error(wrong, throttle_duration_sec=5.0)
        return self._stick.wish(now)

    def calls(self) -> list[str]:
        """See teleop.Device."""
        return self._stick.calls()

    def close(self) -> None:
        """See teleop.Device."""
