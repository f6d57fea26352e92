"""CommandGuard: the last thing before the arm, with injected time and no ROS.

Not a certified safety device: it keeps an ordinary mistake of a policy from becoming a motion.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pydantic
from numpy.typing import ArrayLike

from robot_rl.control.limiter import Limits, interpolate, limit
from robot_rl.errors import SpecError
from robot_rl.specs import RobotSpec, Spec

# The controller whose commands are what the guard computes: positions, at a steady rate.
SERVED = 'forward_position'
# A measured pose less than this outside the limits [rad] is noise, and is commanded at the limit.
MEASUREMENT_TOLERANCE = 0.02
# A ramp is over once the command is this close [rad] to the target.
RAMP_REACHED = 0.01
# A late tick may make up for at most this many periods in one step.
LATE_PERIODS = 2


class GuardState(enum.StrEnum):
    """What the guard does: nothing, follow a source, hold its last command, stand still."""

    IDLE = 'idle'
    ACTIVE = 'active'
    HOLDING = 'holding'
    ESTOP = 'estop'


class GuardConfig(Spec):
    """How careful the guard is. The descriptions are those of the node's ROS parameters."""

    start: Literal['ramp', 'refuse'] = pydantic.Field(
        'ramp', description='what happens to a far first target: followed slowly, or refused'
    )
    start_gate: pydantic.PositiveFloat = pydantic.Field(
        0.1,
        description='a first target is far where a joint is more than this from where the arm '
        'stands, at the start and after a hold, or from the last command with a new source; an '
        'arm that is farther than this from a held command starts anew from where it stands '
        '[rad or m]',
    )
    tracking_gate: pydantic.PositiveFloat = pydantic.Field(
        0.2,
        description='a joint farther than this from a held command was moved by something else: '
        'the command is forgotten, so that the arm is not yanked back. Twice what an arm lags '
        'behind in a fast motion, 60 ms at 1.6 rad/s [rad or m]',
    )
    ramp_speed: pydantic.PositiveFloat = pydantic.Field(
        0.25, description='speed of the fastest joint during a ramp [rad/s or m/s]'
    )
    timeout_s: pydantic.PositiveFloat = pydantic.Field(
        0.1,
        description='a source that is quiet for longer has gone, and its last command is held; '
        'no target may take longer to reach (two periods of a 20 Hz policy)',
    )
    measured_max_age_s: pydantic.PositiveFloat = pydantic.Field(
        0.5,
        description='older joint states do not tell where the arm stands: commands are refused, '
        'and the last one is held',
    )
    estop_cooldown_s: pydantic.NonNegativeFloat = pydantic.Field(
        0.5, description='time from an emergency stop to the first reset that is heard'
    )


class Applied(NamedTuple):
    """One command to the arm: positions [n] in the order of RobotSpec.joints.

    `stamp` is the stamp of the command it stems from, as it was given; `source` is that
    command's source, or 'hold' or 'estop' while the guard repeats its last command.
    """

    positions: np.ndarray
    stamp: Any
    source: str


class CommandGuard:
    """Takes targets by joint name and gives, tick by tick, what the arm may be told.

    Every target is to be reached `duration_s` after it came: the guard interpolates from its last
    command to the target, within position and velocity limits, and holds afterwards. A tick gives
    the position for the end of the period that it begins. Times are seconds of any steady clock;
    time that goes backwards counts as standing still. Not thread-safe: callers hold one lock.
    Raises SpecError for a robot whose controller does not take positions.
    """

    def __init__(self, robot: RobotSpec, config: GuardConfig | None = None):
        if robot.controller.kind != SERVED:
            raise SpecError(
                f'robot {robot.name}: controller.kind {robot.controller.kind!r} would read '
                f'positions as something else; the guard serves {SERVED!r} only'
            )
        self.robot = robot
        self.config = config or GuardConfig()
        self.period_s = 1.0 / robot.controller.rate_hz
        self.limits = Limits.from_spec(robot)
        self._slow = self.limits.slowed(self.config.ramp_speed)
        self._state = GuardState.IDLE
        self._counts = dict.fromkeys(
            (
                'accepted',
                'refused',
                'clamped',
                'slowed',
                'ramped',
                'held',
                'displaced',
                'estopped',
            ),
            0,
        )
        self._last_refusal = ''
        self._clock: float | None = None  # the last time heard
        self._time = 0.0  # seconds passed since the first, never less than before
        self._measured: np.ndarray | None = None
        self._measured_at = self._stopped_at = 0.0
        self._forget()

    @property
    def state(self) -> GuardState:
        """What the guard does now."""
        return self._state

    @property
    def published(self) -> np.ndarray | None:
        """The last command [n]; None while idle."""
        return None if self._published is None else self._published.copy()

    def diagnostics(self) -> dict[str, Any]:
        """Return the state, how often the guard stepped in, and the last refusal."""
        return {'state': str(self._state), **self._counts, 'last_refusal': self._last_refusal}

    def measured(self, names: Sequence[str], positions: ArrayLike, now: float) -> str | None:
        """Take measured joint positions, in any order and among other joints.

        Returns None, or why they are refused; then the former ones stay. An arm that has left a
        held command behind is not told that command any more.
        """
        self._pass_time(now)
        found, reason = self._by_name(names, positions, others=True)
        if reason:
            return self._refuse(f'joint states: {reason}')
        self._measured, self._measured_at = found, self._time
        # In motion the arm lags behind, and how far says nothing: only a standing one is judged.
        if self._state is not GuardState.ACTIVE and self._is_off(self.config.tracking_gate):
            self._counts['displaced'] += 1
            self.reset()
        return None

    def command(
        self,
        names: Sequence[str],
        positions: ArrayLike,
        duration_s: float,
        stamp: Any,
        source: str,
        now: float,
    ) -> str | None:
        """Take a target, to be reached in `duration_s`, for exactly the robot's joints by name.

        Returns None, or why it is refused; then nothing has changed.
        """
        self._pass_time(now)
        if self._state is GuardState.ESTOP:
            return self._refuse(f'{source}: the emergency stop is latched; reset it first')
        target, reason = self._by_name(names, positions, others=False)
        follows = self._state is GuardState.ACTIVE
        # A hold that the arm has left is no place to go on from.
        anew = self._published is None or (not follows and self._is_off(self.config.start_gate))
        reason = reason or self._wrong_duration(duration_s) or self._unknown_pose(anew)
        if reason:
            return self._refuse(f'{source}: {reason}')
        goal, stands = self.limits.clip(target), self.limits.clip(self._measured)
        start = stands if anew else self._published
        if not follows or source != self._source:
            gap = np.abs(goal - (start if follows else stands))
            far = bool(gap.max() > self.config.start_gate)
            if far and self.config.start == 'refuse':
                return self._refuse(f'{source}: {self._too_far(gap)}')
            self._ramping = far
            self._counts['ramped'] += far
        if anew:
            self._ticked = self._time - self.period_s
        self._start, self._goal, self._published = start, goal, start
        self._duration, self._received = duration_s, self._time
        self._stamp, self._source, self._state = stamp, source, GuardState.ACTIVE
        self._counts['accepted'] += 1
        self._counts['clamped'] += bool((goal != target).any())
        return None

    def tick(self, now: float) -> Applied | None:
        """Return what the arm is to be told now; None: nothing, as no command has come."""
        self._pass_time(now)
        if self._published is None:
            return None
        if self._state is GuardState.ACTIVE:
            self._published = self._next()
        self._ticked = self._time
        repeated = {GuardState.HOLDING: 'hold', GuardState.ESTOP: 'estop'}
        source = repeated.get(self._state, self._source)
        return Applied(self._published.copy(), self._stamp, source)

    def reset(self) -> None:
        """Forget the command: nothing is published until the next. An emergency stop stays."""
        self._forget()
        if self._state is not GuardState.ESTOP:
            self._state = GuardState.IDLE

    def estop(self, now: float) -> None:
        """Stop at the last command and refuse all others until estop_reset()."""
        self._pass_time(now)
        self._state, self._stopped_at = GuardState.ESTOP, self._time
        self._counts['estopped'] += 1

    def estop_reset(self, now: float) -> str | None:
        """Release the emergency stop, into idle: the next command starts where the arm stands.

        Returns None, or why it is not released.
        """
        self._pass_time(now)
        if self._state is not GuardState.ESTOP:
            return 'no emergency stop is latched'
        left = self.config.estop_cooldown_s - (self._time - self._stopped_at)
        if left > 0:
            return f'the emergency stop is latched for another {left:.2f} s'
        self._state = GuardState.IDLE
        self._forget()
        return None

    def _forget(self) -> None:
        self._published = self._start = self._goal = None
        self._duration = self._received = self._ticked = 0.0
        self._stamp, self._source, self._ramping = 0, '', False

    def _pass_time(self, now: float) -> None:
        """Move the time on; hold where the source or the arm has been quiet for too long."""
        if self._clock is not None:
            self._time += max(0.0, now - self._clock)
        self._clock = now
        quiet = self._time - self._received > self.config.timeout_s
        if self._state is GuardState.ACTIVE and (quiet or self._blind()):
            self._state = GuardState.HOLDING
            self._counts['held'] += 1

    def _blind(self) -> str:
        """Say why it is not known where the arm stands now; nothing: it is known."""
        if self._measured is None:
            return 'no joint states have come: it is not known where the arm stands'
        age = self._time - self._measured_at
        if age <= self.config.measured_max_age_s:
            return ''
        allowed = self.config.measured_max_age_s
        return f'the last joint states are {age:.2f} s old, at most {allowed} s are allowed'

    def _is_off(self, gate: float) -> bool:
        """Tell whether a joint is measured farther than `gate` from the last command."""
        if self._published is None or self._measured is None:
            return False
        return bool(np.abs(self._measured - self._published).max() > gate)

    def _next(self) -> np.ndarray:
        """Return the position for the end of the period that begins now."""
        elapsed = min(self._time - self._ticked, LATE_PERIODS * self.period_s)
        fraction = (self._time + self.period_s - self._received) / self._duration
        aim = interpolate(self._start, self._goal, fraction)
        limits = self._slow if self._ramping else self.limits
        reached = limits.clip(limit(aim, self._published, elapsed, limits))
        self._counts['slowed'] += bool(np.abs(reached - aim).max() > 1e-9)
        if self._ramping and np.abs(self._goal - reached).max() <= RAMP_REACHED:
            self._ramping = False
        return reached

    def _by_name(
        self, names: Sequence[str], positions: ArrayLike, others: bool
    ) -> tuple[np.ndarray | None, str]:
        """Return the positions in the robot's order and '', or None and what is wrong."""
        names, joints = list(names), self.robot.joints
        try:
            values = np.asarray(positions, np.float64)
        except (TypeError, ValueError):
            return None, f'positions are not numbers: {positions!r}'
        if values.shape != (len(names),):
            return None, f'{len(names)} joint names but positions of shape {values.shape}'
        missing = [joint for joint in joints if joint not in names]
        unknown = [name for name in names if name not in joints and not others]
        if missing or unknown or len(set(names)) != len(names):
            return None, f'joint names {names} are not those of {self.robot.name}: {list(joints)}'
        values = values[[names.index(joint) for joint in joints]]
        if not np.isfinite(values).all():
            return None, f'not finite: {dict(zip(joints, values.tolist(), strict=True))}'
        return values, ''

    def _wrong_duration(self, duration_s: float) -> str:
        if 0 < duration_s <= self.config.timeout_s:
            return ''
        return (
            f'a target to be reached in {duration_s} s; right is above 0 and at most the command '
            f'timeout of {self.config.timeout_s} s, after which a quiet source is not followed'
        )

    def _unknown_pose(self, anew: bool) -> str:
        """Say why the arm is not to be moved from where it stands, if so; `anew`: from there."""
        if (reason := self._blind()) or not anew:
            return reason
        outside = np.abs(self._measured - self.limits.clip(self._measured))
        if outside.max() > MEASUREMENT_TOLERANCE:
            joint = self.robot.joints[int(outside.argmax())]
            return (
                f'{joint} is measured {outside.max():.3f} rad outside its limits; '
                'move the arm back inside them first'
            )
        return ''

    def _too_far(self, gap: np.ndarray) -> str:
        joint = self.robot.joints[int(gap.argmax())]
        return (
            f'the first target is {gap.max():.3f} rad from where {joint} stands, at most '
            f'{self.config.start_gate} rad are allowed; start from the measured pose'
        )

    def _refuse(self, reason: str) -> str:
        self._counts['refused'] += 1
        self._last_refusal = reason
        return reason
