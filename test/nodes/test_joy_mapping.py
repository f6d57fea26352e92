"""What a joystick's axes and buttons ask for; needs no ROS graph."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy (extra `ros`, or a ROS installation)')

from robot_rl import resources
from robot_rl.errors import SpecError
from robot_rl.nodes.teleop_joy import Mapping, Stick

GAMEPAD = Mapping.from_yaml(resources.find('config/teleop', 'gamepad'))
SPACEMOUSE = Mapping.from_yaml(resources.find('config/teleop', 'spacemouse'))
STALE_S = 0.25


def buttons(*held: int, count: int = 11) -> list[int]:
    return [int(index in held) for index in range(count)]


def axes(**values: float) -> list[float]:
    return [values.get(f'a{index}', 0.0) for index in range(8)]


@pytest.fixture
def stick() -> Stick:
    stick = Stick(GAMEPAD, STALE_S, 6)
    assert stick.hear(axes(), buttons(), 0.0) == ''
    return stick


def test_nothing_moves_without_the_dead_man_button(stick):
    stick.hear(axes(a1=1.0), buttons(), 0.1)
    assert not stick.wish(0.1).enabled
    stick.hear(axes(a1=1.0, a3=-0.55), buttons(4), 0.2)
    wish = stick.wish(0.2)
    np.testing.assert_allclose(wish.twist, [1, 0, 0, 0, 0, -0.5])
    assert wish.enabled and wish.frame == 'base' and wish.grip == 0
    stick.hear(axes(a1=0.09, a7=1.0), buttons(4, 0), 0.3)
    wish = stick.wish(0.3)
    np.testing.assert_allclose(wish.twist, [0, 0, 0, 0, 0.5, 0])  # the dead zone
    assert wish.grip == -1


def test_a_silent_joystick_is_not_held_nor_one_that_is_back_before_it_is_released(stick):
    stick.hear(axes(a1=1.0), buttons(4), 0.1)
    assert stick.wish(0.1 + STALE_S).enabled and not stick.wish(0.11 + STALE_S).enabled
    stick.hear(axes(a1=1.0), buttons(4), 1.0)
    assert not stick.wish(1.0).enabled
    stick.hear(axes(), buttons(), 1.1)
    stick.hear(axes(a1=1.0), buttons(4), 1.2)
    assert stick.wish(1.2).enabled


def test_one_that_is_held_from_the_start_is_not():
    stick = Stick(GAMEPAD, STALE_S, 6)
    stick.hear(axes(a1=1.0), buttons(4, 7), 0.0)
    assert not stick.wish(0.0).enabled and stick.calls() == []


def test_a_stop_counts_though_the_joystick_was_silent_before():
    """As one that publishes changes only: its press was taken for one from before the silence."""
    stick = Stick(GAMEPAD, STALE_S, 6)
    stick.hear(axes(), buttons(8), 0.0)
    assert stick.calls() == ['estop']
    stick.hear(axes(), buttons(), 0.1)
    stick.hear(axes(), buttons(7, 8), 5.0)
    stick.hear(axes(), buttons(7, 8), 5.02)
    assert stick.calls() == ['estop']


def test_a_button_calls_once_when_it_is_pressed(stick):
    for now in (0.1, 0.12, 0.14):
        stick.hear(axes(), buttons(7, 8), now)
    assert sorted(stick.calls()) == ['estop', 'start'] and stick.calls() == []
    stick.hear(axes(), buttons(), 0.16)
    stick.hear(axes(), buttons(3), 0.18)
    assert stick.calls() == ['success']


def test_one_button_closes_and_opens_in_turn():
    stick = Stick(SPACEMOUSE, STALE_S, 6)
    grips = []
    for now, held in enumerate([(), (0,), (0, 1), (0, 1), (0,), (0, 1), (0,)]):
        stick.hear(axes(), buttons(*held, count=2), now * 0.1)
        grips.append(stick.wish(now * 0.1).grip)
    assert grips == [0, 0, -1, -1, 0, 1, 0]


def test_a_button_more_moves_single_joints(stick):
    stick.hear(axes(a1=1.0, a6=-1.0), buttons(4, 5), 0.1)
    wish = stick.wish(0.1)
    assert wish.enabled and wish.twist is None
    np.testing.assert_allclose(wish.joints, [0, 1, 0, 0, 0, -1])
    stick.hear(axes(a1=1.0), buttons(5), 0.2)  # without the dead-man button
    assert not stick.wish(0.2).enabled
    stick.hear(axes(a1=1.0), buttons(4), 0.3)
    assert stick.wish(0.3).joints is None and stick.wish(0.3).twist[0] == 1


@pytest.mark.parametrize('joints', [5, 7])
def test_an_arm_may_have_fewer_joints_or_more_than_there_are_axes(joints):
    stick = Stick(GAMEPAD, STALE_S, joints)
    stick.hear(axes(), buttons(), 0.0)
    stick.hear(axes(a0=-1.0, a6=1.0), buttons(4, 5), 0.1)
    expected = np.array([-1.0, 0, 0, 0, 0, 1, 0])[:joints]
    np.testing.assert_allclose(stick.wish(0.1).joints, expected)


def test_a_joystick_with_fewer_buttons_is_told(stick):
    told = stick.hear([0.0] * 2, [0] * 4, 0.1)
    assert told == 'joy: 2 axes and 4 buttons; the mapping needs 8 and 10'


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        ({'twist': {'linear_q': {'axis': 0}}}, 'linear_q'),
        ({'close': 4}, 'a button stands twice'),
        ({'joints': {'button': 0, 'axes': [{'axis': 0}]}}, 'a button stands twice'),
        ({'calls': {'begin': 3}}, 'begin'),
        ({'dead_man': -1}, 'dead_man'),
    ],
)
def test_a_wrong_mapping_is_one_line(changes, told):
    with pytest.raises(SpecError, match=told) as error:
        Mapping.parse(GAMEPAD.to_dict() | changes, origin='mine.yaml')
    assert '\n' not in str(error.value)
