"""Environment steps per second in worker processes, against what the cores can do."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from robot_rl import registry
from robot_rl.bench.turns import in_turns
from robot_rl.sim.environment import Environment

TASKS = ('suite/walker-walk', 'manipulation/reach_site_features')
_EACH = 8  # environments of a worker, and of the one process


def run(seconds: float = 60.0) -> Iterator[dict[str, Any]]:
    """Yield, for a suite and a manipulation task, the rate of one worker a core, three times.

    The first reference is the rate of one process with as many environments as a worker has,
    times the number of cores. The second is that of as many processes at once, none of which
    waits for another: cores that share what is beneath them (two threads of one, say) do not
    come to the first. The third is what these would come to if each of their steps took as long
    as the slowest process's, as a batch waits for the slowest: more than that is not to be had
    where the cores are now quicker and now slower, unless episodes, which a batch begins all at
    once, take long to begin. All run in turns of a quarter of a second. Eight episodes of
    manipulation take a second, and beginning them a fifth of it, now less and now more: each of
    the three that run needs some ten of them before its rate is one.
    """
    for task in TASKS:
        yield from _compare(task, seconds / len(TASKS))


def _compare(task: str, seconds: float) -> Iterator[dict[str, Any]]:
    cores = len(os.sched_getaffinity(0))
    together = registry.make_environment(task, _EACH * cores, workers=cores)
    alone = registry.make_environment(task, _EACH)
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(cores, spawn, _Apart.begin, (task,)) as pool:
        paces = []  # of each turn, a row a process [s]

        def apart(seconds: float) -> int:
            paces.append(list(pool.map(_Apart.turn, [seconds] * cores)))
            return _EACH * sum(map(len, paces[-1]))

        turns = {'together': _counted(together), 'alone': _counted(alone), 'apart': apart}
        rates = in_turns(turns, seconds)
    together.close()
    alone.close()
    for reference, name in (
        (cores * rates['alone'], f'{cores} x one process'),
        (rates['apart'], f'{cores} processes apart'),
        (cores * _EACH / _slowest(paces), f'{cores} apart, each step as long as the slowest'),
    ):
        yield {
            'bench': 'workers',
            'metric': f'{task} steps/s, {cores} workers of {_EACH} environments, to {name}',
            'value': rates['together'],
            'unit': '1/s',
            'reference': reference,
            'ratio': rates['together'] / reference,
        }


def _slowest(paces: Sequence[Sequence[Sequence[float]]]) -> float:
    """Return the mean over all steps of how long the slowest process took [s]."""
    longest = [max(step) for turn in paces for step in zip(*turn, strict=False)]
    return float(np.mean(longest))


class _Apart:
    """What a process of the pool does: it steps environments of its own."""

    stepping: Callable[[float], list[float]]

    @classmethod
    def begin(cls, task: str) -> None:
        """Make them."""
        cls.stepping = staticmethod(_stepping(registry.make_environment(task, _EACH)))

    @classmethod
    def turn(cls, seconds: float) -> list[float]:
        """Step them for some seconds -> how long each step took [s]."""
        return cls.stepping(seconds)


def _counted(environment: Environment) -> Callable[[float], int]:
    """Return a function that steps the environment for some seconds -> environment steps taken."""
    stepping = _stepping(environment)
    return lambda seconds: environment.num_envs * len(stepping(seconds))


def _stepping(environment: Environment) -> Callable[[float], list[float]]:
    """Return a function that steps the environment for some seconds -> time of each step [s]."""
    contract, rng = environment.contract, np.random.default_rng(0)
    shape = (64, environment.num_envs, contract.action_size)
    actions = itertools.cycle(rng.uniform(contract.action_lower, contract.action_upper, shape))
    environment.reset()

    def turn(seconds: float) -> list[float]:
        took, began = [], time.perf_counter()
        until = began + seconds
        while began < until:
            environment.step(next(actions))
            ended = time.perf_counter()
            took.append(ended - began)
            began = ended
        return took

    return turn
