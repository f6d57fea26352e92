from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.control.guard import CommandGuard, GuardConfig, GuardState
from robot_rl.errors import SpecError

NAMES = ('shoulder', 'elbow', 'wrist')
HOME = np.array([0.1, -0.2, 0.3])
PERIOD = 0.05
TICK = 0.01


@pytest.fixture
def new(robot, chain):
    """Builds a guard, of the planar robot unless changed."""

    def build(robot=robot, **config) -> CommandGuard:
        return CommandGuard(robot, chain, GuardConfig(**config))

    return build


@pytest.fixture
def started(new):
    """Builds a guard that knows that its arm stands at home."""

    def build(**config) -> CommandGuard:
        guard = new(**config)
        assert guard.measured(NAMES, HOME, now=0.0) is None
        return guard

    return build


def send(guard, target, now, *, duration=PERIOD, stamp=1, source='policy', names=NAMES):
    return guard.command(names, target, duration, stamp, source, now)


def run(guard, times) -> np.ndarray:
    return np.array([guard.tick(now).positions for now in times])


def follow(guard, now) -> None:
    """Let the arm be measured where it was last told to be."""
    stands = HOME if guard.published is None else guard.published
    assert guard.measured(NAMES, stands, now) is None


def test_interpolates_linearly_and_arrives_after_the_duration(started):
    guard = started()
    target = HOME + np.array([0.04, -0.05, 0.02])
    assert send(guard, target, now=1.0, duration=0.05) is not None  # joint states are 1 s old
    guard.measured(NAMES, HOME, now=1.0)
    assert send(guard, target, now=1.0) is None
    out = run(guard, 1.0 + TICK * np.arange(7))
    fractions = np.array([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])[:, None]
    np.testing.assert_allclose(out, HOME + fractions * (target - HOME), atol=1e-12)
    assert np.array_equal(out[-1], target)


def test_the_driver_speaks_with_its_prefix_and_those_who_command_do_not(new, robot):
    guard = new(robot.prefixed('left_'))
    left = [f'left_{name}' for name in NAMES]
    assert guard.measured([*left, 'right_elbow'], [*HOME, 9.0], now=0.0) is None
    assert send(guard, HOME + 0.01, now=0.0) is None
    np.testing.assert_allclose(guard.tick(PERIOD).positions, HOME + 0.01)
    assert 'joint names' in guard.measured(NAMES, HOME, now=PERIOD)
    assert 'joint names' in send(guard, HOME, now=PERIOD, names=left)


def test_a_stream_of_targets_continues_from_the_last_command(started):
    guard = started()
    last = HOME
    for k in range(20):
        follow(guard, PERIOD * k)
        target = last + 0.03
        assert send(guard, target, now=PERIOD * k) is None
        out = run(guard, PERIOD * k + TICK * np.arange(5))
        np.testing.assert_allclose(out, np.linspace(last, target, 6)[1:], atol=1e-12)
        last = target
    assert guard.diagnostics()['slowed'] == 0


def test_names_map_joints_in_any_order_and_among_others(new):
    guard = new()
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
def test_a_bad_command_is_refused_with_a_reason_and_changes_nothing(
    started, names, positions, told
):
    guard, twin = started(), started()
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
def test_a_duration_that_cannot_be_kept_is_refused(started, duration):
    guard = started()
    assert 'command timeout of 0.1 s' in send(guard, HOME, now=0.0, duration=duration)
    assert guard.tick(0.0) is None


def test_nothing_is_published_before_it_is_known_where_the_arm_stands(new):
    guard = new()
    assert guard.tick(0.0) is None
    assert 'no joint states have come' in send(guard, HOME, now=0.0)
    assert 'not finite' in guard.measured(NAMES, [0, np.nan, 0], now=0.0)
    assert 'are not those of planar' in guard.measured(NAMES[:2], [0, 0], now=0.0)
    assert 'no joint states have come' in send(guard, HOME, now=0.0)
    assert guard.tick(0.0) is None
    guard.measured(NAMES, HOME, now=0.0)
    assert guard.tick(0.01) is None
    assert 'are 0.60 s old' in send(guard, HOME, now=0.6)


def test_an_arm_outside_its_limits_is_not_commanded(started):
    guard = started()
    guard.measured(NAMES, [0, 1.1, 0], now=0.0)
    assert 'elbow is measured 0.100 rad outside its limits' in send(guard, HOME, now=0.0)
    guard.measured(NAMES, [0, 1.01, 0], now=0.0)  # noise about the limit of 1.0
    assert send(guard, [0, 0.99, 0], now=0.0) is None
    assert guard.tick(9.0).positions[1] == 1.0  # held where it started, but within the limits


def test_a_quiet_source_is_held_exactly_and_may_come_back(started):
    guard = started()
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


def test_reset_forgets_the_command(started):
    guard = started()
    send(guard, HOME + 0.05, now=0.0)
    assert guard.tick(0.0) is not None
    guard.reset()
    assert guard.tick(0.01) is None
    assert guard.state is GuardState.IDLE
    guard.measured(NAMES, HOME - 0.5, now=0.02)
    send(guard, HOME - 0.5, now=0.02)
    np.testing.assert_allclose(guard.tick(0.02).positions, HOME - 0.5)


def test_estop_latches_until_it_is_reset_after_the_cool_down(started):
    guard = started()
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
    assert guard.diagnostics()['estopped'] == 1  # however often it is called


def test_a_far_first_target_is_ramped_slowly_then_followed(started):
    guard = started(ramp_speed=0.25)
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


def test_a_far_first_target_is_refused_where_so_configured(started):
    guard = started(start='refuse')
    assert '0.500 rad from where elbow stands' in send(
        guard, HOME + np.array([0, -0.5, 0]), now=0.0
    )
    assert guard.tick(0.0) is None
    assert send(guard, HOME + 0.05, now=0.0) is None
    assert send(guard, HOME + np.array([0, -0.5, 0]), now=0.05) is None  # not the first


def test_a_source_that_comes_back_after_a_hold_passes_the_start_gate_too(started):
    guard = started()
    send(guard, HOME, now=0.0)
    guard.tick(0.0)
    guard.tick(0.5)
    follow(guard, 0.51)
    send(guard, HOME + np.array([0, -0.5, 0]), now=0.51)
    moved = guard.tick(0.51).positions - HOME
    np.testing.assert_allclose(moved, [0, -0.0025, 0], atol=1e-12)


def test_another_source_passes_the_start_gate_too(started):
    guard = started()
    send(guard, HOME, now=0.0, source='policy')
    guard.tick(0.0)
    send(guard, HOME + np.array([0, -0.5, 0]), now=0.01, source='teleop')
    moved = guard.tick(0.01).positions - HOME
    np.testing.assert_allclose(moved, [0, -0.0025, 0], atol=1e-12)


def test_positions_beyond_the_limits_are_clamped_and_counted(started):
    guard = started()
    for k in range(1500):
        now = TICK * k
        if k % 5 == 0:
            follow(guard, now)
            send(guard, [5.0, 5.0, -9.0], now)
        applied = guard.tick(now)
    np.testing.assert_array_equal(applied.positions, [2.0, 1.0, -3.0])
    assert guard.diagnostics()['clamped'] == 300


def test_fast_targets_keep_the_velocity_limit_and_the_direction(started):
    guard = started()
    send(guard, HOME, now=0.0)
    guard.tick(0.0)
    send(guard, HOME + np.array([0.2, 0.1, 0.0]), now=0.01)
    step = guard.tick(0.01).positions - HOME
    np.testing.assert_allclose(step, [0.01, 0.005, 0.0], atol=1e-12)
    assert guard.diagnostics()['slowed'] == 1


def test_a_late_tick_makes_up_for_two_periods_at_most(started):
    guard = started()
    for k in range(3):
        send(guard, HOME + np.array([0.5, 0, 0]), now=0.05 * k)
        guard.tick(0.05 * k)
    before = guard.published
    send(guard, HOME + np.array([0.5, 0, 0]), now=0.2)
    guard.tick(0.2)
    assert np.abs(guard.published - before).max() <= 2 * TICK * 1.0 + 1e-12


def test_time_that_goes_backwards_stands_still(started):
    guard = started()
    guard.measured(NAMES, HOME, now=100.0)
    send(guard, HOME + 0.05, now=100.0)
    before = guard.tick(100.0).positions
    assert np.array_equal(guard.tick(3.0).positions, before)
    after = guard.tick(3.01).positions
    np.testing.assert_allclose(after, HOME + 0.02, atol=1e-12)
    assert send(guard, HOME + 0.05, now=3.02) is None
    assert guard.tick(3.02).source == 'policy'


def test_commands_are_held_and_refused_while_joint_states_are_old(started):
    guard = started()
    for k in range(3):
        assert send(guard, HOME + 0.001 * k, now=PERIOD * k) is None
        guard.tick(PERIOD * k)
    held = guard.tick(0.16)  # the policy is there, the arm is not
    assert held.source == 'hold'
    assert 'joint states are 0.17 s old' in send(guard, HOME + 0.02, now=0.17)
    assert guard.state is GuardState.HOLDING
    assert np.array_equal(guard.tick(0.18).positions, held.positions)
    follow(guard, 0.19)
    assert send(guard, HOME + 0.02, now=0.2) is None
    assert guard.tick(0.2).source == 'policy'
    assert guard.diagnostics()['held'] == 1


@pytest.fixture
def held_at_home(started):
    """Builds a guard that holds the home pose as its source is quiet."""

    def build(**config) -> CommandGuard:
        guard = started(**config)
        send(guard, HOME, now=0.0)
        guard.tick(0.0)
        assert guard.tick(0.2).source == 'hold'
        return guard

    return build


def test_an_arm_that_was_moved_during_a_hold_is_ramped_from_where_it_stands(held_at_home):
    guard, moved = held_at_home(), HOME + np.array([0.0, -0.15, 0.0])
    guard.measured(NAMES, moved, now=0.3)
    assert np.array_equal(guard.tick(0.3).positions, moved)
    assert send(guard, HOME, now=0.31) is None
    np.testing.assert_allclose(guard.tick(0.31).positions - moved, [0, 0.0025, 0], atol=1e-12)
    assert guard.diagnostics()['ramped'] == 1


def test_an_arm_that_was_moved_during_a_hold_may_go_on_from_there_only(held_at_home):
    guard = held_at_home(start='refuse')
    moved = HOME + np.array([0.0, -0.15, 0.0])
    guard.measured(NAMES, moved, now=0.3)
    assert '0.150 rad from where elbow stands' in send(guard, HOME, now=0.31)
    assert send(guard, moved, now=0.32) is None
    assert np.array_equal(guard.tick(0.32).positions, moved)


def test_an_arm_beyond_its_limits_is_not_commanded_after_a_hold_either(held_at_home):
    guard = held_at_home()
    guard.measured(NAMES, [0.1, 1.2, 0.3], now=0.3)
    assert (guard.state, guard.tick(0.3)) == (GuardState.IDLE, None)
    assert 'elbow is measured 0.200 rad outside its limits' in send(guard, HOME, now=0.31)


def test_an_arm_that_sags_under_its_load_is_not_told_to_sink(held_at_home):
    """Held where it was measured, it sank by its sag again, and so on down to the table."""
    guard, sag = held_at_home(), np.array([0.0, -0.08, 0.0])
    for k in range(20, 400):
        now = k * PERIOD
        told = guard.tick(now).positions
        guard.measured(NAMES, told + sag * min(1.0, (k - 20) / 5), now)
    assert np.abs(told - HOME).max() <= 0.08 and guard.state is GuardState.HOLDING
    hand = told + sag + np.array([0.06, 0.0, 0.0])
    guard.measured(NAMES, hand, now + PERIOD)
    np.testing.assert_allclose(guard.tick(now + PERIOD).positions, hand)


def test_an_arm_that_leaves_a_held_command_behind_is_not_pulled_back(held_at_home):
    guard = held_at_home()
    guard.measured(NAMES, HOME + np.array([0.04, 0, 0]), now=0.3)
    assert guard.tick(0.3).source == 'hold'
    left = HOME + np.array([0.06, 0, 0])
    guard.measured(NAMES, left, now=0.31)
    assert np.array_equal(guard.published, left) and guard.tick(0.31).source == 'hold'
    assert guard.diagnostics()['displaced'] == 1


def test_an_arm_that_a_hand_moved_a_little_is_not_pulled_back_by_the_next_command(held_at_home):
    """By up to 0.1 rad it was, at full speed: the next command went on from the held one."""
    guard, moved = held_at_home(), HOME + np.array([0.0, -0.09, 0.0])
    guard.measured(NAMES, moved, now=0.3)
    assert send(guard, moved + np.array([0, -0.01, 0]), now=0.31) is None
    way = run(guard, 0.31 + TICK * np.arange(5))[:, 1] - moved[1]
    np.testing.assert_allclose(way, -0.002 * np.arange(1, 6), atol=1e-12)
    assert guard.diagnostics()['ramped'] == 0


def test_an_arm_that_is_moved_after_an_emergency_stop_is_not_pulled_back(held_at_home):
    guard = held_at_home()
    guard.estop(0.3)
    guard.measured(NAMES, HOME + 0.3, now=0.31)
    held = guard.tick(0.31)
    assert held.source == 'estop' and np.array_equal(held.positions, HOME + 0.3)
    assert 'latched' in send(guard, HOME, now=0.32)


def test_lagging_behind_in_motion_does_not_stop_it(started):
    """At 2 rad/s, by the delay that is allowed, and standing still at the end of it."""
    guard, told = started(), [HOME]
    for k in range(200):
        now = TICK * k
        guard.measured(NAMES, told[max(0, k - round(guard.config.tracking_delay_s / TICK))], now)
        if k % 5 == 0:
            goal = HOME + np.array([0, 0, 1.0 - abs(1.0 - 0.1 * (k // 5 % 20))])
            assert send(guard, goal, now) is None
        applied = guard.tick(now)
        assert applied.source == 'policy'
        told.append(applied.positions)
    assert np.ptp(told, axis=0)[2] > 0.9
    assert (guard.diagnostics()['displaced'], guard.diagnostics()['astray']) == (0, 0)


def test_an_arm_that_does_not_follow_is_held_where_it_is_until_somebody_has_looked(started):
    """As in a protective stop: the command ran ahead, and the arm went after it at its end."""
    guard, ahead, last = started(), 0.0, HOME
    for k in range(100):
        now = TICK * k
        guard.measured(NAMES, HOME, now)
        if k % 5 == 0 and send(guard, last := last + np.array([0, 0.05, 0]), now):
            break
        ahead = max(ahead, np.abs(guard.tick(now).positions - HOME).max())
    config = guard.config
    assert 0.15 < ahead <= config.path_tolerance + (config.tracking_delay_s + 4 * TICK) * 1.0
    held = guard.tick(now)
    assert held.source == 'hold' and np.array_equal(held.positions, HOME)
    values = guard.diagnostics()
    assert values['astray'] == 1 and values['state'] == 'holding'
    assert values['last_intervention'].startswith('astray: elbow is 0.1')
    assert 'the arm does not follow: elbow is 0.1' in values['blocked']
    for source in config.sources:
        assert guard.astray in send(guard, HOME, now, source=source)
    guard.unblock('policy')
    assert guard.astray in send(guard, HOME, now)
    guard.reset()
    assert guard.astray == '' and send(guard, HOME, now) is None


def test_one_joint_state_off_the_path_is_no_arm_that_does_not_follow(started):
    guard = started()
    for k in range(30):
        off = 0.5 if k % 10 in (1, 2) else 0.0
        guard.measured(NAMES, HOME + off, TICK * k)
        assert send(guard, HOME, TICK * k) is None
        assert guard.tick(TICK * k).source == 'policy'
    assert guard.diagnostics()['astray'] == 0


@pytest.mark.parametrize('jerk', [None, 40.0])
def test_an_arm_that_goes_astray_is_braked_from_the_speed_that_it_has(robot, new, jerk):
    """Pushed the other way at 0.5 rad/s while it is told to stand."""
    guard = new(quick(robot, acceleration=4.0, max_jerk=jerk))
    guard.measured(NAMES, HOME, now=0.0)
    k = 0
    while not guard.astray:
        measured = HOME - np.array([0.5 * TICK * k, 0, 0])
        guard.measured(NAMES, measured, TICK * k)
        if not guard.astray:
            assert send(guard, HOME, TICK * k) is None
            guard.tick(TICK * k)
            k += 1
    assert np.array_equal(guard.published, measured)
    speeds = [-0.5]
    for j in range(k, k + 40):
        applied = guard.tick(TICK * j)
        speeds.append(applied.velocities[0])
    change = np.diff(speeds)
    assert (change >= -1e-9).all() and change.max() <= 4.0 * TICK + 1e-9
    assert speeds[-1] == pytest.approx(0, abs=1e-6)
    stops_within = 0.5**2 / (2 * 4.0) + (0.5 * 4.0 / jerk if jerk else 0.0)
    assert -stops_within - 1e-9 <= guard.published[0] - measured[0] < -0.5 * TICK


def quick(robot, acceleration=4.0, **limits):
    """The planar robot with a bounded acceleration."""
    joints = {
        name: given.replace(max_acceleration=acceleration, **limits)
        for name, given in robot.joint_limits.items()
    }
    return robot.replace(joint_limits=joints)


def moving(guard, now=0.0, seconds=1.0, speed=0.8, source='policy'):
    """Lead the shoulder at `speed` for a while; return the time and what was published last."""
    goal = HOME
    for k in range(round(seconds / TICK)):
        if k % 5 == 0:
            follow(guard, now)
            goal = goal + np.array([speed * PERIOD, 0, 0])
            assert send(guard, goal, now, source=source) is None
        applied = guard.tick(now)
        now += TICK
    return now, applied


@pytest.mark.parametrize('end', ['quiet', 'estop', 'reset'])
def test_an_arm_that_moves_is_braked_as_fast_as_its_limits_allow(robot, new, end):
    guard = new(quick(robot))
    guard.measured(NAMES, HOME, now=0.0)
    now, applied = moving(guard)
    assert applied.velocities[0] == pytest.approx(0.8)
    if end == 'quiet':
        now += guard.config.timeout_s
    elif end == 'estop':
        guard.estop(now)
    else:
        guard.reset()
    speeds = []
    while (stopping := guard.tick(now)) is not None and stopping.velocities[0] > 0:
        assert stopping.source == ('estop' if end == 'estop' else 'hold')
        speeds.append(stopping.velocities[0])
        now += TICK
    np.testing.assert_allclose(-np.diff(speeds), 4.0 * TICK)
    assert len(speeds) == pytest.approx(0.8 / 4.0 / TICK, abs=2)
    if end == 'reset':
        assert guard.state is GuardState.IDLE and guard.tick(now) is None
    else:
        held = guard.tick(now + 1).positions
        assert np.array_equal(held, guard.tick(now + 2).positions)


def test_an_emergency_stop_is_not_released_while_the_arm_is_braked(robot, new):
    guard = new(quick(robot, acceleration=0.5), estop_cooldown_s=0.0)
    guard.measured(NAMES, HOME, now=0.0)
    now, _ = moving(guard, seconds=1.0, speed=0.4)
    guard.estop(now)
    guard.tick(now)
    assert 'still being braked' in guard.estop_reset(now)
    for _ in range(120):
        now += TICK
        guard.tick(now)
    assert guard.estop_reset(now) is None


def test_no_jump_where_acceleration_is_bounded_and_the_goal_is_reached(robot, new):
    guard = new(quick(robot), start_gate=1.0)
    guard.measured(NAMES, HOME, now=0.0)
    goal, speeds = HOME + np.array([0.5, -0.3, 0.2]), [np.zeros(3)]
    for k in range(150):
        if k % 5 == 0:
            follow(guard, TICK * k)
            assert send(guard, goal, TICK * k) is None
        speeds.append(guard.tick(TICK * k).velocities)
    assert np.abs(np.diff(speeds, axis=0)).max() <= 4.0 * TICK + 1e-9
    np.testing.assert_allclose(guard.published, goal, atol=1e-3)
    assert guard.diagnostics()['slowed'] > 0
    assert 'policy is' in guard.diagnostics()['last_intervention']


def test_the_arm_stops_at_the_wall_of_its_workspace_and_may_come_back(robot, new):
    """The tip of the outstretched arm, 0.9 m out, turns towards a wall at y = 0.5."""
    guard = new(quick(robot.replace(workspace={'lower': [-1, -1, -1], 'upper': [1, 0.5, 1]})))
    guard.measured(NAMES, np.zeros(3), now=0.0)
    now, reached = 0.0, []
    for k in range(200):
        if k % 5 == 0:
            guard.measured(NAMES, np.zeros(3) if k == 0 else guard.published, now)
            last = np.zeros(3) if guard.published is None else guard.published
            assert send(guard, last + np.array([0.04, 0, 0]), now) is None
        reached.append(0.9 * np.sin(guard.tick(now).positions[0]))
        now += TICK
    assert 0.45 < max(reached) <= 0.5
    counts = guard.diagnostics()
    assert counts['walled'] > 10
    for k in range(30):
        if k % 5 == 0:
            guard.measured(NAMES, guard.published, now)
            assert send(guard, guard.published - np.array([0.04, 0, 0]), now) is None
        guard.tick(now)
        now += TICK
    assert 0.9 * np.sin(guard.published[0]) < max(reached) - 0.1


def test_an_arm_that_begins_outside_its_workspace_may_only_come_in(robot, new):
    guard = new(robot.replace(workspace={'lower': [-1, -1, -1], 'upper': [0.8, 1, 1]}))
    out, seen = np.array([0.1, 0.0, 0.0]), []
    guard.measured(NAMES, out, now=0.0)
    for k in range(20):
        guard.measured(NAMES, out if k == 0 else guard.published, PERIOD * k)
        step = -0.04 if k < 5 else 0.04
        last = out if guard.published is None else guard.published
        send(guard, last + np.array([step, 0, 0]), PERIOD * k)
        seen.append(guard.tick(PERIOD * k).positions[0])
    assert np.array_equal(seen[:5], [0.1] * 5)  # towards the outside: 0.9 cos(q) grows
    assert seen[-1] > 0.2


def test_an_arm_outside_one_side_of_its_box_left_it_by_another(robot, new):
    """0.6 m beyond x it might go as far beyond y: only the worst of the two was looked at."""
    guard = new(robot.replace(workspace={'lower': [-1, -1, -1], 'upper': [0.3, 0.3, 1]}))
    arm = np.array([0.1, 0.0, 0.0])
    guard.measured(NAMES, arm, now=0.0)
    for k in range(60):
        guard.measured(NAMES, arm if k == 0 else guard.published, PERIOD * k)
        arm = arm if guard.published is None else guard.published
        send(guard, arm + np.array([0.04, 0, 0]), PERIOD * k)
        for tick in range(5):
            guard.tick(PERIOD * k + TICK * tick)
    assert 0.2 < 0.9 * np.sin(guard.published[0]) < 0.3 + 1e-6
    assert guard.diagnostics()['walled'] > 0


@pytest.mark.parametrize('base', [0.0, -0.3])
def test_a_floor_holds_for_each_joint(robot, new, chain, base):
    """The elbow, not the tool, would go below it.

    Beside a joint that is bolted to the base 0.3 m below, the others might sink as deep.
    """

    class Upright:
        reach = chain.reach

        def points(self, q):
            places = chain.points(q)[..., [0, 2, 1]]  # y is up
            places[..., 0, 2] = base
            return places

    robot = robot.replace(workspace={'lower': [-1, -1, -0.05], 'upper': [1, 1, 1]})
    guard = CommandGuard(robot, Upright())
    start = np.array([0.0, 0.5, 0.0])
    guard.measured(NAMES, start, now=0.0)
    for k in range(60):
        guard.measured(NAMES, start if k == 0 else guard.published, PERIOD * k)
        last = start if guard.published is None else guard.published
        send(guard, last + np.array([-0.02, 0.02, 0]), PERIOD * k)
        for tick in range(5):
            guard.tick(PERIOD * k + TICK * tick)
    height = 0.4 * np.sin(guard.published[0])
    assert -0.05 - 1e-3 <= height < -0.03
    assert guard.diagnostics()['walled'] > 0


def test_teleop_takes_over_and_gives_back_without_a_jump(robot, new):
    guard = new(quick(robot))
    guard.measured(NAMES, HOME, now=0.0)
    now, before = moving(guard, speed=0.3)
    assert guard.source == 'policy'
    published = [before]
    for k in range(60):  # both command at once, far apart
        if k % 5 == 0:
            follow(guard, now)
            assert send(guard, HOME - 0.4, now, source='teleop') is None
            assert send(guard, HOME + 0.6, now, source='policy') is None
        published.append(guard.tick(now))
        now += TICK
    assert {applied.source for applied in published[1:]} == {'teleop'}
    assert guard.diagnostics()['overruled'] == 12
    now += guard.config.timeout_s  # let go
    published.append(guard.tick(now))
    assert published[-1].source == 'hold'
    now += guard.config.give_back_after_s
    for k in range(60):
        now += TICK
        if k % 5 == 0:
            follow(guard, now)
            assert send(guard, HOME + 0.6, now, source='policy') is None
        published.append(guard.tick(now))
    assert published[-1].source == 'policy'
    speeds = np.array([applied.velocities for applied in published])
    assert np.abs(np.diff(speeds, axis=0)).max() <= 2 * 4.0 * TICK + 1e-9
    # Slowly, at first: the one who takes over is far from where the arm is.
    assert np.abs(speeds[20:60]).max() <= guard.config.ramp_speed + 1e-9
    assert guard.diagnostics()['ramped'] == 2


@pytest.mark.parametrize(('rate_hz', 'heard'), [(5, {'teleop', 'hold'}), (1, {'policy', 'hold'})])
def test_teleop_that_is_slow_does_not_take_turns_with_the_policy(robot, new, rate_hz, heard):
    """At 5 Hz it was quiet for longer than the timeout, and a policy took over between steps."""
    guard = new(quick(robot))
    guard.measured(NAMES, HOME, now=0.0)
    sources = set()
    for k in range(300):
        now = TICK * k
        follow(guard, now)
        if k % round(1 / (rate_hz * TICK)) == 0:
            assert send(guard, HOME + 0.01, now, source='teleop') is None
        if k % 5 == 0:
            assert send(guard, HOME - 0.01, now, source='policy') is None
        sources.add(guard.tick(now).source)
    assert sources == heard | {'teleop'}


def test_who_is_no_source_is_not_heard(started):
    guard = started(sources=('leader', 'policy'))
    assert "no source that this guard knows; they are ['leader', 'policy']" in send(
        guard, HOME, now=0.0, source='teleop'
    )
    assert send(guard, HOME, now=0.0, source='leader') is None


@pytest.fixture
def gripping(new, robot):
    guard = new(robot.replace(gripper=JAW))
    assert guard.measured(NAMES, HOME, now=0.0) is None
    return guard


def test_the_gripper_is_told_widths_within_its_range(gripping, started):
    assert gripping.width is None
    for width, told in ((0.03, 0.03), (0.2, 0.08), (-0.1, 0.0), (0.08, 0.08)):
        assert gripping.grip([width], 'policy', now=0.0) is None
        assert gripping.width == told
    assert gripping.diagnostics()['clamped'] == 2
    for wrong in ([], [0.01, 0.02], [np.nan], [[0.01]]):
        assert 'one width is needed' in gripping.grip(wrong, 'policy', now=0.0)
    assert 'no source that this guard knows' in gripping.grip([0.01], 'nobody', now=0.0)
    assert gripping.width == 0.08 and gripping.diagnostics()['refused'] == 5
    assert 'has no gripper' in started().grip([0.01], 'policy', now=0.0)


def test_the_gripper_obeys_whom_the_arm_obeys_and_keeps_what_it_holds(gripping):
    assert send(gripping, HOME, now=0.0, source='teleop') is None
    assert gripping.grip([0.02], 'teleop', now=0.0) is None
    assert gripping.grip([0.08], 'policy', now=0.0) is None  # overruled, and not heard
    assert gripping.width == 0.02 and gripping.diagnostics()['overruled'] == 1
    gripping.tick(1.0)  # teleop has gone quiet: the arm holds, and so does the gripper
    assert gripping.state is GuardState.HOLDING and gripping.width == 0.02
    assert gripping.grip([0.03], 'policy', now=1.0) is None and gripping.width == 0.03
    gripping.estop(1.0)
    assert 'emergency stop is latched' in gripping.grip([0.08], 'teleop', now=1.0)
    assert gripping.width == 0.03


def test_while_somebody_blocks_the_arm_holds_and_nobody_commands_it(started):
    guard = started()
    send(guard, HOME + 0.05, now=0.0)
    moving = guard.tick(0.0)
    guard.block('session', 'session is gone, in an episode', 0.01)
    guard.block('policy', 'policy is gone, in an episode', 0.01)
    held = guard.tick(0.01)
    assert held.source == 'hold' and np.array_equal(held.positions, moving.positions)
    assert 'session is gone, in an episode; policy is gone' in send(guard, HOME, now=0.02)
    assert 'session is gone' in guard.diagnostics()['last_intervention']
    guard.unblock('policy')
    assert 'session is gone' in send(guard, HOME, now=0.02)
    guard.unblock('session')
    guard.unblock('nobody')
    assert send(guard, HOME, now=0.02) is None
    guard.block('a', 'b', 0.03)
    guard.block('c', 'd', 0.03)
    guard.unblock('a', 'c')
    assert send(guard, HOME, now=0.04) is None


def test_velocities_for_an_arm_follow_the_command_and_do_not_drift(started, robot):
    guard = started(velocity_gain=2.0)
    send(guard, HOME + np.array([0.04, 0, 0]), now=0.0)
    applied = guard.tick(0.0)
    np.testing.assert_allclose(guard.velocities(applied), [0.8 + 2.0 * 0.008, 0, 0], atol=1e-12)
    guard.measured(NAMES, HOME - 3.0, now=0.01)
    np.testing.assert_allclose(guard.velocities(guard.tick(0.01)), robot.max_velocity)
    late = guard.tick(0.045)  # joint states have stopped: where it is by now is not known
    np.testing.assert_array_equal(guard.velocities(late), late.velocities)
    guard.measured(NAMES, HOME - 3.0, now=0.05)
    guard.estop(0.05)
    np.testing.assert_array_equal(guard.velocities(guard.tick(0.05)), 0)


@pytest.mark.parametrize('rates', [(10.0, 100.0), (2.0, 100.0), (100.0, 2.0)])
def test_velocities_made_up_for_lag_against_a_measurement_that_had_stopped(robot, new, rates):
    """Of a guard of 10 Hz, 0.3 s: an arm of which nothing was heard went on beyond its command."""
    guard_hz, states_hz = rates
    controller = {'kind': 'forward_velocity', 'driver_timeout_s': 0.9, 'rate_hz': guard_hz}
    robot = quick(robot).replace(controller=controller, joint_states_rate_hz=states_hz)
    guard, arm, period_s = new(robot), HOME, 1.0 / guard_hz
    guard.measured(NAMES, arm, now=0.0)
    send(guard, HOME + np.array([0.04, 0, 0]), now=0.0)
    for k in range(round(3.0 * guard_hz)):
        applied = guard.tick(period_s * k)
        arm = arm + period_s * guard.velocities(applied)
    # It may make up once for what it was behind when it was heard, for as long as that holds.
    known_s = guard.config.measured_max_age_s + period_s
    most = guard.config.velocity_gain * known_s * np.abs(applied.positions - HOME).max()
    assert np.abs(arm - applied.positions).max() <= most + 1e-9
    assert np.abs(guard.velocities(guard.tick(period_s * (k + 1)))).max() < 1e-9


@pytest.mark.parametrize('rate_hz', [100.0, 500.0, 1000.0])
def test_an_arm_of_quick_joint_states_drifted_under_velocities(robot, new, rate_hz):
    """Above 300 Hz what a guard of 100 Hz had heard at its last tick was too old to be used."""
    controller = {'kind': 'forward_velocity', 'driver_timeout_s': 0.1}
    robot = quick(robot).replace(controller=controller, joint_states_rate_hz=rate_hz)
    guard, arm, worst = new(robot), HOME, 0.0
    guard.measured(NAMES, arm, now=0.0)
    for k in range(600):  # as the node does it: the arm is heard after the tick
        now = TICK * k
        if k % 5 == 0:
            assert send(guard, HOME + np.array([0.3 * np.sin(now), 0, 0]), now) is None
        applied = guard.tick(now)
        arm = arm + 0.9 * TICK * guard.velocities(applied)  # it does less than it is told
        guard.measured(NAMES, arm, now, k + 1)
        worst = max(worst, np.abs(applied.positions - arm).max())
    assert worst < 0.02


@pytest.mark.parametrize('gain', [2.0, 5.0])
def test_what_makes_up_for_lag_is_not_told_at_once(robot, new, gain):
    """It was added to the limited velocity: 38 rad/s^2 where 4 were allowed."""
    controller = {'kind': 'forward_velocity', 'driver_timeout_s': 0.1}
    robot = quick(robot).replace(controller=controller)
    guard = new(robot, velocity_gain=gain, path_tolerance=1.0)
    guard.measured(NAMES, HOME, now=0.0)
    told, measured = [np.zeros(3)], HOME
    for k in range(400):
        now = TICK * k
        assert guard.measured(NAMES, measured, now) is None
        if k % 5 == 0 and k < 200:
            assert send(guard, HOME + np.array([0, 0, 0.002 * k]), now) is None
        if k == 100:
            measured = measured - np.array([0.0, 0.0, 0.3])  # the arm has slipped
        told.append(guard.velocities(guard.tick(now)))
        measured = measured + told[-1] * TICK
    assert np.abs(np.diff(told, axis=0)).max() <= 4.0 * TICK + 1e-9
    assert np.abs(told).max() > 0.5
    # And yet it comes to where it is led, and stands.
    np.testing.assert_allclose(measured, guard.published, atol=0.02)


def test_a_short_hold_does_not_step_back_to_where_the_arm_lags(started):
    """It began anew at the measured pose of an arm that was on its way: 0.1 rad back at once."""
    guard = started(path_tolerance=1.0)
    goal, now = HOME, 0.0
    for _ in range(10):
        goal = goal + np.array([0, 0.04, 0.12])
        guard.measured(NAMES, goal - np.array([0, 0.05, 0.16]), now)  # as far behind as an arm is
        assert send(guard, goal, now) is None
        for _ in range(5):
            last = guard.tick(now).positions
            now += TICK
    guard.block('recorder', 'gone', now)
    guard.tick(now)
    guard.unblock('recorder')
    assert send(guard, goal + np.array([0, 0.04, 0.12]), now) is None
    assert (guard.tick(now + TICK).positions >= last).all()
    assert guard.diagnostics()['displaced'] == 0


def test_the_wall_does_not_creep(robot, new):
    """A millionth of a metre a tick was allowed again and again: 4 mm in a minute."""
    guard = new(robot.replace(workspace={'lower': [-1, -1, -1], 'upper': [1, 0.5, 1]}))
    out = np.array([np.arcsin(0.5 / 0.9) - 1e-4, 0.0, 0.0])
    guard.measured(NAMES, out, now=0.0)
    for k in range(2000):
        if k % 5 == 0:
            guard.measured(NAMES, out if k == 0 else guard.published, TICK * k)
            send(guard, out + np.array([1e-6 * k, 0, 0]), TICK * k)
        guard.tick(TICK * k)
    assert 0.9 * np.sin(guard.published[0]) <= 0.5 + 2e-6
    assert guard.diagnostics()['walled'] > 0


def test_a_ramp_that_goes_on_shows_in_the_diagnostics(started):
    guard = started()
    send(guard, HOME + 0.5, now=0.0)
    guard.tick(0.0)
    assert guard.diagnostics()['ramping'] is True


numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)
near = st.floats(-4, 4)
vectors = st.one_of(
    st.lists(near, min_size=3, max_size=3),
    st.lists(st.one_of(near, numbers), min_size=2, max_size=4),
)
times = st.one_of(st.floats(0, 0.06), st.floats(-5, 5))
ticking = st.tuples(st.just('tick'), st.floats(0, 0.03))
durations = st.sampled_from([0.05, 0.05, 0.1, 0.01, 0.0, 1e-9])
sources = st.sampled_from(['policy', 'policy', 'teleop', 'stranger'])
commands = st.tuples(st.just('command'), times, vectors, durations, sources)
# A policy as it should be: it steps on from where it has led, and the arm follows, or drifts.
step = st.floats(-0.25, 0.25)
steps = st.tuples(step, step, step)
streams = st.tuples(st.just('stream'), steps, st.integers(1, 12), st.none() | steps)
messages = st.one_of(
    *[ticking] * 3,
    st.tuples(st.just('tick'), times),
    commands,
    *[streams] * 4,
    st.tuples(st.just('measured'), times, vectors),
    *[st.tuples(st.just('follow'), st.just(0.0))] * 2,
    st.tuples(st.sampled_from(['estop', 'estop_reset', 'reset', 'block', 'unblock']), times),
    st.tuples(st.just('grip'), times, st.lists(numbers, max_size=2), sources),
)
JAW = {'joint': 'jaw', 'open_width': 0.08, 'topic': 'gripper'}


@st.composite
def robots(draw, robot):
    """The planar robot with other limits of joints and workspace; it stands at home."""
    limits, home = {}, {}
    for name in NAMES:
        low, span, speed = draw(st.tuples(near, st.floats(0.01, 3), st.floats(0.01, 5)))
        limits[name] = {
            'min_position': low,
            'max_position': low + span,
            'max_velocity': speed,
        }
        home[name] = low + span * draw(st.floats(0, 1))
    if draw(st.booleans()):
        jerky = draw(st.booleans())
        for limit in limits.values():
            # Quick enough to be at rest, after the timeout, within 2 v / a.
            ratio = draw(st.floats(1.05, 5)) * GuardConfig().timeout_s
            rate = limit['max_acceleration'] = limit['max_velocity'] / ratio
            if jerky:
                build_up = 0.4 * (ratio - GuardConfig().timeout_s)
                limit['max_jerk'] = rate / build_up / draw(st.floats(0.1, 1))
    half = draw(st.floats(0.05, 1))
    box = {'lower': [-1, -half, -1], 'upper': [1, half, 1]}
    jaw = JAW if draw(st.booleans()) else None
    return robot.replace(joint_limits=limits, home=home, workspace=box, gripper=jaw)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.lists(messages, max_size=60), st.sampled_from(['ramp', 'refuse']))
def test_no_sequence_of_messages_and_times_gets_past_the_limits(
    robot, chain, data, sequence, start
):
    robot = data.draw(robots(robot))
    guard = CommandGuard(robot, chain, GuardConfig(start=start))
    guard.measured(NAMES, robot.home_position, 0.0)
    watch = Watch(robot, chain, guard)
    now = 0.0
    for kind, elapsed, *arguments in sequence:
        if kind == 'stream':
            now = watch.streams(now, np.array(elapsed), *arguments)
            continue
        now += elapsed
        watch.passes(elapsed)
        if kind == 'tick':
            watch.starts()
            watch.sees(guard.tick(now))
        else:
            tell(guard, now, kind, *arguments)
            watch.starts()
    # Nothing comes any more: at rest within 2 v / a.
    finite = np.isfinite(robot.max_acceleration)
    ratio = (robot.max_velocity / robot.max_acceleration)[finite]
    within = 2 * ratio.max() if finite.any() else guard.config.timeout_s
    for _ in range(int(np.ceil(within / TICK)) + 1):
        now += TICK
        watch.passes(TICK)
        watch.sees(guard.tick(now))
    assert watch.velocity is None or np.abs(watch.velocity).max() < 1e-3
    assert np.abs(watch.told).max() < 1e-3


def tell(guard, now, kind, *arguments):
    """Give one message to a guard; return what it says."""
    if kind == 'command':
        positions, duration, source = arguments
        return guard.command(NAMES[: len(positions)], positions, duration, 0, source, now)
    if kind == 'measured':
        return guard.measured(NAMES, *arguments, now)
    if kind == 'grip':
        return guard.grip(*arguments, now)
    if kind == 'block':
        return guard.block('session', 'it is gone', now)
    if kind == 'unblock':
        return guard.unblock('session')
    if kind == 'follow':
        return guard.published is not None and guard.measured(NAMES, guard.published, now)
    return guard.reset() if kind == 'reset' else getattr(guard, kind)(now)


def test_what_was_refused_while_a_tick_was_prepared_was_not_counted(new):
    guard = new()
    guard.measured(NAMES, HOME, 0.0)
    send(guard, HOME, 0.0)
    guard.tick(0.0)
    guard.prepare(TICK)
    guard.refuse('policy: 2 trajectory points, expected one')
    guard.tick(TICK)
    told = guard.diagnostics()
    assert told['refused'] == 1 and 'trajectory points' in told['last_refusal']


@settings(max_examples=100, deadline=None)
@given(st.data(), st.lists(st.tuples(st.booleans(), messages), max_size=40))
def test_a_prepared_tick_is_the_tick_that_it_would_have_been(robot, chain, data, sequence):
    """Nothing, or a message, comes between its preparation and a tick that is on time."""
    robot = data.draw(robots(robot))
    guards = CommandGuard(robot, chain), CommandGuard(robot, chain)
    for guard in guards:
        guard.measured(NAMES, robot.home_position, 0.0)
    now = 0.0
    for quiet, (kind, elapsed, *arguments) in sequence:
        if kind == 'stream':  # an arm that steps on from where it has led
            step, kind = np.array(elapsed), 'command'
            arguments, elapsed = (robot.home_position + step, PERIOD, 'policy'), TICK
        now += elapsed
        guards[0].prepare(now)
        if not quiet:
            said = [tell(guard, now, kind, *arguments) for guard in guards]
            assert str(said[0]) == str(said[1])
        assert str(guards[0].tick(now)) == str(guards[1].tick(now))
        assert guards[0].diagnostics() == guards[1].diagnostics()
        assert all(str(x) == str(y) for x, y in zip(*map(all_of, guards), strict=True))


def all_of(guard):
    """Return what else of a guard can be seen."""
    return guard.published, guard.moves, guard.width, guard.velocities(None)


@pytest.mark.parametrize('late, held', [(0.2, False), (0.3, True)])
def test_a_tick_that_comes_too_late_is_not_the_prepared_one(new, late, held):
    """What is late may have been stopped for long: it looks at the time anew."""
    guard = new(timeout_s=0.1)
    guard.measured(NAMES, [0.0] * 3, 0.0)
    guard.command(NAMES, [0.0] * 3, 0.1, 0, 'policy', 0.0)
    guard.tick(0.0)
    due = 0.1 - 0.1 * TICK  # just before the source has been quiet for too long
    guard.measured(NAMES, [0.0] * 3, due)
    guard.prepare(due)
    assert (guard.tick(due + late * TICK).source == 'hold') is held


class Watch:
    """Looks at what a guard says, with its own idea of time, and of where it began."""

    def __init__(self, robot, chain, guard):
        self.robot, self.chain, self.guard = robot, chain, guard
        self.passed = 0.0  # time gone by forwards, since the last tick
        self.moved = False
        self.astray, self.outside = 0, 0.0
        self.brakes = False  # an arm that went astray
        self.told, self.waited = np.zeros(3), np.inf  # as velocities
        self.position = self.velocity = self.acceleration = None

    def streams(self, now, step, periods, drift):
        """Command `periods` steps at 20 Hz, of an arm that stands where it is told to.

        Or of one that does not follow, but goes on by `drift` every time.
        """
        guard, goal, measured = self.guard, None, self.guard.published
        for _ in range(periods):
            if guard.published is not None:
                if drift is None or measured is None:
                    measured = guard.published
                else:
                    measured = measured + drift
                guard.measured(NAMES, measured, now)
                self.starts()
                goal = guard.published if goal is None else goal
            goal = (self.robot.home_position if goal is None else goal) + step
            guard.command(NAMES, goal, PERIOD, 0, 'policy', now)
            self.starts()
            for _ in range(5):
                self.sees(guard.tick(now))
                now += TICK
                self.passes(TICK)
        return now

    def passes(self, elapsed):
        self.passed += max(0.0, elapsed)
        self.waited += max(0.0, elapsed)

    def starts(self):
        """A guard that had no command, or whose arm had left it, begins anew, and at rest.

        Where the arm did not follow, it is braked from where and as fast as it was measured.
        """
        found, astray = self.guard.published, self.guard.diagnostics()['astray']
        if found is not None and astray != self.astray:
            self.position, self.velocity = found, self.guard._motion.velocity
            self.acceleration = np.zeros(3)
            assert (np.abs(self.velocity) <= self.robot.max_velocity).all()
            self.passed = self.guard.period_s
            rest = self.guard._motion.path_to_rest(self.guard.limits)
            self.outside, self.brakes = max(map(self.depth, rest)), True
        self.astray = astray
        if found is None:
            self.position = self.velocity = None
        elif self.position is None or (found != self.position).any():
            assert self.velocity is None or np.abs(self.velocity).max() <= 1e-6, 'it moved'
            self.position, self.velocity, self.acceleration = found, np.zeros(3), np.zeros(3)
            self.passed, self.outside = self.guard.period_s, self.depth(found)

    def hears(self, applied):
        """What an arm that takes velocities is told is within the limits, whatever it makes up."""
        velocities = self.guard.velocities(applied)
        dt = min(self.waited, 2 * self.guard.period_s)
        assert (np.abs(velocities) <= self.robot.max_velocity).all()
        if dt > 0:
            change = np.abs(velocities - self.told)
            assert (change <= self.robot.max_acceleration * dt + 1e-9).all()
        self.told, self.waited = velocities, 0.0

    def sees(self, applied):
        self.hears(applied)
        width, jaw = self.guard.width, self.robot.gripper
        assert width is None or 0.0 <= width <= jaw.open_width
        if applied is None:
            self.position = self.velocity = None
            return
        robot, dt = self.robot, min(self.passed, 2 * self.guard.period_s)
        assert np.isfinite(applied.positions).all()
        assert (applied.positions >= robot.lower).all()
        assert (applied.positions <= robot.upper).all()
        way = np.abs(applied.positions - self.position)
        self.moved |= bool(way.max() > 1e-3)
        assert (way <= robot.max_velocity * dt + 1e-9).all()
        change = np.abs(applied.velocities - self.velocity)
        bounded = np.isfinite(robot.max_acceleration)
        assert (change[bounded] <= robot.max_acceleration[bounded] * dt + 1e-9).all()
        self.feels(dt)
        # Not out of the workspace, or where it began outside, no farther.
        depth = self.depth(applied.positions)
        assert depth <= max(self.outside, 0.0) + 3e-3
        self.brakes &= self.guard.moves
        self.outside = self.outside if self.brakes else min(self.outside, depth)
        self.position, self.velocity = applied.positions, applied.velocities
        self.passed = 0.0

    def feels(self, dt):
        """Where jerk is bounded, acceleration changes no faster; test_motion differences it."""
        if not np.isfinite(self.robot.max_jerk).all():
            return
        acceleration = self.guard._motion.acceleration
        change = np.abs(acceleration - self.acceleration)
        assert (change <= self.robot.max_jerk * dt * (1 + 1e-6) + 1e-6).all()
        self.acceleration = acceleration

    def depth(self, positions):
        tip, box = self.chain.forward(positions)[0], self.robot.workspace
        return float(np.maximum(tip - box.upper, box.lower - tip).max())


@pytest.mark.parametrize('name', [n for n, d in GuardConfig() if isinstance(d, float)])
@settings(max_examples=30, deadline=None)
@given(value=st.floats(0, 1e300))
def test_no_number_switches_a_rule_off(name, value):
    """What docs/safety.md says of ranges: a gate of 1e9 rad was taken, and was none."""
    most = {'estop_cooldown_s': 60.0, 'give_back_after_s': 60.0, 'velocity_gain': 10.0}
    most = most.get(name, 0.5 if name == 'measured_max_age_s' else 1.0)
    least = {'timeout_s': 0.02, 'measured_max_age_s': 0.02}.get(name, 0.0)
    may_be_0 = name in (
        'estop_cooldown_s',
        'give_back_after_s',
        'velocity_gain',
        'tracking_delay_s',
    )
    fits = least <= value <= most and (value > 0 or may_be_0)
    if fits:
        assert getattr(GuardConfig.parse({name: value}), name) == value
    else:
        with pytest.raises(SpecError, match=rf'^{name}: must be '):
            GuardConfig.parse({name: value})


@pytest.mark.parametrize(
    ('sources', 'told'),
    [
        ([], 'at least one'),
        (['teleop', 'teleop'], 'a name stands twice'),
        (['my teleop'], "'my teleop' is no name of a source"),
        (['a//b'], 'is no name'),
        (['1a'], 'is no name'),
        (['a/1'], 'is no name'),
        (['/a'], 'is no name'),
        (['~/a'], 'is no name'),
        ([''], 'is no name'),
    ],
)
def test_sources_are_names_and_each_stands_once(sources, told):
    with pytest.raises(SpecError, match=f'^sources: .*{told}'):
        GuardConfig.parse({'sources': sources})
    assert GuardConfig(sources=('left/teleop', 'policy_2')).sources == ('left/teleop', 'policy_2')


def test_joint_states_whose_stamp_stands_still_grow_old(started):
    """A driver that had stopped measuring repeated its last message: the arm was thought known."""
    guard = started(measured_max_age_s=0.2)
    for k in range(1, 100):
        now = 0.01 * k
        assert guard.measured(NAMES, HOME, now, stamp=k if k < 50 else 50) is None
        refusal = send(guard, HOME + 0.001, now)
        assert (refusal is None) is (now < 0.5 + 0.195), now
        guard.tick(now)
    assert 'joint states come, but their stamp has stood still for 0.49 s' in refusal
    assert guard.source == 'hold'
    assert guard.measured(NAMES, HOME, 1.0, stamp=49) is None  # the clock was set: it measures
    assert send(guard, HOME + 0.001, 1.0) is None
    for k in range(101, 200):  # without a stamp it is the time of arrival that counts
        assert guard.measured(NAMES, HOME, 0.01 * k, stamp=0) is None
        assert send(guard, HOME + 0.001, 0.01 * k) is None


@pytest.mark.parametrize(
    ('rate_hz', 'timeout_s', 'told'),
    [
        (20.0, 0.1, ''),
        (15.0, 0.1, ''),
        (10.0, 0.1, 'set timeout_s: 0.2 '),
        (10.0, 0.2, ''),
        (6.0, 0.2, 'set timeout_s: 0.333 '),
        (1.5, 0.1, 'set timeout_s: 1 '),
        (1.5, 1.0, ''),
        (1.0, 1.0, 'needed are 1.5 Hz or more'),
    ],
)
def test_a_policy_that_is_too_slow_for_the_timeout_is_told_what_to_set(rate_hz, timeout_s, told):
    said = GuardConfig(timeout_s=timeout_s).too_slow(rate_hz)
    assert told in said and bool(said) is bool(told)


@pytest.mark.parametrize(('late', 'holds'), [(0.45, 0), (0.55, 1)])
def test_what_is_not_too_slow_may_be_late_by_half_a_period(started, late, holds):
    """Of what too_slow accepts as it just can."""
    period = GuardConfig().timeout_s / 1.5
    guard, now, last = started(), 0.0, 0.0
    for k in range(200):
        now = 0.001 * k
        follow(guard, now)
        if now >= last + (1 + late) * period - 1e-9 or not k:
            last = now
            assert send(guard, HOME, now) is None
        guard.tick(now)
    assert bool(guard.diagnostics()['held']) is bool(holds)


def test_an_emergency_stop_counts_once_while_it_is_latched(started):
    guard = started()
    for now in (0.0, 0.001, 0.4):
        guard.estop(now)
    assert guard.diagnostics()['estopped'] == 1
    assert 'latched for another 0.40 s' in guard.estop_reset(0.5)  # from the last call on
    assert guard.estop_reset(0.91) is None
    guard.estop(1.0)
    assert guard.diagnostics()['estopped'] == 2
