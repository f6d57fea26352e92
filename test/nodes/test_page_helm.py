"""What browsers say to the teleop page: who has control, what is held, what is no message."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_rl.errors import RobotRLError, SpecError
from robot_rl.nodes.page_helm import LATE_S, Helm, Refused

JOINTS, STALE_S = 3, 0.25
# What a page may say, as plain data; not all of it is right.
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
LIKE_HOLDS = st.fixed_dictionaries(
    {},
    optional={
        'hold': st.fixed_dictionaries(
            {},
            optional={
                'seen': st.floats() | JSON,
                'joints': st.lists(st.floats(), max_size=5) | JSON,
                'twist': st.lists(st.floats(), max_size=7) | JSON,
                'frame': st.sampled_from(['base', 'tool', 'world']),
                'grip': st.floats() | JSON,
            },
        ),
        'ask': st.sampled_from(['take', 'release', 'start', 'stop', 'estop', 'halt', '']) | JSON,
    },
)


def held(now: float, **what) -> str:
    return json.dumps({'hold': {'seen': now} | what})


def asked(what: str) -> str:
    return json.dumps({'ask': what})


@pytest.fixture
def helm() -> Helm:
    return Helm(JOINTS, STALE_S)


def test_what_is_held_is_wished_until_it_is_let_go(helm):
    page = helm.join()
    assert not helm.wish(10.0).enabled
    helm.hear(page, held(10.0, joints=[0, -0.5, 1], grip=-1), 10.0)
    wish = helm.wish(10.0)
    assert wish.enabled
    np.testing.assert_array_equal(wish.joints, [0, -0.5, 1])
    assert (wish.twist, wish.grip) == (None, -1)
    helm.hear(page, held(10.1, twist=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], frame='tool'), 10.1)
    wish = helm.wish(10.1)
    np.testing.assert_array_equal(wish.twist, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert (wish.joints, wish.frame) == (None, 'tool')
    helm.hear(page, asked('release'), 10.2)
    assert not helm.wish(10.2).enabled


def test_silence_is_letting_go(helm):
    page = helm.join()
    helm.hear(page, held(10.0, grip=1), 10.0)
    assert helm.wish(10.0 + STALE_S - 1e-6).enabled
    assert not helm.wish(10.0 + STALE_S + 1e-6).enabled
    with pytest.raises(Refused, match='let go'):  # it does not go on by itself
        helm.hear(page, held(11.0, grip=1), 11.0)
    assert not helm.wish(11.0).enabled
    helm.hear(page, held(12.0, grip=1), 12.0)
    assert helm.wish(12.0).enabled


def test_a_closed_page_has_let_go(helm):
    page = helm.join()
    helm.hear(page, held(10.0, grip=1), 10.0)
    helm.leave(page)
    assert not helm.wish(10.0).enabled


@pytest.mark.parametrize('seen', [10.0 - LATE_S - 1e-3, 10.001, -1e9])
def test_what_answers_an_old_picture_lets_go(helm, seen):
    page = helm.join()
    helm.hear(page, held(10.0, grip=1), 10.0)
    with pytest.raises(Refused, match='slow'):
        helm.hear(page, held(seen, grip=1), 10.0)
    assert not helm.wish(10.0).enabled


def test_one_page_has_control_and_the_others_may_stop(helm):
    first, second = helm.join(), helm.join()
    for words in (held(10.0, grip=1), asked('start'), asked('estop_reset')):
        with pytest.raises(Refused, match='control'):
            helm.hear(second, words, 10.0)
    helm.hear(first, held(10.0, grip=1), 10.0)
    helm.hear(second, asked('release'), 10.0)
    assert helm.wish(10.0).enabled
    helm.hear(second, asked('estop'), 10.0)
    assert not helm.wish(10.0).enabled
    assert helm.calls() == ['estop']
    assert helm.calls() == []


def test_control_is_given_over_when_nothing_is_held(helm):
    first, second = helm.join(), helm.join()
    helm.hear(first, held(10.0, grip=1), 10.0)
    with pytest.raises(Refused, match='lets go'):
        helm.hear(second, asked('take'), 10.0)
    assert helm.view(second, 10.0)['control'] == 'taken'
    helm.hear(second, asked('take'), 11.0)
    assert helm.view(second, 11.0)['control'] == 'yours'
    with pytest.raises(Refused):
        helm.hear(first, held(11.0, grip=1), 11.0)
    helm.leave(second)
    assert helm.view(first, 11.0) == {'time': 11.0, 'control': 'free', 'pages': 1}
    helm.hear(first, asked('take'), 11.0)
    helm.hear(first, asked('success'), 11.0)
    assert helm.calls() == ['success']


def test_nothing_is_held_while_the_arm_is_stopped(helm):
    page = helm.join()
    helm.tell({'estop': True})
    with pytest.raises(Refused, match='reset'):
        helm.hear(page, held(10.0, grip=1), 10.0)
    assert not helm.wish(10.0).enabled


@pytest.mark.parametrize(
    ('said', 'words'),
    [
        ('', 'not valid JSON'),
        ('[]', 'expected a mapping'),
        ('{}', 'either hold or ask'),
        (held(10.0, joints=[0, 0]), '2 joints, the arm has 3'),
        (held(10.0, joints=[0, 0, 1.1]), 'less than or equal to 1'),
        (held(10.0, twist=[0] * 5), 'twist'),
        (held(10.0, twist=[0] * 6, joints=[0] * 3), 'not both'),
        (held(10.0, speed=1), 'speed'),
        ('{"hold": {"seen": NaN}}', 'not valid JSON'),
        (asked('stop'), 'ask'),
        ('[' * 4000, 'not valid JSON'),
    ],
)
def test_what_is_no_message_gets_one_line(helm, said, words):
    page = helm.join()
    with pytest.raises(SpecError, match=words):
        helm.hear(page, said, 10.0)


@given(st.text() | JSON.map(json.dumps) | LIKE_HOLDS.map(json.dumps))
def test_whatever_comes_is_taken_or_changes_nothing(said):
    helm = Helm(JOINTS, STALE_S)
    page = helm.join()
    helm.hear(page, held(10.0, joints=[1, 1, 1]), 10.0)
    try:
        helm.hear(page, said, 10.0)
    except SpecError:
        np.testing.assert_array_equal(helm.wish(10.0).joints, [1, 1, 1])
        assert helm.calls() == []
    except RobotRLError:  # too late
        assert not helm.wish(10.0).enabled
    wish = helm.wish(10.0)
    shares = [wish.grip, *(wish.joints if wish.joints is not None else [])]
    shares += list(wish.twist) if wish.twist is not None else []
    assert all(math.isfinite(share) and abs(share) <= 1 for share in shares)
    assert wish.joints is None or len(wish.joints) == JOINTS
