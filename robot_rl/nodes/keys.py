"""What the keys of a keyboard ask of an arm and of a session. ROS-free.

A terminal tells of presses, never of releases: a key that is held repeats. What repeats is held,
and what has been silent for HELD_S is let go.
"""

from __future__ import annotations

import numpy as np

from robot_rl.control.jog import Frame, Wish

# How long a press counts as held [s]: several repeats at 10 to 30 Hz, also by way of a network,
# and far less than the 0.25 to 0.66 s after which terminals begin to repeat. A key that is held so
# makes a nudge, rests until it repeats, and moves on; what is tapped is a nudge. To take the first
# press for held until repeats can have come would move the arm for half a second after every tap.
HELD_S = 0.2
# By how much + and - change the speed, and its slowest share.
GEAR, SLOWEST = 1.25, 0.05

SESSION_KEYS = {
    'enter': 'start',
    'y': 'success',
    'n': 'failure',
    'backspace': 'discard',
    'r': 'rerecord',
    ' ': 'estop',
    'Z': 'estop_reset',
}
TWIST_KEYS = {
    'up': (0, 1), 'down': (0, -1), 'left': (1, 1), 'right': (1, -1),
    'w': (2, 1), 's': (2, -1), 'pageup': (2, 1), 'pagedown': (2, -1),
    'u': (3, 1), 'j': (3, -1), 'i': (4, 1), 'k': (4, -1), 'o': (5, 1), 'l': (5, -1),
}  # fmt: skip
JOINT_KEYS = {'up': 1, 'right': 1, 'w': 1, 'down': -1, 'left': -1, 's': -1}
GRIP_KEYS = {'c': -1.0, 'v': 1.0}

# What the keys do, for whoever shows it.
HELP = {
    'Space': 'EMERGENCY STOP',
    'Z': 'release the stop',
    'Enter': 'start',
    'y': 'success',
    'n': 'failure',
    'r': 're-record',
    'Backspace': 'discard',
    'm': 'tool or joints',
    'arrows': 'move in x and y, or the joint',
    'w s': 'up and down',
    'u j, i k, o l': 'turn about x, y, z',
    '1 2 3 ...': 'which joint',
    'b': 'base or tool frame',
    '+ -': 'speed',
    'c v': 'close and open the gripper',
}


class JogKeys:
    """The wishes of somebody who presses keys, for an arm of so many joints. Times are steady."""

    def __init__(self, joints: int):
        self._joints = joints
        self.moves_tool, self.joint, self.gear = True, 0, 1.0
        self.frame: Frame = 'base'
        self._motion: np.ndarray | None = None  # [6] or [n] shares
        self._grip = 0.0
        self._moved_at = self._gripped_at = -np.inf
        self._calls: list[str] = []

    def press(self, key: str, now: float) -> None:
        """Take a key that was pressed, or has repeated, at `now` [s]."""
        if key in SESSION_KEYS:
            self._calls.append(SESSION_KEYS[key])
        elif key in GRIP_KEYS:
            self._grip, self._gripped_at = GRIP_KEYS[key], now
        elif key == 'm':
            self.moves_tool = not self.moves_tool
            self._let_go()
        elif key == 'b':
            self.frame = 'tool' if self.frame == 'base' else 'base'
            self._let_go()
        elif key in '+=':
            self.gear = min(1.0, self.gear * GEAR)
        elif key in '-_':
            self.gear = max(SLOWEST, self.gear / GEAR)
        elif self.moves_tool and key in TWIST_KEYS:
            index, sign = TWIST_KEYS[key]
            self._motion, self._moved_at = sign * np.eye(6)[index], now
        elif not self.moves_tool:
            self._press_for_joints(key, now)

    def wish(self, now: float) -> Wish:
        """Return what is asked of the arm at `now` [s]."""
        moves, grips = now - self._moved_at < HELD_S, now - self._gripped_at < HELD_S
        if not (moves or grips):
            return Wish()
        motion = self._motion * self.gear if moves else None
        return Wish(
            enabled=True,
            joints=None if self.moves_tool else motion,
            twist=motion if self.moves_tool else None,
            frame=self.frame,
            grip=self._grip if grips else 0.0,
        )

    def calls(self) -> list[str]:
        """Return what was asked for since the last call."""
        calls, self._calls = self._calls, []
        return calls

    @property
    def mode(self) -> str:
        """What is moved, and how fast."""
        what = f'tool, {self.frame} frame' if self.moves_tool else f'joint {self.joint + 1}'
        return f'{what}, speed {self.gear:.0%}'

    def _press_for_joints(self, key: str, now: float) -> None:
        if key.isdigit() and 1 <= int(key) <= self._joints:
            self.joint = int(key) - 1
            self._let_go()
        elif key in JOINT_KEYS:
            self._motion = JOINT_KEYS[key] * np.eye(self._joints)[self.joint]
            self._moved_at = now

    def _let_go(self) -> None:
        self._moved_at = self._gripped_at = -np.inf
