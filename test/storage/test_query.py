import datetime
import shlex
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_rl.errors import RobotRLError, UnknownName
from robot_rl.storage.query import KEYS, QueryError, parse

DAY_NS = 86_400 * 10**9


def test_words_and_keywords_mean_the_same():
    assert parse('task=a/b success=true tag=x') == parse(['task=a/b', 'success=true', 'tag=x'])
    assert parse('task=a/b success=true') == parse(task='a/b', success=True)
    assert parse('policy=a,b seed=3 success=unknown') == parse(
        policy=['a', 'b'], seed=3, success=None
    )
    assert parse('after=2026-01-01') == parse(after=datetime.date(2026, 1, 1))
    assert parse('reward=sketch:anna,') == parse(reward=['sketch:anna', None])
    assert parse('policy=') == parse(policy=None)
    assert parse('task="a b"') == parse(['task=a b'])
    assert parse() == parse('  ') == parse([])


@pytest.mark.parametrize(
    ('text', 'days'),
    [
        ('after=1970-01-03', 2),
        ('after=1970-01-03T12:00', 2.5),
        ('after=1970-01-03T12:00:00+12:00', 2),
        ('before=1970-01-03', 2),
    ],
)
def test_times_are_utc_where_no_zone_is_said(text, days):
    assert parse(text).parameters == (int(days * DAY_NS),)


def test_a_misspelt_key_gets_the_nearest_valid_one():
    with pytest.raises(UnknownName, match="unknown query key 'polcy'; did you mean 'policy'"):
        parse('polcy=x')
    with pytest.raises(UnknownName, match="did you mean 'success'"):
        parse(sucess=True)


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('tsk', "not of the form key=value.*did you mean 'task'"),
        ('success=ture', "found 'ture'; did you mean 'true'"),
        ('world=simm', "world takes sim or real, found 'simm'; did you mean 'sim'"),
        ('reward=skech', "or none, found 'skech'; did you mean 'sketch'"),
        ('reward=predict:m', "found 'predict:m'; did you mean 'predicted'"),
        ('reward=sketch:', "sketch:<annotator>.*found 'sketch:'"),
        ('reward=none:anna', "found 'none:anna'"),
        ('success', 'not of the form key=value'),
        ('success=maybe', "true, false or unknown, found 'maybe'"),
        ('after=yesterday', "2026-01-31.*found 'yesterday'"),
        ('after=2026-01-01,2026-02-01', 'takes one time'),
        ('seed=x', "whole number, found 'x'"),
        ('task="a', 'No closing quotation'),
    ],
)
def test_bad_values_are_told_in_one_line(text, said):
    with pytest.raises(QueryError, match=said) as caught:
        parse(text)
    assert '\n' not in str(caught.value)


words = st.one_of(
    st.text(max_size=20),
    st.builds('{}={}'.format, st.sampled_from(KEYS), st.text(max_size=20)),
    st.builds(
        '{}={}'.format,
        st.sampled_from(['success', 'flagged', 'intervened']),
        st.sampled_from(['true', 'no', 'None', '']),
    ),
    st.builds('after={}'.format, st.datetimes().map(datetime.datetime.isoformat)),
    st.builds('seed={}'.format, st.integers(-5, 2**80)),
)


@given(st.one_of(st.text(max_size=60), st.lists(words, max_size=4)))
def test_any_text_is_a_query_that_sqlite_takes_or_a_clear_line(text):
    try:
        where, parameters, _ = parse(text)
    except RobotRLError as error:
        assert str(error)
        return
    with sqlite3.connect(':memory:') as connection:
        elsewhere = 'tag', 'reward', 'after', 'before', 'intervened'
        columns = [key for key in KEYS if key not in elsewhere]
        columns += ['start_time_ns', 'interventions']
        connection.execute(f'CREATE TABLE episodes ({", ".join(columns)})')
        connection.execute('CREATE TABLE tags (id, tag)')
        connection.execute('CREATE TABLE rewards (id, kind, author)')
        connection.execute(f'SELECT id FROM episodes WHERE {where}', parameters)
    connection.close()


# NUL ends a text in SQLite's JSON, and in what a shell hands over.
NAMES = st.text(st.characters(exclude_characters=',\0', exclude_categories=['Cs']), min_size=1)
TERMS = st.one_of(
    st.tuples(st.sampled_from(['task', 'source', 'policy', 'tag']), st.lists(NAMES, min_size=1)),
    st.tuples(st.just('seed'), st.lists(st.integers(0, 2**63 - 1).map(str), min_size=1)),
    st.tuples(st.just('success'), st.lists(st.sampled_from(['true', 'false', 'unknown']))),
    st.tuples(st.just('world'), st.just(['sim', 'real'])),
    st.tuples(
        st.just('reward'),
        st.lists(
            st.one_of(
                st.sampled_from(['sketch', 'predicted', 'none']),
                st.builds('{}:{}'.format, st.sampled_from(['sketch', 'predicted']), NAMES),
            ),
            min_size=1,
        ),
    ),
    st.tuples(st.just('before'), st.datetimes().map(lambda time: [time.isoformat()])),
).filter(lambda term: term[1])


@given(st.lists(TERMS, unique_by=lambda term: term[0], max_size=4))
def test_a_text_its_words_and_keywords_are_one_query_whatever_the_names(terms):
    words = [f'{key}={",".join(values)}' for key, values in terms]
    assert parse(shlex.join(words)) == parse(words) == parse(**dict(terms))


@given(NAMES, NAMES, st.sampled_from(['task', 'tag', 'reward']))
def test_a_name_finds_what_bears_it_and_nothing_else(wanted, other, key):
    """What a query means, told by a database of two episodes."""
    with sqlite3.connect(':memory:') as connection:
        connection.execute('CREATE TABLE episodes (id, task)')
        connection.execute('CREATE TABLE tags (id, tag)')
        connection.execute('CREATE TABLE rewards (id, kind, author)')
        for id, name in enumerate([wanted, other]):
            connection.execute('INSERT INTO episodes VALUES (?, ?)', (id, name))
            connection.execute('INSERT INTO tags VALUES (?, ?)', (id, name))
            connection.execute("INSERT INTO rewards VALUES (?, 'sketch', ?)", (id, name))
        value = f'sketch:{wanted}' if key == 'reward' else wanted
        where, parameters, asked = parse([f'{key}={value}'])
        found = connection.execute(f'SELECT id FROM episodes WHERE {where}', parameters).fetchall()
    connection.close()
    assert asked == ((key, value),)
    assert found == [(0,), (1,)] if wanted == other else [(0,)]
