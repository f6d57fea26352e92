"""Environment steps per second in worker processes, against one process times the cores."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from robot_rl import registry
from robot_rl.sim.environment import Environment

TASKS = ('suite/walker-walk', 'manipulation/reach_site_features')
_EACH = 8  # environments of a worker, and of the one process
_SLICE_S = 0.25


def run(seconds: float = 20.0) -> Iterator[dict[str, Any]]:
    """Yield, for a suite and a manipulation task, the rate of one worker a core.

    The reference is the rate of one process with as many environments as a worker has, times the
    number of cores. Both run in turns of a quarter of a second.
    """
    for task in TASKS:
        yield _compare(task, seconds / len(TASKS))


def _compare(task: str, seconds: float) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    environments = (
        registry.make_environment(task, _EACH * cores, workers=cores),
        registry.make_environment(task, _EACH),
    )
    turns = [_stepping(environment) for environment in environments]
    totals = np.zeros((2, 2))  # of each: steps, seconds
    for turn in turns:
        turn(_SLICE_S)  # first calls allocate
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for total, turn in zip(totals, turns, strict=True):
            start = time.perf_counter()
            steps = turn(_SLICE_S)
            total += steps, time.perf_counter() - start
    for environment in environments:
        environment.close()
    value, alone = totals[:, 0] / totals[:, 1]
    return {
        'bench': 'sim',
        'metric': f'{task} steps/s, {cores} workers with {_EACH} environments each',
        'value': value,
        'unit': '1/s',
        'reference': cores * alone,
        'ratio': value / (cores * alone),
    }


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
