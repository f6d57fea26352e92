from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_rl.control.session import IllegalTransition, Session, SessionInfo
from robot_rl.errors import SpecError

STEPS = {
    'prepare': lambda session: session.prepare('e1', seed=3),
    'ready': lambda session: session.ready(),
    'running': lambda session: session.start(),
    'ended': lambda session: session.end('discarded'),
    'idle': lambda session: session.reset(),
}
# Written out again, independently of the module's own table.
LEGAL = {
    ('idle', 'prepare'),
    ('prepare', 'ready'),
    ('prepare', 'ended'),
    ('ready', 'running'),
    ('ready', 'ended'),
    ('running', 'ended'),
    ('ended', 'prepare'),
    ('ended', 'idle'),
}
WAY_TO = {
    'idle': [],
    'prepare': ['prepare'],
    'ready': ['prepare', 'ready'],
    'running': ['prepare', 'ready', 'running'],
    'ended': ['prepare', 'ready', 'running', 'ended'],
}


@pytest.mark.parametrize(('state', 'following'), list(itertools.product(WAY_TO, STEPS)))
def test_every_transition_is_made_or_refused(state, following):
    session = Session()
    for step in WAY_TO[state]:
        STEPS[step](session)
    before = session.info
    assert before.state == state
    if (state, following) in LEGAL:
        assert STEPS[following](session).state == following
        return
    with pytest.raises(IllegalTransition, match=f"'{state}' cannot become '{following}', only "):
        STEPS[following](session)
    assert session.info is before


def test_a_whole_episode_carries_its_identity_and_result(contract):
    session = Session()
    fields = {'task': 'ur5e/reach', 'seed': 2**31 + 5, 'max_steps': 60, 'tags': ['demo']}
    session.prepare('e7', contract=contract.to_dict(), index=4, **fields)
    session.ready()
    session.start()
    info = session.end('truncated')
    assert (info.episode, info.index, info.result, info.seed) == ('e7', 4, 'truncated', 2**31 + 5)
    assert session.prepare('e8').result is None
    assert session.info.tags == ()


@pytest.mark.parametrize('result', ['success', 'failure', 'truncated'])
def test_an_episode_that_never_ran_cannot_be_judged(result):
    session = Session()
    session.prepare('e1')
    with pytest.raises(IllegalTransition, match='has not run'):
        session.end(result)
    assert session.info.state == 'prepare'
    assert session.end('estop').result == 'estop'


def test_unknown_fields_and_results_are_refused_with_their_names():
    session = Session()
    with pytest.raises(SpecError, match="polcy: unknown key; did you mean 'policy'"):
        session.prepare('e1', polcy='x')
    assert session.info.state == 'idle'
    session.prepare('e1')
    session.ready()
    session.start()
    with pytest.raises(SpecError, match="result: unknown value 'won'; known: success, failure"):
        session.end('won')
    assert session.info.state == 'running'
    with pytest.raises(SpecError, match="result 'success' does not go with state 'running'"):
        SessionInfo.parse({'state': 'running', 'result': 'success'})


@given(
    st.builds(
        SessionInfo,
        state=st.sampled_from(['idle', 'prepare', 'ready', 'running']),
        episode=st.text(max_size=20),
        index=st.integers(0, 10**6),
        seed=st.none() | st.integers(0, 2**32),
        max_steps=st.none() | st.integers(1, 10**6),
        tags=st.lists(st.text(max_size=8), max_size=3).map(tuple),
        contract=st.none()
        | st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False)),
    )
)
def test_session_info_survives_json(info):
    assert SessionInfo.from_json(info.to_json()) == info
