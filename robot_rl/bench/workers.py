"""Environment steps per second in worker processes, against what the cores can do."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from robot_rl import registry
from robot_rl.bench.turns import in_turns
from robot_rl.sim.environment import Environment

TASKS = ('suite/walker-walk', 'manipulation/reach_site_features')
_EACH = 8  # environments of a worker, and of the one process


def run(seconds: float = 60.0) -> Iterator[dict[str, Any]]:
    """Yield, for a suite and a manipulation task, the rate of one worker a core, twice.

    The first reference is the rate of one process with as many environments as a worker has,
    times the number of cores. The second is that of as many processes at once, none of which
    waits for another: cores that share what is beneath them (two threads of one, say) do not
    come to the first. All run in turns of a quarter of a second. Eight episodes of manipulation
    take a second, and beginning them a fifth of it, now less and now more: each of the three
    needs some ten of them before its rate is one.
    """
    for task in TASKS:
        yield from _compare(task, seconds / len(TASKS))


def _compare(task: str, seconds: float) -> Iterator[dict[str, Any]]:
    cores = len(os.sched_getaffinity(0))
    together = registry.make_environment(task, _EACH * cores, workers=cores)
    alone = registry.make_environment(task, _EACH)
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(cores, spawn, _Apart.begin, (task,)) as pool:

        def apart(seconds: float) -> int:
            return sum(pool.map(_Apart.turn, [seconds] * cores))

        turns = {'together': _stepping(together), 'alone': _stepping(alone), 'apart': apart}
        rates = in_turns(turns, seconds)
    together.close()
    alone.close()
    for reference, name in (
        (cores * rates['alone'], f'{cores} x one process'),
        (rates['apart'], f'{cores} processes apart'),
    ):
        yield {
            'bench': 'workers',
            'metric': f'{task} steps/s, {cores} workers of {_EACH} environments, to {name}',
            'value': rates['together'],
            'unit': '1/s',
            'reference': reference,
            'ratio': rates['together'] / reference,
        }


class _Apart:
    """What a process of the pool does: it steps environments of its own."""

    stepping: Callable[[float], int]

    @classmethod
    def begin(cls, task: str) -> None:
        """Make them."""
        cls.stepping = staticmethod(_stepping(registry.make_environment(task, _EACH)))

    @classmethod
    def turn(cls, seconds: float) -> int:
        """Step them for some seconds -> environment steps taken."""
        return cls.stepping(seconds)


def _stepping(environment: Environment) -> Callable[[float], int]:
    """Return a function that steps the environment for some seconds -> environment steps taken."""
    contract, rng = environment.contract, np.random.default_rng(0)
    shape = (64, environment.num_envs, contract.action_size)
    actions = itertools.cycle(rng.uniform(contract.action_lower, contract.action_upper, shape))
    environment.reset()

    def turn(seconds: float) -> int:
        steps, until = 0, time.perf_counter() + seconds
        while time.perf_counter() < until:
            environment.step(next(actions))
            steps += environment.num_envs
        return steps

    return turn
