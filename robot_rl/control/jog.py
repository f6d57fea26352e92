"""From what a person asks of the arm at this moment to joint targets and a gripper's width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pydantic

from robot_rl.errors import RobotRLError
from robot_rl.robots import quaternions
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.specs import RobotSpec, Spec

Frame = Literal['base', 'tool']

# No joint is led faster than this share of its limit, however near a singular pose is: the guard
# keeps up with that, and has something left to brake with.
TOP_SHARE = 0.5
# A joint slows down so that it would take at least this long to its limit [s].
SLOWS_WITHIN_S = 0.4
# The target runs ahead of the command by no more than a joint makes in this time at its top
# speed [s]: where something holds the arm back, nothing is left to be caught up with.
LEAD_S = 0.25
# A tick that comes late makes up for no more than this [s].
LONGEST_TICK_S = 0.1
# How often a displacement that takes too fast a joint is shortened before its joints' step is.
SHORTENED_AT_MOST = 4
# The smallest singular value of the Jacobian (with metres and radians alike) from which on the
# tool slows down on its way to a singular pose, and where it stops.
SINGULAR_FROM, SINGULAR_TO = 0.08, 0.02
# From closed to open, by a jog at full speed [s].
GRIP_TAKES_S = 0.7


class JogConfig(Spec):
    """How fast a person leads the arm. The descriptions are those of the node's parameters."""

    speed_scale: float = pydantic.Field(
        1.0, gt=0.0, le=1.0, description='share of the speeds below; may be set while it runs'
    )
    linear_speed: pydantic.PositiveFloat = pydantic.Field(
        0.25,
        le=1.0,
        description='speed of the tool at full deflection; the default is the reduced speed of '
        'ISO 10218-1 [m/s]',
    )
    angular_speed: pydantic.PositiveFloat = pydantic.Field(
        0.8, le=3.0, description='how fast the tool turns at full deflection [rad/s]'
    )
    joint_share: pydantic.PositiveFloat = pydantic.Field(
        0.25,
        le=TOP_SHARE,
        description="speed of a joint at full deflection, as a share of the joint's limit",
    )
    leader_gate: pydantic.PositiveFloat = pydantic.Field(
        0.1,
        le=0.5,
        description='a leader arm leads once each of its joints is this near to that of the arm '
        '[rad or m]',
    )
    leader_lost: pydantic.PositiveFloat = pydantic.Field(
        0.5,
        le=3.0,
        description='a leader arm that is farther from where it has led the arm leads no more, '
        'until it is near again [rad or m]',
    )


@dataclass(frozen=True, eq=False)
class Wish:
    """What a person asks of the arm at this moment; without anything: to be let alone."""

    # The dead-man switch is held.
    enabled: bool = False
    # Shares of each joint's jog speed [n], in -1..1.
    joints: np.ndarray | None = None
    # Shares of the tool's jog speeds [6], in -1..1: linear x y z, angular x y z.
    twist: np.ndarray | None = None
    frame: Frame = 'base'
    # -1 closes, 1 opens, 0 lets the gripper be.
    grip: float = 0.0
    # Joint positions [n] of a leader arm [rad or m], and how far its gripper is open [m].
    positions: np.ndarray | None = None
    width: float | None = None


class Target(NamedTuple):
    """Where the arm is to be led next: joint positions [n], a width [m]; None: nowhere."""

    positions: np.ndarray | None = None
    width: float | None = None


class Jog:
    """Integrates wishes, tick by tick, from where the arm's command is. ROS-free.

    A twist is followed by damped differential inverse kinematics, in the direction that is asked
    for; where a joint would be too fast, or is near its limit, the whole motion slows down. Times
    are steady [s]. Nothing is asked of the arm while the dead-man switch is not held.
    """

    def __init__(self, robot: RobotSpec, chain: KinematicChain, config: JogConfig | None = None):
        self.robot, self._chain = robot, chain
        self.config = config or JogConfig()
        self._top = TOP_SHARE * robot.max_velocity
        # Why a leader arm is not followed; nothing: it is, or there is none.
        self.waits = ''
        self._let_go()

    def tick(
        self, now: float, wish: Wish, command: np.ndarray | None, width: float | None = None
    ) -> Target:
        """Return where the arm is to be led.

        `command` [n] is where it has been commanded to or, without a command, where it is
        measured; `width` the same of the gripper. None: it is not known, and nothing is led.
        Raises RobotRLError for a wish of another size than the arm's.
        """
        if not (wish.enabled and command is not None and self._is_finite(wish)):
            self._let_go()
            return Target()
        dt = 0.0 if self._at is None else min(max(now - self._at, 0.0), LONGEST_TICK_S)
        self._at = now
        if self._target is None:
            self._target = np.clip(command, self.robot.lower, self.robot.upper)
        if wish.positions is not None:
            return self._follow(wish, command, width, dt)
        target = self._target + self._step(wish, dt)
        ahead = target - command
        self._target = command + ahead * _share(ahead, self._top * LEAD_S)
        return Target(self._target.copy(), self._grip(wish, width, dt))

    def _let_go(self) -> None:
        self._target: np.ndarray | None = None
        self._width: float | None = None
        self._at: float | None = None
        self._follows, self.waits = False, ''

    def _is_finite(self, wish: Wish) -> bool:
        """Tell whether all that is asked is. Raises RobotRLError where it is of a wrong size."""
        count = len(self.robot.joints)
        sizes = {'joints': count, 'twist': 6, 'positions': count}
        given = {name: getattr(wish, name) for name in sizes if getattr(wish, name) is not None}
        for name, values in given.items():
            if np.shape(values) != (sizes[name],):
                raise RobotRLError(
                    f'jog: {name} of shape {np.shape(values)}, ({sizes[name]},) is right'
                )
        numbers = [wish.grip, 0.0 if wish.width is None else wish.width]
        return all(np.isfinite(values).all() for values in (numbers, *given.values()))

    def _step(self, wish: Wish, dt: float) -> np.ndarray:
        """Return how the joints [n] go on within `dt`."""
        scale, limits = self.config.speed_scale * dt, self.robot.max_velocity
        if wish.joints is not None:
            step = np.clip(wish.joints, -1, 1) * self.config.joint_share * limits * scale
            allowed = self._allowed(step, dt)
            return np.clip(step, -allowed, allowed)  # the others need not wait for one of them
        if wish.twist is None:
            return np.zeros(len(limits))
        speeds = np.repeat([self.config.linear_speed, self.config.angular_speed], 3)
        moved = np.clip(wish.twist, -1, 1) * speeds * scale
        if wish.frame == 'tool':
            _, quaternion = self._chain.forward(self._target)
            moved = (quaternions.to_matrix(quaternion) @ moved.reshape(2, 3).T).T.ravel()
        return self._led(moved, dt)

    def _led(self, displacement: np.ndarray, dt: float) -> np.ndarray:
        """Return how the joints [n] go on so that the tool goes on by `displacement` [6].

        Or by less in the same direction, where a joint would be too fast. A large step of joints
        is no straight line of the tool, so it is the displacement that is shortened.
        """
        for _ in range(SHORTENED_AT_MOST):
            step = self._chain.displaced(self._target, displacement, self.robot.workspace)
            step -= self._target
            allowed = self._allowed(step, dt)
            share = _share(step, allowed)
            if share == 1.0:
                break
            displacement = share * displacement
        return share * self._pace(displacement, step) * step

    def _pace(self, displacement: np.ndarray, step: np.ndarray) -> float:
        """Return the share, at most 1, of a `step` [n] that leads nearer to a singular pose.

        As far as `displacement` [6] goes where the arm can hardly go any more: what damping makes
        of that is a motion aside. Away from a singular pose nothing is held back.
        """
        here, there = self._chain.jacobian(np.stack([self._target, self._target + step]))
        # An arm of five joints has five: without those that no joint moves the tool in.
        directions, values, _ = np.linalg.svd(here, full_matrices=False)
        if values[-1] >= SINGULAR_FROM or np.linalg.svd(there, compute_uv=False)[-1] >= values[-1]:
            return 1.0
        size = np.linalg.norm(displacement)
        into = min(1.0, 1.5 * abs(directions[:, -1] @ displacement) / size) if size else 0.0
        left = (values[-1] - SINGULAR_TO) / (SINGULAR_FROM - SINGULAR_TO)
        return 1.0 - into * (1.0 - max(left, 0.0))

    def _allowed(self, step: np.ndarray, dt: float) -> np.ndarray:
        """Return how far each joint [n] may go within `dt` in the direction of `step` [n]."""
        lower, upper = self._target - self.robot.lower, self.robot.upper - self._target
        room = np.maximum(np.where(step < 0, lower, upper), 0.0)
        return np.minimum(self._top, room / SLOWS_WITHIN_S) * dt

    def _follow(self, wish: Wish, command: np.ndarray, width: float | None, dt: float) -> Target:
        """Return where a leader arm leads the arm; nowhere before it is near."""
        leader = wish.positions
        gap = np.abs(leader - (self._target if self._follows else command))
        gate = self.config.leader_lost if self._follows else self.config.leader_gate
        joint = int(gap.argmax())
        if gap[joint] > gate:
            self._follows, self._target = False, None
            self.waits = (
                f"the leader's {self.robot.joints[joint]} is {gap[joint]:.2f} away from the "
                f"arm's; bring every joint within {self.config.leader_gate:g}"
            )
            return Target()
        self._follows, self.waits = True, ''
        step = np.clip(leader - self._target, -self._top * dt, self._top * dt)
        self._target = np.clip(self._target + step, self.robot.lower, self.robot.upper)
        return Target(self._target.copy(), self._grip(wish, width, dt))

    def _grip(self, wish: Wish, width: float | None, dt: float) -> float | None:
        """Return how far the gripper is to be open [m]; None: it is let be, or unknown."""
        gripper = self.robot.gripper
        if gripper is None or not (wish.grip or wish.width is not None):
            self._width = None
            return None
        if self._width is None:
            self._width = width
        if self._width is None:
            return None
        most = gripper.open_width / GRIP_TAKES_S * self.config.speed_scale * dt
        step = wish.grip * most if wish.width is None else wish.width - self._width
        wanted = self._width + float(np.clip(step, -most, most))
        self._width = min(max(wanted, 0.0), gripper.open_width)
        return self._width


def _share(step: np.ndarray, allowed: np.ndarray) -> float:
    """Return the share, at most 1, of `step` [n] that is nowhere more than `allowed` [n]."""
    size = np.abs(step)
    over = size > allowed
    return float((allowed[over] / size[over]).min()) if over.any() else 1.0
