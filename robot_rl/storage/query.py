"""The query language: `task=ur5e/reach source=policy success=true tag=a after=2026-01-01`."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Iterable
from typing import Any, NamedTuple

from robot_rl.errors import RobotRLError, UnknownName

# Keys that compare a column of the index with one of several values, separated by commas.
_EQUAL = ('id', 'task', 'source', 'policy', 'robot', 'operator', 'world', 'result', 'seed')
KEYS = (*_EQUAL, 'success', 'tag', 'after', 'before')

_TRUTH = {'true': 1, 'yes': 1, '1': 1, 'false': 0, 'no': 0, '0': 0, 'unknown': None, 'none': None}


class QueryError(RobotRLError, ValueError):
    """A query is not of the form key=value, or a value does not suit its key."""


class Query(NamedTuple):
    """A condition on the index's table `episodes`, as SQL with its parameters."""

    where: str
    parameters: tuple[Any, ...]


def parse(query: str | Iterable[str] = '', **filters: Any) -> Query:
    """Read 'key=value ...' (one text, or its words) and keyword filters; all must hold.

    A value may be a list, 'policy=a,b' or policy=['a', 'b']: one of them must hold. Tags are the
    exception: each of them must be there. success is true, false or unknown; after (inclusive)
    and before (exclusive) take a date or a time, UTC where no zone is said. Raises UnknownName
    for a key, with the nearest valid one, and QueryError for the rest.
    """
    try:
        words = shlex.split(query) if isinstance(query, str) else list(query)
    except ValueError as error:
        raise QueryError(f'query {query!r}: {error}') from None
    pairs = [_pair(word) for word in words]
    pairs += [(key, _words(value)) for key, value in filters.items()]
    conditions, parameters = ['1'], []
    for key, values in pairs:
        condition, added = _condition(key, values)
        conditions.append(condition)
        parameters += added
    return Query(' AND '.join(conditions), tuple(parameters))


def _pair(word: str) -> tuple[str, list[str]]:
    key, equals, value = word.partition('=')
    if not equals:
        raise QueryError(f'query: {word!r} is not of the form key=value, e.g. success=true')
    return key, value.split(',')


def _words(value: Any) -> list[str]:
    if value is None:
        return ['unknown']
    if isinstance(value, (list, tuple, set, frozenset)):
        return [str(item) for item in value]
    return [value.isoformat() if isinstance(value, datetime.date) else str(value)]


def _condition(key: str, values: list[str]) -> tuple[str, list[Any]]:
    """Return one SQL condition and its parameters."""
    if key in _EQUAL:
        return f'{key} IN ({", ".join("?" * len(values))})', [_value(key, v) for v in values]
    if key == 'tag':
        one = 'id IN (SELECT id FROM tags WHERE tag = ?)'
        return ' AND '.join([one] * len(values)), values
    if key == 'success':
        truths = [_truth(value) for value in values]
        return '(' + ' OR '.join(['success IS ?'] * len(truths)) + ')', truths
    if key in ('after', 'before'):
        if len(values) != 1:
            raise QueryError(f'query: {key} takes one time, found {",".join(values)!r}')
        return f'start_time_ns {">=" if key == "after" else "<"} ?', [_time_ns(key, values[0])]
    raise UnknownName('query key', key, KEYS)


def _value(key: str, text: str) -> str | int:
    if key != 'seed':
        return text
    if not (text.isascii() and text.isdigit()):
        raise QueryError(f'query: seed takes a whole number, found {text!r}')
    return _int64(int(text))


def _truth(text: str) -> int | None:
    if text.lower() not in _TRUTH:
        raise QueryError(f'query: success takes true, false or unknown, found {text!r}')
    return _TRUTH[text.lower()]


def _time_ns(key: str, text: str) -> int:
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise QueryError(
            f'query: {key} takes a date or a time like 2026-01-31 or 2026-01-31T12:00, '
            f'found {text!r}'
        ) from None
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.UTC)
    since = time - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return _int64(since // datetime.timedelta(microseconds=1) * 1000)


def _int64(value: int) -> int:
    """Keep a number inside what SQLite holds; beyond it there are no episodes."""
    return max(-(2**63), min(value, 2**63 - 1))
