"""CommandGuard: the last thing before the arm, with injected time and no ROS.

Not a certified safety device: it keeps an ordinary mistake of a policy from becoming a motion.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pydantic
from numpy.typing import ArrayLike

from robot_rl.control.limiter import Limits
from robot_rl.control.motion import Line, Motion, at_rest, moving
from robot_rl.control.trail import Trail
from robot_rl.specs import RobotSpec, Spec

# A measured pose less than this outside the limits [rad] is noise, and is commanded at the limit.
MEASUREMENT_TOLERANCE = 0.02
# A ramp is over once the command is this close [rad] to the target.
RAMP_REACHED = 0.01
# Farther than this [rad] from where a command wants it, the arm is said to be slowed.
BEHIND = 1e-3
# The shortest time to reach a target in [s]: not less than clocks tell apart.
SHORTEST_S = 1e-6
# An arm is where it was measured for so many periods of its joint states, or of the guard, which
# hears them once a tick.
PERIODS_KNOWN = 3
# A step that leads less than this [m] farther out of the workspace does not leave it.
SAME_PLACE = 1e-6
# This share of its acceleration an arm that takes velocities has for making up for lag. Without
# any, what is out of step stays so for as long as the command speeds up or brakes.
LAG_SHARE = 0.2
# So many joint states in a row, off the path of the command, are no slip.
ASTRAY_SAMPLES = 3
# The longest command timeout that may be chosen [s].
MAX_TIMEOUT_S = 1.0
# A source is waited for, for so many of its periods, at the least: one, and what it may be late.
PERIODS_WAITED = 1.5
# A late tick may make up for at most this many periods in one step.
LATE_PERIODS = 2
# A tick that comes later than this share of a period is not the one that was prepared.
PUNCTUAL = 0.25


class GuardState(enum.StrEnum):
    """What the guard does: nothing, follow a source, hold its last command, stand still."""

    IDLE = 'idle'
    ACTIVE = 'active'
    HOLDING = 'holding'
    ESTOP = 'estop'


# Who blocks commands where the arm did not follow.
_ASTRAY = 'arm'
_BY_ITSELF = {
    GuardState.IDLE: '',
    GuardState.HOLDING: 'hold',
    GuardState.ESTOP: 'estop',
}


# What a relative topic of ROS begins with, before /command (rmw_validate_full_topic_name).
_SOURCE = re.compile(r'[A-Za-z]\w*(/[A-Za-z_]\w*)*', re.ASCII)


class GuardConfig(Spec):
    """How careful the guard is. The descriptions are those of the node's ROS parameters.

    No number is so great that a rule would be as good as switched off.
    """

    start: Literal['ramp', 'refuse'] = pydantic.Field(
        'ramp', description='what happens to a far first target: followed slowly, or refused'
    )
    start_gate: pydantic.PositiveFloat = pydantic.Field(
        0.1,
        le=1.0,
        description='a first target is far where a joint is more than this from where the arm '
        'stands, at the start and after a hold, or from the last command with a new source '
        '[rad or m]',
    )
    tracking_gate: pydantic.PositiveFloat = pydantic.Field(
        0.05,
        le=1.0,
        description='a joint farther than this from where it came to rest in a hold was moved by '
        'something else: the arm is held where it is measured, and the next command starts there '
        '[rad or m]',
    )
    path_tolerance: pydantic.PositiveFloat = pydantic.Field(
        0.15,
        le=1.0,
        description='while a source commands, a joint measured farther than this from all that it '
        'was told in the last tracking_delay_s does not follow: the arm is braked, held where it '
        'is, and commanded no more before the next episode or ~/reset [rad or m]',
    )
    tracking_delay_s: pydantic.NonNegativeFloat = pydantic.Field(
        0.2,
        le=1.0,
        description='how long after its command an arm is where it was told, at the latest: what '
        'wires, drives and the controller take together [s]',
    )
    ramp_speed: pydantic.PositiveFloat = pydantic.Field(
        0.25, le=1.0, description='speed of the fastest joint during a ramp [rad/s or m/s]'
    )
    timeout_s: float = pydantic.Field(
        0.1,
        ge=0.02,
        le=MAX_TIMEOUT_S,
        description='a source that is quiet for longer has gone, and its last command is held; '
        'no target may take longer to reach (two periods of a 20 Hz policy)',
    )
    measured_max_age_s: float = pydantic.Field(
        0.15,
        ge=0.02,
        le=0.5,
        description='older joint states do not tell where the arm stands: commands are refused, '
        'and the last one is held. Of 100 Hz the longest gap was 74 ms, with all nodes on two '
        'busy cores; the slowest drivers say it at 30 Hz [s]',
    )
    estop_cooldown_s: pydantic.NonNegativeFloat = pydantic.Field(
        0.5, le=60.0, description='time from an emergency stop to the first reset that is heard'
    )
    velocity_gain: pydantic.NonNegativeFloat = pydantic.Field(
        2.0,
        le=10.0,
        description='an arm that takes velocities is told this much more for each rad (or m) that '
        'it is measured behind [1/s]',
    )
    give_back_after_s: pydantic.NonNegativeFloat = pydantic.Field(
        0.5,
        le=60.0,
        description='how long a source must have been quiet before a later one of `sources` is '
        'heard again: a person who jogs step by step keeps the arm between two steps [s]',
    )
    sources: tuple[str, ...] = pydantic.Field(
        ('teleop', 'policy'),
        min_length=1,
        description='who may command, each on <source>/command; while an earlier one commands, '
        'and give_back_after_s longer, the later ones are not heard',
    )

    def too_slow(self, rate_hz: float) -> str:
        """Say why a policy of this rate would be held between its commands; '': it would not."""
        period_s = 1 / rate_hz
        if PERIODS_WAITED * period_s <= self.timeout_s + SHORTEST_S:
            return ''
        words = (
            f'a policy of {rate_hz:g} Hz commands every {period_s:.3g} s, and timeout_s is '
            f'{self.timeout_s:g} s: it would be held in between'
        )
        if PERIODS_WAITED * period_s > MAX_TIMEOUT_S:
            return f'{words}; needed are {PERIODS_WAITED / MAX_TIMEOUT_S:g} Hz or more'
        right_s = min(2 * period_s, MAX_TIMEOUT_S)
        return f'{words}; set timeout_s: {right_s:.3g} (parameter of command_guard)'

    @pydantic.field_validator('sources')
    @classmethod
    def _are_names(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        for source in sources:
            if not _SOURCE.fullmatch(source):
                raise ValueError(
                    f'{source!r} is no name of a source; right are letters, digits and _, '
                    'beginning with a letter, in parts between /'
                )
        if len(set(sources)) != len(sources):
            raise ValueError(f'a name stands twice in {list(sources)}')
        return sources


class Chain(Protocol):
    """What the guard asks of an arm's kinematics."""

    # How far any of the points moves, at most, when a joint does by 1 rad or m [n] [m].
    reach: np.ndarray

    def points(self, q: np.ndarray) -> np.ndarray:
        """Return where joints and tool stand [..., k, 3] [m] at q [..., n]; the tool is last."""


class Applied(NamedTuple):
    """One command to the arm: positions [n] and velocities [n] in the order of RobotSpec.joints.

    `stamp` is the stamp of the command it stems from, as it was given; `source` is that
    command's source, or 'hold' or 'estop' while the guard comes to rest and stays there.
    """

    positions: np.ndarray
    velocities: np.ndarray
    stamp: Any
    source: str


class _Ahead(NamedTuple):
    """A tick that was done beforehand: when it is due, where it leaves the guard, what it says."""

    due: float
    guard: CommandGuard
    applied: Applied | None


class CommandGuard:
    """Takes targets by joint name and gives, tick by tick, what the arm may be told.

    Every target is to be reached `duration_s` after it came: the guard goes from its last command
    to the target within the limits of position, velocity, acceleration and jerk, and comes to rest
    afterwards. It takes no step from which it could not stop with the tool in the workspace and
    every joint above its floor; from outside it takes those that lead no farther out. A tick gives
    the position for the end of the period that it begins. Times are seconds of any steady clock;
    time that goes backwards counts as standing still. Not thread-safe: callers hold one lock.
    """

    def __init__(self, robot: RobotSpec, chain: Chain, config: GuardConfig | None = None):
        self.robot, self._chain = robot, chain
        self.config = config or GuardConfig()
        self.period_s = 1.0 / robot.controller.rate_hz
        self.limits = Limits.from_spec(robot)
        if robot.controller.kind == 'forward_velocity':
            left = (1 - LAG_SHARE) * robot.max_acceleration
            self.limits = dataclasses.replace(self.limits, max_acceleration=left)
        self._slow = self.limits.slowed(self.config.ramp_speed)
        self._state = GuardState.IDLE
        self._counts = dict.fromkeys(
            (
                'accepted',
                'refused',
                'clamped',
                'slowed',
                'ramped',
                'walled',
                'overruled',
                'held',
                'displaced',
                'astray',
                'estopped',
            ),
            0,
        )
        self._last_refusal = self._last_intervention = ''
        self._blocks: dict[str, str] = {}  # why commands are refused
        self._clock: float | None = None  # the last time heard
        self._time = 0.0  # seconds passed since the first, never less than before
        self._measured: np.ndarray | None = None
        self._measured_at = self._stopped_at = 0.0
        # What an arm that takes velocities was told last, and when.
        self._told, self._told_at = np.zeros(len(robot.joints)), -np.inf
        self._measured_stamp, self._repeats = 0, False
        # Where the arm was last looked at [n], and how far outside it is there, side by side [m].
        self._looked: tuple[np.ndarray, np.ndarray] | None = None
        self.width: float | None = None  # what the gripper was told last [m]
        self._ahead: _Ahead | None = None
        self._forget()

    @property
    def state(self) -> GuardState:
        """What the guard does now."""
        return self._state

    @property
    def published(self) -> np.ndarray | None:
        """The last command [n]; None while idle."""
        return None if self._motion is None else self._motion.position.copy()

    @property
    def source(self) -> str:
        """Who commands the arm now: a source, or what the guard does by itself."""
        return self._source if self._state is GuardState.ACTIVE else _BY_ITSELF[self._state]

    @property
    def moves(self) -> bool:
        """Whether the command is not at rest."""
        return self._motion is not None and self._motion.moves

    @property
    def astray(self) -> str:
        """Why the arm is not commanded since it did not follow; nothing: it does."""
        return self._blocks.get(_ASTRAY, '')

    def diagnostics(self) -> dict[str, Any]:
        """Return the state, how often the guard stepped in, and the last times."""
        last = {'refusal': self._last_refusal, 'intervention': self._last_intervention}
        last = {f'last_{kind}': text for kind, text in last.items()}
        state = {'state': str(self._state), 'source': self.source, 'ramping': self._ramping}
        state['blocked'] = '; '.join(self._blocks.values())
        return state | self._counts | last

    def measured(
        self, names: Sequence[str], positions: ArrayLike, now: float, stamp: int = 0
    ) -> str | None:
        """Take measured joint positions, in any order and among other joints.

        Of `stamp` only a change counts, as clocks may differ: what comes again and again under one
        stamp grows old, as it does where a driver repeats its last message. 0: it has none.
        Returns None, or why they are refused; then the former ones stay. An arm that has left a
        held command behind is held where it is instead; one that does not follow a source is
        stopped there.
        """
        self._pass_time(now)
        found, reason = self._by_name(names, positions, self.robot.driver_joints, others=True)
        if reason:
            return self.refuse(f'joint states: {reason}')
        if self._motion is not None and self._rested is None and self._stands():
            # Where it has not been seen since, it is to be where it was told.
            self._rested = self._motion.position if self._blind() else self._measured
        self._measured, self._repeats = found, bool(stamp) and stamp == self._measured_stamp
        if not self._repeats:
            self._measured_at, self._measured_stamp = self._time, stamp
            self._look_for_straying()
        if self._was_displaced():
            self._intervene('displaced', 'something else has moved the arm')
            self._hold_where_measured()
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
        if self._overrules(source):
            self._counts['overruled'] += 1
            return None
        target, unfit = self._by_name(names, positions, self.robot.joints)
        anew = self._starts_anew()
        reason = self._closed_to(source) or unfit or self._wrong_duration(duration_s)
        if reason := reason or self._unknown_pose(anew):
            return self.refuse(f'{source}: {reason}')
        goal = self.limits.clip(target)
        if reason := self._gate(goal, source):
            return self.refuse(f'{source}: {reason}')
        if anew:
            self._start(at_rest(self.limits.clip(self._measured), self.limits))
        self._begin(goal, duration_s, source)
        self._received, self._stamp, self._forgets = self._time, stamp, False
        self._source, self._state = source, GuardState.ACTIVE
        self._counts['accepted'] += 1
        if (goal != target).any():
            joint = self.robot.joints[int(np.abs(goal - target).argmax())]
            self._intervene('clamped', f'{source}: {joint} beyond its limits')
        return None

    def grip(self, widths: ArrayLike, source: str, now: float) -> str | None:
        """Take how far the gripper is to open [1] [m]; `width` then is that, within its range.

        Of the sources the one that commands the arm is heard, or any while none does. An
        emergency stop and a hold let the gripper be: what it carries must not fall.
        Returns None, or why it is refused; then the width stays.
        """
        self._pass_time(now)
        if self._overrules(source):
            self._counts['overruled'] += 1
            return None
        widths = np.asarray(widths, np.float64)
        if reason := self._closed_to(source):
            return self.refuse(f'{source}: gripper: {reason}')
        if self.robot.gripper is None:
            return self.refuse(f'{source}: {self.robot.name} has no gripper')
        if widths.shape != (1,) or not np.isfinite(widths).all():
            return self.refuse(f'{source}: gripper: one width is needed, found {widths.tolist()}')
        (wanted,) = widths.tolist()
        self.width = min(max(wanted, 0.0), self.robot.gripper.open_width)
        if self.width != wanted:
            self._intervene('clamped', f'{source}: gripper beyond its range')
        return None

    def refuse(self, reason: str) -> str:
        """Count a refusal, also of what was no command from the first; return the reason."""
        self._ahead = None
        self._counts['refused'] += 1
        self._last_refusal = reason
        return reason

    def tick(self, now: float) -> Applied | None:
        """Return what the arm is to be told now; None: nothing, as no command has come."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.due <= now <= ahead.due + PUNCTUAL * self.period_s:
            self.__dict__.update(ahead.guard.__dict__)  # it goes on from where that one is
            return ahead.applied
        self._pass_time(now)
        if self._motion is None:
            return None
        due = self._time + self.period_s
        dt = min(due - self._due, LATE_PERIODS * self.period_s)
        if dt > 0:
            self._motion = self._next(due, dt)
            self._due = due
            if self._state is GuardState.ACTIVE or self.moves:
                self._moved_at, self._rested = self._time, None
        if self._forgets and not self.moves:
            self._forget()
            return None
        self._ticked_at = self._time
        position, velocity = self._motion.position.copy(), self._motion.velocity.copy()
        return Applied(position, velocity, self._stamp, self.source)

    def prepare(self, due: float) -> None:
        """Tick beforehand: a tick() at `due` before which nothing else happens has it at once.

        Where the source is still to be heard before that, its last target is taken once more, with
        no effect: it warms caches.
        """
        if self._line is None:
            return
        ahead = self._double()
        self._ahead = _Ahead(due, ahead, ahead.tick(due))
        if self._received <= self._ticked_at:
            target = self.robot.joints, self._line.goal, self.period_s, 0, self._source
            self._double().command(*target, due)

    def _double(self) -> CommandGuard:
        """Return a guard that is where this one is, and goes on by itself."""
        double = copy.copy(self)
        double._counts, double._ahead = dict(self._counts), None
        return double

    def block(self, who: str, reason: str, now: float) -> None:
        """Come to rest and refuse all commands until `who` is no reason any more; see unblock."""
        self._pass_time(now)
        self._blocks[who] = reason
        if self._state is GuardState.ACTIVE:
            self._hold(reason)

    def unblock(self, *who: str) -> None:
        """Hear commands again as far as these are concerned."""
        for one in who:
            self._blocks.pop(one, None)

    def velocities(self, applied: Applied | None) -> np.ndarray:
        """Return what an arm that takes velocities is to be told: [n], within its limits.

        It follows `applied` and does not drift away from it. Where it is not known where the arm
        is by now, and in an emergency stop, it does what `applied` does and makes up for nothing;
        without `applied` it comes to rest. From one call to the next it changes no faster than the
        limits of acceleration let it.
        """
        self._ahead = None
        wanted = np.zeros_like(self._told) if applied is None else applied.velocities
        age = self._time - self._measured_at
        period_s = max(1.0 / self.robot.joint_states_rate_hz, self.period_s)
        oldest_s = min(PERIODS_KNOWN * period_s, self.config.measured_max_age_s)
        known = self._measured is not None and age <= oldest_s
        if applied is not None and known and self._state is not GuardState.ESTOP:
            behind = applied.positions - self._measured
            wanted = wanted + self.config.velocity_gain * behind
        wanted = np.clip(wanted, -self.limits.max_velocity, self.limits.max_velocity)
        dt = min(self._time - self._told_at, LATE_PERIODS * self.period_s)
        if dt > 0:
            change = self.robot.max_acceleration * dt
            self._told = np.clip(wanted, self._told - change, self._told + change)
            self._told_at = self._time
        return self._told

    def reset(self) -> None:
        """Forget the command: come to rest, then publish nothing until the next.

        An arm that did not follow is commanded again. An emergency stop stays.
        """
        self._ahead = None
        self.unblock(_ASTRAY)
        if self.moves:
            self._forgets = True
            if self._state is not GuardState.ESTOP:
                self._state = GuardState.HOLDING
        else:
            self._forget()

    def estop(self, now: float) -> None:
        """Stop as fast as the limits allow and refuse all commands until estop_reset()."""
        self._pass_time(now)
        if self._state is not GuardState.ESTOP:
            self._intervene('estopped', 'the emergency stop was called')
        self._state, self._stopped_at = GuardState.ESTOP, self._time

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
        if self.moves:
            return 'the arm is still being braked'
        self._state = GuardState.IDLE
        self._forget()
        return None

    def _forget(self) -> None:
        self._motion: Motion | None = None
        self._trail = self._new_trail()
        self._off_path = 0  # joint states in a row
        self._rested: np.ndarray | None = None  # where the arm came to rest in a hold
        self._line: Line | None = None
        self._received = self._ticked_at = self._moved_at = 0.0
        self._outside = np.zeros(1)  # of each side, once it has been looked
        self._due = 0.0  # the time that the last command is for
        self._stamp, self._source = 0, ''
        self._ramping = self._forgets = False
        if self._state is not GuardState.ESTOP:
            self._state = GuardState.IDLE

    def _new_trail(self) -> Trail:
        return Trail(self.config.tracking_delay_s, len(self.robot.joints))

    def _stands(self) -> bool:
        """Tell whether the command has been at rest for so long that the arm is as well."""
        at_rest = self._state is not GuardState.ACTIVE and not self.moves
        return at_rest and self._time - self._moved_at >= self.config.tracking_delay_s

    def _intervene(self, kind: str, why: str) -> None:
        self._counts[kind] += 1
        self._last_intervention = f'{kind}: {why}'

    def _overrules(self, source: str) -> bool:
        """Tell whether a source that comes before `source` commands the arm, or just did."""
        if not self._source or self._state is GuardState.ESTOP:
            return False
        quiet = self._time - self._received
        if self._state is not GuardState.ACTIVE and quiet > self.config.give_back_after_s:
            return False
        first = self.config.sources.index(self._source)
        return source in self.config.sources[first + 1 :]

    def _closed_to(self, source: str) -> str:
        """Say why nobody, or this source, is heard now; nothing: it is."""
        if self._state is GuardState.ESTOP:
            return 'the emergency stop is latched; reset it first'
        if source not in self.config.sources:
            return f'no source that this guard knows; they are {list(self.config.sources)}'
        return '; '.join(self._blocks.values())

    def _starts_anew(self) -> bool:
        """Tell whether the next command starts where the arm stands, not at the last command.

        A hold that the arm has left is no place to go on from.
        """
        return self._motion is None or (self._stands() and self._is_off(self.config.tracking_gate))

    def _gate(self, goal: np.ndarray, source: str) -> str:
        """Decide whether `goal` is far for a beginning: say why it is refused, or let it ramp."""
        follows = self._state is GuardState.ACTIVE
        if follows and source == self._source:
            return ''
        # A new source takes over from the command; after a hold it is the arm that counts.
        gap = np.abs(goal - (self._motion.position if follows else self._measured))
        far = bool(gap.max() > self.config.start_gate)
        if far and self.config.start == 'refuse':
            return self._too_far(gap)
        self._ramping = far
        if far:
            self._intervene('ramped', f'{source} begins {gap.max():.2f} rad away')
        return ''

    def _begin(self, goal: np.ndarray, duration_s: float, source: str) -> None:
        """Make the line to `goal`: it begins when the last command is over, and where it led."""
        begins = self._due = max(self._due, self._time)
        start = self._motion.position
        if self._state is GuardState.ACTIVE and source == self._source:
            start = self._line.at(begins)
        self._line = Line(start, goal, begins, begins + duration_s)

    def _pass_time(self, now: float) -> None:
        """Move the time on; hold where the source or the arm has been quiet for too long."""
        self._ahead = None  # something else happens
        if self._clock is not None:
            self._time += max(0.0, now - self._clock)
        self._clock = now
        if self._state is not GuardState.ACTIVE:
            return
        quiet = self._time - self._received
        if reason := self._blind():
            self._hold(reason)
        elif quiet > self.config.timeout_s:
            self._hold(f'{self._source} has been quiet for {quiet:.2f} s')

    def _hold(self, why: str) -> None:
        self._state = GuardState.HOLDING
        self._intervene('held', why)

    def _blind(self) -> str:
        """Say why it is not known where the arm stands now; nothing: it is known."""
        if self._measured is None:
            return 'no joint states have come: it is not known where the arm stands'
        age = self._time - self._measured_at
        if age <= self.config.measured_max_age_s:
            return ''
        allowed = f'at most {self.config.measured_max_age_s} s are allowed'
        if self._repeats:
            return f'joint states come, but their stamp has stood still for {age:.2f} s, {allowed}'
        return f'the last joint states are {age:.2f} s old, {allowed}'

    def _look_for_straying(self) -> None:
        """Stop the arm where it is measured, if it is off the path that a source leads it.

        A healthy arm is where it was told to be a moment ago: between the least and the greatest
        that each joint was told in the last `tracking_delay_s`.
        """
        if self._motion is None:
            return
        self._trail.append(self._time, self._motion.position, self._measured)
        told = self._trail.told
        off = np.maximum(self._measured - told.max(axis=0), told.min(axis=0) - self._measured)
        astray = self._state is GuardState.ACTIVE and off.max() > self.config.path_tolerance
        self._off_path = self._off_path + 1 if astray else 0
        if self._off_path >= ASTRAY_SAMPLES:
            joint = self.robot.joints[int(off.argmax())]
            self._stop_astray(f'{joint} is {off.max():.2f} rad off the path that it was told')

    def _was_displaced(self) -> bool:
        """Tell whether an arm at rest has left where it came to rest, or is nowhere near a hold.

        Not where it was told to be: an arm that sags under its load would be told to sink, time
        and again.
        """
        if self._rested is None or not self._stands():
            return False
        moved = np.abs(self._measured - self._rested).max() > self.config.tracking_gate
        return bool(moved) or self._is_off(self.config.path_tolerance)

    def _hold_where_measured(self) -> None:
        """Hold an arm at rest where it is; say nothing to one that is outside its limits.

        What it was told last, many a controller keeps for when it is switched on again.
        """
        if self._outside_limits().max() > MEASUREMENT_TOLERANCE:
            self._forget()
        else:
            self._start(at_rest(self.limits.clip(self._measured), self.limits))

    def _stop_astray(self, why: str) -> None:
        """Brake from where, and as fast as, the arm is measured to move; hear nobody."""
        self._intervene('astray', why)
        self._blocks[_ASTRAY] = (
            f'the arm does not follow: {why}; begin another episode, or call ~/reset'
        )
        self._state = GuardState.HOLDING
        times, places, top = self._trail.times, self._trail.measured, self.limits.max_velocity
        way, took_s = places[-1] - places[0], max(times[-1] - times[0], self.period_s)
        speed = np.clip(way / took_s, -top, top)
        self._start(moving(self.limits.clip(self._measured), speed, self.limits))

    def _start(self, motion: Motion) -> None:
        """Go on with a motion that begins where the arm is measured."""
        self._motion, self._trail, self._off_path = motion, self._new_trail(), 0
        self._moved_at, self._rested = self._time, None
        self._outside = self._depth_outside(motion)

    def _is_off(self, gate: float) -> bool:
        """Tell whether a joint is measured farther than `gate` from the last command."""
        if self._motion is None or self._measured is None:
            return False
        return bool(np.abs(self._measured - self._motion.position).max() > gate)

    def _next(self, due: float, dt: float) -> Motion:
        """Return the motion at the time `due`, `dt` after that of the last one."""
        motion, limits, line = self._motion, self.limits, self._line
        if self._state is not GuardState.ACTIVE:
            return motion.brake(dt, limits)
        if self._ramping:
            rest = line._replace(start=line.goal)
            moved = motion.follow(rest, due, dt, self._slow)
            self._ramping = bool(np.abs(line.goal - moved.position).max() > RAMP_REACHED)
            if not self._ramping:  # what is left, at the same speed
                ends = due + RAMP_REACHED / self.config.ramp_speed
                self._line = Line(moved.position, line.goal, due, ends)
        else:
            moved = motion.follow(line, due, dt, limits)
            behind = np.abs(moved.position - line.at(due)).max()
            if behind > BEHIND:
                self._intervene('slowed', f'{self._source} is {behind:.3f} rad ahead')
        outside = self._depth_outside(moved)
        allowed = np.maximum(self._outside, 0.0)
        if (outside > allowed + SAME_PLACE).any():
            self._intervene('walled', f'{self._source} would leave the workspace')
            return motion.brake(dt, limits)
        self._outside = np.minimum(outside, allowed)  # and not a little more with every step
        return moved

    def _depth_outside(self, motion: Motion) -> np.ndarray:
        """Return how far [6 + n] [m] the arm is out of its workspace at worst while it brakes.

        That is the tool beyond each side of the box, and each joint below its floor. Well inside,
        a bound of it is returned: how deep inside the arm was last, less all that it can have
        moved since.
        """
        if self._looked is not None:
            where, depth = self._looked
            low, high = motion.extent(self.limits)
            bound = depth + np.maximum(high - where, where - low) @ self._chain.reach
            if (bound < 0).all():
                return bound
        positions = motion.path_to_rest(self.limits)
        points, box = self._chain.points(positions), self.robot.workspace
        tool, joints = points[:, -1], points[:, :-1]
        below = box.lower[2] - joints[..., 2]
        depths = np.column_stack([tool - box.upper, box.lower - tool, below])
        self._looked = positions[0], depths[0]
        return depths.max(axis=0)

    def _by_name(
        self,
        names: Sequence[str],
        positions: ArrayLike,
        joints: tuple[str, ...],
        others: bool = False,
    ) -> tuple[np.ndarray | None, str]:
        """Return the positions in the order of `joints` and '', or None and what is wrong."""
        try:
            values = np.asarray(positions, np.float64)
        except (TypeError, ValueError):
            return None, f'positions are not numbers: {positions!r}'
        if values.shape != (len(names),):
            return None, f'{len(names)} joint names but positions of shape {values.shape}'
        order = _order(tuple(names), joints, others)
        if order is None:
            return (
                None,
                f'joint names {list(names)} are not those of {self.robot.name}: {list(joints)}',
            )
        values = values[list(order)]
        if not np.isfinite(values).all():
            return None, f'not finite: {dict(zip(joints, values.tolist(), strict=True))}'
        return values, ''

    def _wrong_duration(self, duration_s: float) -> str:
        if SHORTEST_S <= duration_s <= self.config.timeout_s:
            return ''
        return (
            f'a target to be reached in {duration_s} s; right is at least 1e-6 s and at most the '
            f'command timeout of {self.config.timeout_s} s, after which nobody is followed'
        )

    def _unknown_pose(self, anew: bool) -> str:
        """Say why the arm is not to be moved from where it stands, if so; `anew`: from there."""
        if (reason := self._blind()) or not anew:
            return reason
        outside = self._outside_limits()
        if outside.max() > MEASUREMENT_TOLERANCE:
            joint = self.robot.joints[int(outside.argmax())]
            return (
                f'{joint} is measured {outside.max():.3f} rad outside its limits; '
                'move the arm back inside them first'
            )
        return ''

    def _outside_limits(self) -> np.ndarray:
        """Return how far every joint is measured outside its limits [n]."""
        return np.abs(self._measured - self.limits.clip(self._measured))

    def _too_far(self, gap: np.ndarray) -> str:
        joint = self.robot.joints[int(gap.argmax())]
        return (
            f'the first target is {gap.max():.3f} rad from where {joint} stands, at most '
            f'{self.config.start_gate} rad are allowed; start from the measured pose'
        )


@functools.lru_cache(maxsize=16)  # the same names come with every message
def _order(
    names: tuple[str, ...], joints: tuple[str, ...], others: bool
) -> tuple[int, ...] | None:
    """Return where each of `joints` stands in `names`, among `others` where these may be there.

    None: one of them is missing, a name stands there twice, or there are others.
    """
    if len(set(names)) != len(names) or not set(joints) <= set(names):
        return None
    if not others and len(names) != len(joints):
        return None
    return tuple(names.index(joint) for joint in joints)
