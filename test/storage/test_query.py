import datetime
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
    st.builds('success={}'.format, st.sampled_from(['true', 'no', 'None', ''])),
    st.builds('after={}'.format, st.datetimes().map(datetime.datetime.isoformat)),
    st.builds('seed={}'.format, st.integers(-5, 2**80)),
)


@given(st.one_of(st.text(max_size=60), st.lists(words, max_size=4)))
def test_any_text_is_a_query_that_sqlite_takes_or_a_clear_line(text):
    try:
        where, parameters = parse(text)
    except RobotRLError as error:
        assert str(error)
        return
    with sqlite3.connect(':memory:') as connection:
        columns = [key for key in KEYS if key not in ('tag', 'after', 'before')]
        connection.execute(f'CREATE TABLE episodes ({", ".join(columns)}, start_time_ns)')
        connection.execute('CREATE TABLE tags (id, tag)')
        connection.execute(f'SELECT id FROM episodes WHERE {where}', parameters)
    connection.close()
