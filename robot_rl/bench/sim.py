"""Physics steps per second of the arm task, batched, against bare mj_step on the same cores."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mujoco
import numpy as np

from robot_rl import registry
from robot_rl.bench import workers
from robot_rl.sim.arm import ArmEnvironment
from robot_rl.sim.environment import StepType
from robot_rl.sim.reach import ReachTask

TASK = 'ur5e/reach'
_SLICE_S = 0.25


def run(seconds: float = 20.0) -> Iterator[dict[str, Any]]:
    """Yield, for 16 and for 64 environments, the environment's rate beside the bare rate.

    Both run in turns of a quarter of a second, on every core. Bare: one thread a core, each
    calling mj_step(model, data, nstep = one decision's substeps) on its own MjData of the same
    model, with a new random command each call; no observation, reward, limits or reset.
    Then what bench.workers measures.
    """
    task = registry.make_task(TASK)
    for num_envs in (16, 64):
        yield _compare(task, num_envs, seconds / 4)
    yield from workers.run(seconds / 2)


def _compare(task: ReachTask, num_envs: int, seconds: float) -> dict[str, Any]:
    environment = ArmEnvironment(task, num_envs)
    cores = len(os.sched_getaffinity(0))
    totals = {'batched': np.zeros(2), 'bare': np.zeros(2)}  # steps, seconds
    with ThreadPoolExecutor(cores) as pool:
        turns = {'batched': _batched(environment), 'bare': _bare(task, pool, cores)}
        for turn in turns.values():
            turn(_SLICE_S)  # first calls allocate
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            for name, turn in turns.items():
                start = time.perf_counter()
                steps = turn(_SLICE_S)
                totals[name] += steps, time.perf_counter() - start
    environment.close()
    value, reference = (steps / spent for steps, spent in totals.values())
    return {
        'bench': 'sim',
        'metric': f'{TASK} physics steps/s, {num_envs} environments, {cores} cores',
        'value': value,
        'unit': '1/s',
        'reference': reference,
        'ratio': value / reference,
    }


def _batched(environment: ArmEnvironment) -> Callable[[float], int]:
    """Return a function that steps the environment for some seconds -> physics steps taken."""
    contract, task = environment.contract, environment.task
    shape = (64, environment.num_envs, contract.action_size)
    rng = np.random.default_rng(0)
    actions = rng.uniform(contract.action_lower, contract.action_upper, shape)
    endless = itertools.cycle(actions.astype(np.float32))
    environment.reset()

    def turn(seconds: float) -> int:
        moved, until = 0, time.perf_counter() + seconds
        while time.perf_counter() < until:
            step = environment.step(next(endless))
            moved += int((step.step_type != StepType.FIRST).sum())  # FIRST: no physics
        return moved * task.ticks * task.substeps

    return turn


def _bare(task: ReachTask, pool: ThreadPoolExecutor, cores: int) -> Callable[[float], int]:
    """Return a function that calls mj_step for some seconds -> physics steps taken."""
    model, substeps, home = task.model(), task.ticks * task.substeps, task.robot.home_position

    def one(data: mujoco.MjData, seed: int, seconds: float) -> int:
        rng, steps, until = np.random.default_rng(seed), 0, time.perf_counter() + seconds
        commands = home + rng.uniform(-0.3, 0.3, (64, model.nu))
        while time.perf_counter() < until:
            for command in commands:
                data.ctrl[:] = command
                mujoco.mj_step(model, data, substeps)
            steps += len(commands) * substeps
        return steps

    everyone = [mujoco.MjData(model) for _ in range(cores)]
    for data in everyone:
        data.qpos[:] = home

    def turn(seconds: float) -> int:
        return sum(pool.map(one, everyone, range(cores), [seconds] * cores))

    return turn
