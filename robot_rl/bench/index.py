"""How long the storage's index takes to answer, at 100,000 episodes, beside a walk in memory."""

from __future__ import annotations

import datetime
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl import registry
from robot_rl.storage.episode import HEADER_FILE, EpisodeHeader
from robot_rl.storage.index import Entry, Index
from robot_rl.storage.rewards import RewardInfo
from robot_rl.storage.store import INDEX_FILE, Store, header_stamp

EPISODES = 100_000
TASK = 'ur5e/reach'
_FIRST_NS, _MINUTE_NS = 1_700_000_000 * 10**9, 60 * 10**9
_MIDDLE = datetime.datetime.fromtimestamp(
    (_FIRST_NS + EPISODES // 2 * _MINUTE_NS) * 1e-9, datetime.UTC
).isoformat()

# A query, and the same asked of a header and its rewards in memory.
_QUERIES: dict[str, Callable[[Entry], bool]] = {
    '': lambda e: True,
    'task=stack-3': lambda e: e.header.task == 'stack-3',
    'source=teleop': lambda e: e.header.source == 'teleop',
    'policy=reach-3': lambda e: e.header.policy == 'reach-3',
    'robot=ur5e': lambda e: e.header.robot == 'ur5e',
    'operator=anna': lambda e: e.header.operator == 'anna',
    'world=real': lambda e: e.header.world == 'real',
    'result=truncated': lambda e: e.header.result == 'truncated',
    'seed=7': lambda e: e.header.seed == 7,
    'success=true': lambda e: e.header.success is True,
    'success=unknown': lambda e: e.header.success is None,
    'flagged=true': lambda e: bool(e.header.flags),
    'tag=curated': lambda e: 'curated' in e.header.tags,
    'tag=curated,spoilt': lambda e: {'curated', 'spoilt'} <= set(e.header.tags),
    f'after={_MIDDLE}': lambda e: e.header.start_time_ns >= _FIRST_NS + 50_000 * _MINUTE_NS,
    f'before={_MIDDLE}': lambda e: e.header.start_time_ns < _FIRST_NS + 50_000 * _MINUTE_NS,
    'reward=sketch:anna': lambda e: any(
        r.kind == 'sketch' and r.author == 'anna' for r in e.rewards
    ),
    'reward=sketch': lambda e: any(r.kind == 'sketch' for r in e.rewards),
    'reward=predicted:model-1': lambda e: any(
        r.kind == 'predicted' and r.author == 'model-1' for r in e.rewards
    ),
    'reward=none': lambda e: not e.rewards,
    'id=e77': lambda e: e.header.id == 'e77',
    f'task=stack-3 source=teleop success=true tag=curated after={_MIDDLE} reward=sketch:anna': (
        lambda e: (
            e.header.task == 'stack-3'
            and e.header.source == 'teleop'
            and e.header.success is True
            and 'curated' in e.header.tags
            and e.header.start_time_ns >= _FIRST_NS + 50_000 * _MINUTE_NS
            and any(r.kind == 'sketch' and r.author == 'anna' for r in e.rewards)
        )
    ),
}


def run(seconds: float = 20.0) -> Iterator[dict[str, Any]]:
    """Yield the time that each query takes, with the look for new directories that it begins with.

    The folder has a directory with an empty file for each of 100,000 made-up headers, which are
    put into the index directly. The value is the median over about `seconds` in all; the reference
    is a walk over the same headers as Python objects in memory.
    """
    entries = list(_made_up())
    with tempfile.TemporaryDirectory(prefix='robot-rl-bench-') as folder:
        root = Path(folder) / 'episodes'
        root.mkdir()
        for entry in entries:
            (root / entry.header.id).mkdir()
            (root / entry.header.id / HEADER_FILE).touch()
        entries = [e._replace(stamp=header_stamp(str(root), e.header.id)) for e in entries]
        yield _building(root, entries)
        _wait_until_settled(root)
        store = Store(root)
        store.episodes()
        each = seconds / (len(_QUERIES) + 5)
        for query, holds in _QUERIES.items():
            found_ms = _median_ms(lambda query=query: store.episodes(query), each)
            start = time.perf_counter()
            found = [entry.header.id for entry in entries if holds(entry)]
            walk_ms = (time.perf_counter() - start) * 1e3
            if store.episodes(query).ids != found:
                raise AssertionError(f'{query}: the index and the walk differ')
            what = f'query {query!r} finds {len(found)} of {len(entries)} episodes'
            yield _row(what, found_ms, walk_ms)
        yield _row(
            "query '' of a store just opened", _median_ms(lambda: Store(root).episodes(), each)
        )
        yield _row('query just after a directory has come', _after_changes(store, root, each))
        yield _counting(store, entries, each)
        look_ms = _median_ms(store.look_again, each)
        yield _row(f'{len(entries)} headers looked at, as ls and stats begin', look_ms)
        headers = store.episodes('seed=7')
        yield _row(f'{len(headers)} headers read', _median_ms(lambda: list(headers), each))


def _made_up() -> Iterator[Entry]:
    """Yield entries like those of a lab: some 40 tasks, half of the episodes rewarded."""
    rng = np.random.default_rng(0)
    task = registry.make_task(TASK)
    contract, robot = task.contract(), task.robot
    tags = (('curated',), ('spoilt',), ('curated', 'spoilt'), ())
    for number in range(EPISODES):
        # Without validation, which is not what is measured.
        header = EpisodeHeader.model_construct(
            id=f'e{number}',
            task=f'stack-{rng.integers(40)}',
            source=('policy', 'teleop', 'random')[rng.integers(3)],
            policy=f'reach-{rng.integers(100)}',
            operator=('anna', 'ben', '')[rng.integers(3)],
            robot=('ur5e', 'panda')[rng.integers(2)],
            robot_spec=robot,
            contract=contract,
            world=('sim', 'real')[rng.integers(2)],
            seed=int(rng.integers(100)),
            result=('success', 'failure', 'truncated')[rng.integers(3)],
            success=(True, False, None)[rng.integers(3)],
            tags=tags[rng.integers(len(tags))],
            start_time_ns=_FIRST_NS + number * _MINUTE_NS,
            end_time_ns=_FIRST_NS + number * _MINUTE_NS + 20 * 10**9,
        )
        yield Entry(header, _rewards(rng, number))


def _rewards(rng: np.random.Generator, number: int) -> list[RewardInfo]:
    """Return a prediction for every second episode, and a sketch for every tenth."""
    authors = {'predicted': ('model-1', 'model-2'), 'sketch': ('anna', 'ben')}
    kinds = ['predicted'] * (number % 2 == 0) + ['sketch'] * (number % 10 == 0)
    return [
        RewardInfo.model_construct(
            id=f'r{number}-{kind}', kind=kind, author=authors[kind][rng.integers(2)]
        )
        for kind in kinds
    ]


def _building(root: Path, entries: list[Entry]) -> dict[str, Any]:
    """Put all entries into a new index."""
    (root / INDEX_FILE).parent.mkdir()
    index, start = Index(root / INDEX_FILE), time.perf_counter()
    for first in range(0, len(entries), 500):
        index.add(entries[first : first + 500])
    return {
        'bench': 'index',
        'metric': f'{len(entries)} episodes put into the index',
        'value': len(entries) / (time.perf_counter() - start),
        'unit': '1/s',
        'reference': None,
        'ratio': None,
    }


def _counting(store: Store, entries: list[Entry], seconds: float) -> dict[str, Any]:
    """Return how long what `stats` tells takes to be counted."""
    counts_ms = _median_ms(store.counts, seconds)
    start = time.perf_counter()
    groups = Counter((e.header.task, e.header.source) for e in entries)
    walk_ms = (time.perf_counter() - start) * 1e3
    if {key: count.episodes for key, count in store.counts().items()} != groups:
        raise AssertionError('counts: the index and the walk differ')
    return _row(f'{len(entries)} episodes counted by task and source', counts_ms, walk_ms)


def _wait_until_settled(root: Path) -> None:
    """Wait until the folder's last change is some seconds ago, as in a store that rests."""
    while time.time_ns() - root.stat().st_mtime_ns < 4 * 10**9:
        time.sleep(0.1)


def _after_changes(store: Store, root: Path, seconds: float) -> float:
    """Return how long a query takes just after a directory has come [ms]."""

    def query() -> None:
        os.utime(root)  # what a new directory does
        store.episodes('task=none')

    return _median_ms(query, seconds)


def _median_ms(call: Callable[[], Any], seconds: float) -> float:
    """Return the median time of some calls, of three at least [ms]."""
    times, until = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def _row(metric: str, value: float, reference: float | None = None) -> dict[str, Any]:
    return {
        'bench': 'index',
        'metric': metric,
        'value': value,
        'unit': 'ms',
        'reference': reference,
        'ratio': reference and value / reference,
    }
