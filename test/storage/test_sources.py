"""Who commanded the arm, and how often a person took over."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_rl.storage.sources import (
    ESTOP,
    HOLD,
    NAMES,
    PERSON,
    POLICY,
    count_interventions,
    number,
)


@pytest.mark.parametrize(
    ('name', 'expected'),
    [('policy', POLICY), ('teleop', PERSON), ('left/teleop', PERSON), ('hold', HOLD),
     ('estop', ESTOP), ('idle', HOLD), ('starting', HOLD)],
)  # fmt: skip
def test_whoever_is_no_policy_and_not_the_guard_is_a_person(name, expected):
    assert number(name) == expected
    assert NAMES[POLICY] == 'policy' and NAMES[HOLD] == 'hold'


@pytest.mark.parametrize(
    ('sources', 'count'),
    [
        ('', 0),
        ('ppp', 0),
        ('pppttpp', 1),
        ('pthtthp', 1),  # slowly, step by step: the arm was not given back in between
        ('ptphtpt', 3),
        ('ttp', 1),  # from the beginning on
        ('hht', 1),
        ('ptet', 1),
    ],
)
def test_an_intervention_lasts_until_the_policy_leads_again(sources, count):
    assert count_interventions('pthe'.index(source) for source in sources) == count


@given(st.text('pthe'))
def test_interventions_are_the_runs_of_a_person_between_those_of_the_policy(sources):
    led = re.sub('[he]', '', sources)
    assert count_interventions(map('pthe'.index, sources)) == len(re.findall('t+', led))
