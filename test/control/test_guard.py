from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.control.guard import CommandGuard, GuardConfig, GuardState
from robot_rl.errors import SpecError
from robot_rl.specs import RobotSpec

NAMES = ('shoulder', 'elbow', 'wrist')
HOME = np.array([0.1, -0.2, 0.3])
PERIOD = 0.05
TICK = 0.01


def started(robot: RobotSpec, **config) -> CommandGuard:
    guard = CommandGuard(robot, GuardConfig(**config))
    assert guard.measured(NAMES, HOME, now=0.0) is None
    return guard


def send(guard, target, now, *, duration=PERIOD, stamp=1, source='policy', names=NAMES):
    return guard.command(names, target, duration, stamp, source, now)


def run(guard, times) -> np.ndarray:
    return np.array([guard.tick(now).positions for now in times])


def follow(guard, now) -> None:
    """Let the arm be measured where it was last told to be."""
    stands = HOME if guard.published is None else guard.published
    assert guard.measured(NAMES, stands, now) is None


def test_interpolates_linearly_and_arrives_after_the_duration(robot):
    guard = started(robot)
    target = HOME + np.array([0.04, -0.05, 0.02])
    assert send(guard, target, now=1.0, duration=0.05) is not None  # joint states are 1 s old
    guard.measured(NAMES, HOME, now=1.0)
    assert send(guard, target, now=1.0) is None
    out = run(guard, 1.0 + TICK * np.arange(7))
    fractions = np.array([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])[:, None]
    np.testing.assert_allclose(out, HOME + fractions * (target - HOME), atol=1e-12)
    assert np.array_equal(out[-1], target)


def test_a_stream_of_targets_continues_from_the_last_command(robot):
    guard = started(robot)
    last = HOME
    for k in range(20):
        follow(guard, PERIOD * k)
        target = last + 0.03
        assert send(guard, target, now=PERIOD * k) is None
        out = run(guard, PERIOD * k + TICK * np.arange(5))
        np.testing.assert_allclose(out, np.linspace(last, target, 6)[1:], atol=1e-12)
        last = target
    assert guard.diagnostics()['slowed'] == 0


def test_names_map_joints_in_any_order_and_among_others(robot):
    guard = CommandGuard(robot)
    assert guard.measured(['wrist', 'finger', 'shoulder', 'elbow'], [0.3, 9, 0.1, -0.2], 0) is None
    assert send(guard, [0.31, 0.11, -0.21], 0.0, names=['wrist', 'shoulder', 'elbow']) is None
    out = run(guard, [0.0, 0.05])
    np.testing.assert_allclose(out[-1], [0.11, -0.21, 0.31])


@pytest.mark.parametrize(
    ('names', 'positions', 'told'),
    [
        (NAMES, [np.nan, 0, 0], 'not finite'),
        (NAMES, [0, np.inf, 0], 'not finite'),
        (NAMES, [0, 0], 'shape (2,)'),
        (NAMES, [[0, 0, 0]], 'shape (1, 3)'),
        (NAMES, [0, 'left', 0], 'not numbers'),
        (NAMES, None, 'shape ()'),
        (('shoulder', 'elbow', 'knee'), [0, 0, 0], "['shoulder', 'elbow', 'wrist']"),
        (('shoulder', 'elbow'), [0, 0], 'are not those of planar'),
        ((*NAMES, 'knee'), [0, 0, 0, 0], 'are not those of planar'),
        ((*NAMES, 'wrist'), [0, 0, 0, 0], 'are not those of planar'),
        ((), [], 'are not those of planar'),
    ],
)
def test_a_bad_command_is_refused_with_a_reason_and_changes_nothing(robot, names, positions, told):
    guard, twin = started(robot), started(robot)
    for one in (guard, twin):
        send(one, HOME + 0.02, now=0.0)
    for k in range(10):
        reason = send(guard, positions, now=TICK * k, names=names)
        assert told in reason
        assert '\n' not in reason
        a, b = guard.tick(TICK * k), twin.tick(TICK * k)
        assert np.array_equal(a.positions, b.positions)
        assert a.source == b.source
    assert guard.diagnostics()['refused'] == 10
    assert guard.diagnostics()['last_refusal'] == reason


@pytest.mark.parametrize('duration', [0.0, -0.05, np.nan, np.inf, 0.2])
def test_a_duration_that_cannot_be_kept_is_refused(robot, duration):
    guard = started(robot)
    assert 'command timeout of 0.1 s' in send(guard, HOME, now=0.0, duration=duration)
    assert guard.tick(0.0) is None


def test_nothing_is_published_before_it_is_known_where_the_arm_stands(robot):
    guard = CommandGuard(robot)
    assert guard.tick(0.0) is None
    assert 'no joint states have come' in send(guard, HOME, now=0.0)
    assert 'not finite' in guard.measured(NAMES, [0, np.nan, 0], now=0.0)
    assert 'are not those of planar' in guard.measured(NAMES[:2], [0, 0], now=0.0)
    assert 'no joint states have come' in send(guard, HOME, now=0.0)
    assert guard.tick(0.0) is None
    guard.measured(NAMES, HOME, now=0.0)
    assert guard.tick(0.01) is None
    assert 'are 0.60 s old' in send(guard, HOME, now=0.6)


def test_an_arm_outside_its_limits_is_not_commanded(robot):
    guard = started(robot)
    guard.measured(NAMES, [0, 1.1, 0], now=0.0)
    assert 'elbow is measured 0.100 rad outside its limits' in send(guard, HOME, now=0.0)
    guard.measured(NAMES, [0, 1.01, 0], now=0.0)  # noise about the limit of 1.0
    assert send(guard, [0, 0.99, 0], now=0.0) is None
    assert guard.tick(9.0).positions[1] == 1.0  # held where it started, but within the limits


def test_a_quiet_source_is_held_exactly_and_may_come_back(robot):
    guard = started(robot)
    send(guard, HOME + 0.05, now=0.0, duration=0.1, stamp=7)
    moving = guard.tick(0.04)
    assert (moving.source, moving.stamp) == ('policy', 7)
    held = [guard.tick(0.5 + TICK * k) for k in range(5)]
    assert guard.state is GuardState.HOLDING
    for applied in held:
        assert np.array_equal(applied.positions, moving.positions)
        assert applied.source == 'hold'
    assert guard.diagnostics()['held'] == 1
    follow(guard, 0.6)
    assert send(guard, moving.positions + 0.05, now=0.6) is None
    assert guard.state is GuardState.ACTIVE
    np.testing.assert_allclose(guard.tick(0.6).positions, moving.positions + 0.01)


def test_reset_forgets_the_command(robot):
    guard = started(robot)
    send(guard, HOME + 0.05, now=0.0)
    assert guard.tick(0.0) is not None
    guard.reset()
    assert guard.state is GuardState.IDLE
    assert guard.tick(0.01) is None
    guard.measured(NAMES, HOME - 0.5, now=0.02)
    send(guard, HOME - 0.5, now=0.02)
    np.testing.assert_allclose(guard.tick(0.02).positions, HOME - 0.5)


def test_estop_latches_until_it_is_reset_after_the_cool_down(robot):
    guard = started(robot)
    send(guard, HOME + 0.05, now=0.0)
    before = guard.tick(0.0).positions
    guard.estop(0.01)
    for now in (0.01, 0.2, 5.0):
        assert 'latched' in send(guard, HOME, now=now)
        applied = guard.tick(now)
        assert np.array_equal(applied.positions, before)
        assert applied.source == 'estop'
    guard.estop(5.0)
    assert 'another 0.30 s' in guard.estop_reset(5.2)
    guard.reset()
    assert guard.state is GuardState.ESTOP
    assert guard.estop_reset(5.51) is None
    assert guard.state is GuardState.IDLE
    assert guard.tick(5.52) is None
    assert 'no emergency stop' in guard.estop_reset(5.53)
    guard.measured(NAMES, HOME, now=5.6)
    assert send(guard, HOME, now=5.6) is None
    assert guard.diagnostics()['estopped'] == 2


def test_a_far_first_target_is_ramped_slowly_then_followed(robot):
    guard = started(robot, ramp_speed=0.25)
    target = HOME + np.array([0.0, -0.5, 0.25])
    out = [HOME]
    for k in range(300):
        now = TICK * k
        if k % 5 == 0:
            follow(guard, now)
            assert send(guard, target, now) is None
        out.append(guard.tick(now).positions)
    steps = np.abs(np.diff(out, axis=0))
    assert steps.max() <= 0.25 * TICK + 1e-12
    np.testing.assert_allclose(steps[10], [0, 0.0025, 0.00125], atol=1e-12)  # a straight line
    assert np.array_equal(out[-1], target)
    assert guard.diagnostics()['ramped'] == 1
    follow(guard, 3.0)
    send(guard, target + np.array([0, 0, 0.08]), now=3.0)
    np.testing.assert_allclose(guard.tick(3.0).positions, target + np.array([0, 0, 0.016]))


def test_a_far_first_target_is_refused_where_so_configured(robot):
    guard = started(robot, start='refuse')
    assert '0.500 rad from where elbow stands' in send(
        guard, HOME + np.array([0, -0.5, 0]), now=0.0
    )
    assert guard.tick(0.0) is None
    assert send(guard, HOME + 0.05, now=0.0) is None
    assert send(guard, HOME + np.array([0, -0.5, 0]), now=0.05) is None  # not the first


def test_a_source_that_comes_back_after_a_hold_passes_the_start_gate_too(robot):
    guard = started(robot)
    send(guard, HOME, now=0.0)
    guard.tick(0.0)
    guard.tick(0.5)
    follow(guard, 0.51)
    send(guard, HOME + np.array([0, -0.5, 0]), now=0.51)
    moved = guard.tick(0.51).positions - HOME
    np.testing.assert_allclose(moved, [0, -0.0025, 0], atol=1e-12)


def test_another_source_passes_the_start_gate_too(robot):
    guard = started(robot)
    send(guard, HOME, now=0.0, source='policy')
    guard.tick(0.0)
    send(guard, HOME + np.array([0, -0.5, 0]), now=0.01, source='teleop')
    moved = guard.tick(0.01).positions - HOME
    np.testing.assert_allclose(moved, [0, -0.0025, 0], atol=1e-12)


def test_positions_beyond_the_limits_are_clamped_and_counted(robot):
    guard = started(robot)
    for k in range(1500):
        now = TICK * k
        if k % 5 == 0:
            follow(guard, now)
            send(guard, [5.0, 5.0, -9.0], now)
        applied = guard.tick(now)
    np.testing.assert_array_equal(applied.positions, [2.0, 1.0, -3.0])
    assert guard.diagnostics()['clamped'] == 300


def test_fast_targets_keep_the_velocity_limit_and_the_direction(robot):
    guard = started(robot)
    send(guard, HOME, now=0.0)
    guard.tick(0.0)
    send(guard, HOME + np.array([0.2, 0.1, 0.0]), now=0.01)
    step = guard.tick(0.01).positions - HOME
    np.testing.assert_allclose(step, [0.01, 0.005, 0.0], atol=1e-12)
    assert guard.diagnostics()['slowed'] == 1


def test_a_late_tick_makes_up_for_two_periods_at_most(robot):
    guard = started(robot)
    for k in range(3):
        send(guard, HOME + np.array([0.5, 0, 0]), now=0.05 * k)
        guard.tick(0.05 * k)
    before = guard.published
    send(guard, HOME + np.array([0.5, 0, 0]), now=0.2)
    guard.tick(0.2)
    assert np.abs(guard.published - before).max() <= 2 * TICK * 1.0 + 1e-12


def test_time_that_goes_backwards_stands_still(robot):
    guard = started(robot)
    guard.measured(NAMES, HOME, now=100.0)
    send(guard, HOME + 0.05, now=100.0)
    before = guard.tick(100.0).positions
    assert np.array_equal(guard.tick(3.0).positions, before)
    after = guard.tick(3.01).positions
    np.testing.assert_allclose(after, HOME + 0.02, atol=1e-12)
    assert send(guard, HOME + 0.05, now=3.02) is None
    assert guard.tick(3.02).source == 'policy'


@pytest.mark.parametrize('kind', ['forward_velocity', 'joint_trajectory'])
def test_an_arm_that_is_not_commanded_by_position_is_refused(robot, kind):
    controller = {'kind': kind, 'driver_timeout_s': 0.1}
    with pytest.raises(SpecError, match=f"'{kind}' would .* serves 'forward_position' only"):
        CommandGuard(robot.replace(controller=controller))


def test_commands_are_held_and_refused_while_joint_states_are_old(robot):
    guard = started(robot)
    for k in range(11):
        assert send(guard, HOME + 0.001 * k, now=PERIOD * k) is None
        guard.tick(PERIOD * k)
    held = guard.tick(0.51)  # the policy is there, the arm is not
    assert held.source == 'hold'
    assert 'joint states are 0.55 s old' in send(guard, HOME + 0.02, now=0.55)
    assert guard.state is GuardState.HOLDING
    assert np.array_equal(guard.tick(0.56).positions, held.positions)
    follow(guard, 0.57)
    assert send(guard, HOME + 0.02, now=0.58) is None
    assert guard.tick(0.58).source == 'policy'
    assert guard.diagnostics()['held'] == 1


def held_at_home(robot, **config) -> CommandGuard:
    guard = started(robot, **config)
    send(guard, HOME, now=0.0)
    guard.tick(0.0)
    assert guard.tick(0.2).source == 'hold'
    return guard


def test_an_arm_that_was_moved_during_a_hold_is_ramped_from_where_it_stands(robot):
    guard, moved = held_at_home(robot), HOME + np.array([0.0, -0.15, 0.0])
    guard.measured(NAMES, moved, now=0.3)
    assert guard.tick(0.3).source == 'hold'  # not yet far enough to be let go
    assert send(guard, HOME, now=0.31) is None
    np.testing.assert_allclose(guard.tick(0.31).positions - moved, [0, 0.0025, 0], atol=1e-12)
    assert guard.diagnostics()['ramped'] == 1


def test_an_arm_that_was_moved_during_a_hold_may_go_on_from_there_only(robot):
    guard = held_at_home(robot, start='refuse')
    moved = HOME + np.array([0.0, -0.15, 0.0])
    guard.measured(NAMES, moved, now=0.3)
    assert '0.150 rad from where elbow stands' in send(guard, HOME, now=0.31)
    assert send(guard, moved, now=0.32) is None
    assert np.array_equal(guard.tick(0.32).positions, moved)


def test_an_arm_beyond_its_limits_is_not_commanded_after_a_hold_either(robot):
    guard = held_at_home(robot, tracking_gate=9.0)
    guard.measured(NAMES, [0.1, 1.2, 0.3], now=0.3)
    assert 'elbow is measured 0.200 rad outside its limits' in send(guard, HOME, now=0.31)


def test_an_arm_that_leaves_a_held_command_behind_is_not_pulled_back(robot):
    guard = held_at_home(robot)
    guard.measured(NAMES, HOME + np.array([0.19, 0, 0]), now=0.3)
    assert guard.tick(0.3).source == 'hold'
    guard.measured(NAMES, HOME + np.array([0.21, 0, 0]), now=0.31)
    assert (guard.state, guard.tick(0.31)) == (GuardState.IDLE, None)
    assert guard.diagnostics()['displaced'] == 1


def test_an_arm_that_is_moved_after_an_emergency_stop_is_not_pulled_back(robot):
    guard = held_at_home(robot)
    guard.estop(0.3)
    guard.measured(NAMES, HOME + 0.3, now=0.31)
    assert (guard.state, guard.tick(0.31)) == (GuardState.ESTOP, None)
    assert 'latched' in send(guard, HOME, now=0.32)


def test_lagging_behind_in_motion_does_not_stop_it(robot):
    guard = started(robot)
    for k in range(20):
        guard.measured(NAMES, HOME, now=PERIOD * k)  # it does not move at all
        assert send(guard, HOME + np.array([0, 0, 0.05 * k]), now=PERIOD * k) is None
        assert guard.tick(PERIOD * k).source == 'policy'
    assert guard.diagnostics()['displaced'] == 0


numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)
near = st.floats(-4, 4)
vectors = st.one_of(
    st.lists(near, min_size=3, max_size=3),
    st.lists(st.one_of(near, numbers), min_size=2, max_size=4),
)
times = st.one_of(st.floats(0, 0.06), st.floats(-5, 5))
messages = st.one_of(
    st.tuples(st.just('tick'), times),
    st.tuples(st.just('tick'), times),
    st.tuples(st.just('command'), times, vectors, st.sampled_from([0.05, 0.1, 0.01, 0.0, 1e-9])),
    st.tuples(st.just('measured'), times, vectors),
    st.tuples(st.sampled_from(['estop', 'estop_reset', 'reset']), times),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(messages, max_size=60),
    st.lists(st.tuples(near, st.floats(0.01, 3), st.floats(0.01, 5)), min_size=3, max_size=3),
    st.sampled_from(['ramp', 'refuse']),
)
def test_no_sequence_of_messages_and_times_gets_past_the_limits(robot, sequence, drawn, start):
    limits = {
        name: {'min_position': low, 'max_position': low + span, 'max_velocity': speed}
        for name, (low, span, speed) in zip(NAMES, drawn, strict=True)
    }
    home = {name: limits[name]['min_position'] for name in NAMES}
    robot = robot.replace(joint_limits=limits, home=home)
    guard = CommandGuard(robot, GuardConfig(start=start))
    guard.measured(NAMES, robot.home_position, 0.0)
    now = passed = 0.0  # `passed`: time gone by forwards, since the last tick
    last, stands = None, robot.home_position
    for kind, elapsed, *arguments in sequence:
        now, passed = now + elapsed, passed + max(0.0, elapsed)
        if kind == 'command':
            positions, duration = arguments
            guard.command(NAMES[: len(positions)], positions, duration, 0, 'policy', now)
            if last is not None and (guard.published != last).any():
                # The arm was moved during a hold: it starts anew, and from where it stands.
                assert (np.abs(stands - last) > guard.config.start_gate).any()
                assert np.array_equal(guard.published, np.clip(stands, robot.lower, robot.upper))
                last = None
        elif kind == 'measured':
            if guard.measured(NAMES, *arguments, now) is None:
                stands = np.array(*arguments)
        elif kind == 'reset':
            guard.reset()
        elif kind != 'tick':
            getattr(guard, kind)(now)
        if guard.published is None:
            last = None
        elif last is None:  # started where the arm stands, just now
            last, passed = guard.published, guard.period_s
        if kind == 'tick' and (applied := guard.tick(now)) is not None:
            assert np.isfinite(applied.positions).all()
            assert (applied.positions >= robot.lower).all()
            assert (applied.positions <= robot.upper).all()
            allowed = robot.max_velocity * min(passed, 2 * guard.period_s)
            assert (np.abs(applied.positions - last) <= allowed + 1e-9).all()
            last, passed = applied.positions, 0.0
