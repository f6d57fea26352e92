"""The query language: `task=ur5e/reach source=policy success=true tag=a after=2026-01-01`."""

from __future__ import annotations

import datetime
import json
import re
import shlex
from collections.abc import Iterable
from typing import Any, NamedTuple

from robot_rl.errors import RobotRLError, UnknownName, did_you_mean

# Keys that compare a column of the index with one of several values, separated by commas.
_EQUAL = ('id', 'task', 'source', 'policy', 'robot', 'operator', 'world', 'result', 'seed')
# Keys whose values are names that people and programs choose.
_NAMES = ('task', 'source', 'policy', 'robot', 'operator', 'result', 'tag', 'reward')
KEYS = (*_EQUAL, 'success', 'flagged', 'intervened', 'tag', 'reward', 'after', 'before')

_TRUTH = {'true': 1, 'yes': 1, '1': 1, 'false': 0, 'no': 0, '0': 0} | dict.fromkeys(
    ('unknown', 'none', ''), None
)
_WORLDS = ('sim', 'real')
_REWARD_KINDS = ('sketch', 'predicted', 'simulated')
REWARDS = (*_REWARD_KINDS, 'none')


class QueryError(RobotRLError, ValueError):
    """A query is not of the form key=value, or a value does not suit its key."""


class Query(NamedTuple):
    """A condition on the index's table `episodes`, as SQL with its parameters."""

    where: str
    parameters: tuple[Any, ...]
    # The names that were asked for: (key, name).
    asked: tuple[tuple[str, str], ...]


def parse(query: str | Iterable[str] = '', **filters: Any) -> Query:
    """Read 'key=value ...' (one text, or its words) and keyword filters; all must hold.

    A value may be a list, 'policy=a,b' or policy=['a', 'b']: one of them must hold. Tags are the
    exception: each of them must be there. An empty value, or None, stands for what is not known.
    success is true, false or unknown, and so is intervened: whether a person took over from the
    policy; flagged is true of episodes in which much less came on a required topic than it
    should; reward is sketch, predicted or simulated, or
    sketch:<annotator> or predicted:<model>, or none; after (inclusive) and before (exclusive)
    take a date or a time, UTC where no zone is said. Raises UnknownName for a key, with the
    nearest valid one, and QueryError for the rest.
    """
    try:
        words = shlex.split(query) if isinstance(query, str) else _apart(query)
    except ValueError as error:
        raise QueryError(f'query {query!r}: {error}') from None
    pairs = [_pair(word) for word in words]
    pairs += [(key, _words(value)) for key, value in filters.items()]
    conditions, parameters = ['1'], []
    for key, values in pairs:
        condition, added = _condition(key, values)
        conditions.append(condition)
        parameters += added
    asked = tuple((key, value) for key, values in pairs if key in _NAMES for value in values)
    return Query(' AND '.join(conditions), tuple(parameters), asked)


def _apart(words: Iterable[str]) -> list[str]:
    """Return words of a command line, those that were quoted together apart."""
    another = rf'\s+(?=(?:{"|".join(KEYS)})=)'
    return [part for word in words for part in re.split(another, word)]


def _pair(word: str) -> tuple[str, list[str]]:
    key, equals, value = word.partition('=')
    if not equals:
        near = did_you_mean(key, KEYS) if key not in KEYS else ''
        raise QueryError(f'query: {word!r} is not of the form key=value, e.g. success=true{near}')
    return key, value.split(',')


def _words(value: Any) -> list[str]:
    if isinstance(value, (list, tuple, set, frozenset)):
        return [word for item in value for word in _words(item)]
    if value is None:
        return ['']
    return [value.isoformat() if isinstance(value, datetime.date) else str(value)]


def _condition(key: str, values: list[str]) -> tuple[str, list[Any]]:
    """Return one SQL condition and its parameters."""
    if key in _EQUAL:
        # As JSON: the number of SQL's parameters is limited.
        listed = json.dumps([_value(key, value) for value in values])
        return f'{key} IN (SELECT value FROM json_each(?))', [listed]
    if key == 'tag':
        one = 'id IN (SELECT id FROM tags WHERE tag = ?)'
        return ' AND '.join([one] * len(values)) or '1', values
    if key == 'success':
        return _any([('success IS ?', [_truth(key, value)]) for value in values])
    if key == 'flagged':
        return _any([('flagged IS ?', [_truth(key, value)]) for value in values])
    if key == 'intervened':
        return _any([('(interventions > 0) IS ?', [_truth(key, value)]) for value in values])
    if key == 'reward':
        return _any([_reward(value) for value in values])
    if key in ('after', 'before'):
        if len(values) != 1:
            raise QueryError(f'query: {key} takes one time, found {",".join(values)!r}')
        return f'start_time_ns {">=" if key == "after" else "<"} ?', [_time_ns(key, values[0])]
    raise UnknownName('query key', key, KEYS)


def _any(conditions: list[tuple[str, list[Any]]]) -> tuple[str, list[Any]]:
    """Return the condition that one of `conditions` holds."""
    where = ' OR '.join(condition for condition, _ in conditions) or '0'
    return f'({where})', [value for _, values in conditions for value in values]


def _value(key: str, text: str) -> str | int:
    if key == 'world' and text not in _WORLDS:
        raise QueryError(f'query: world takes sim or real, found {text!r}{_near(text, _WORLDS)}')
    if key != 'seed':
        return text
    if not (text.isascii() and text.isdigit()):
        raise QueryError(f'query: seed takes a whole number, found {text!r}')
    return _int64(int(text))


def _truth(key: str, text: str) -> int | None:
    if text.lower() not in _TRUTH:
        known = ('true', 'false', 'unknown')
        raise QueryError(
            f'query: {key} takes true, false or unknown, found {text!r}{_near(text, known)}'
        )
    return _TRUTH[text.lower()]


def _reward(text: str) -> tuple[str, list[str]]:
    """Return the condition that an episode has such a reward sequence."""
    kind, colon, author = text.partition(':')
    if kind in ('none', '') and not colon:
        return 'id NOT IN (SELECT id FROM rewards)', []
    if kind not in _REWARD_KINDS or (colon and not author):
        raise QueryError(
            'query: reward takes sketch, sketch:<annotator>, predicted, predicted:<model>, '
            f'simulated or none, found {text!r}{_near(kind, REWARDS)}'
        )
    if author:
        return 'id IN (SELECT id FROM rewards WHERE kind = ? AND author = ?)', [kind, author]
    return 'id IN (SELECT id FROM rewards WHERE kind = ?)', [kind]


def _near(word: str, known: tuple[str, ...]) -> str:
    """Return '; did you mean ...?' where a near word is known; the line lists them all already."""
    hint = did_you_mean(word.lower(), known)
    return hint if word not in known and hint.startswith('; did') else ''


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
