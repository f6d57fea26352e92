"""Physics steps per second of the arm tasks, batched, against bare mj_step on the same cores."""

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
from robot_rl.bench.turns import in_turns
from robot_rl.control.actions import gripper_width
from robot_rl.sim.arm import ArmEnvironment
from robot_rl.sim.environment import StepType
from robot_rl.sim.task import ArmTask
from robot_rl.sim.twin import Twin

SIZES = (16, 64)


def run(seconds: float = 48.0) -> Iterator[dict[str, Any]]:
    """Yield, for each arm task with 16 and 64 environments, its rate beside the bare rate.

    Both run in turns of a quarter of a second, on every core. Bare: one thread a core, each
    calling mj_step(model, data, nstep = one decision's substeps) on its own MjData of the same
    model. It goes through an episode of the environment with the commands that were given there,
    so that as much touches as in the environment; no observation, reward, limits or drawn start.
    """
    cases = list(itertools.product(registry.arm_task_names(), SIZES))
    share = seconds / len(cases)
    for name, num_envs in cases:
        yield _compare(registry.make_task(name), num_envs, share)


def _compare(task: ArmTask, num_envs: int, seconds: float) -> dict[str, Any]:
    environment = ArmEnvironment(task, num_envs)
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as pool:
        turns = {'batched': _batched(environment), 'bare': _bare(task, pool, cores)}
        rates = in_turns(turns, seconds)
    environment.close()
    value, reference = rates['batched'], rates['bare']
    return {
        'bench': 'sim',
        'metric': f'{task.name} physics steps/s, {num_envs} environments, {cores} cores',
        'value': value,
        'unit': '1/s',
        'reference': reference,
        'ratio': value / reference,
    }


def _random_actions(environment: ArmEnvironment) -> np.ndarray:
    """Return actions [64, N, A], uniform within the contract's bounds."""
    contract = environment.contract
    shape = (64, environment.num_envs, contract.action_size)
    rng = np.random.default_rng(0)
    actions = rng.uniform(contract.action_lower, contract.action_upper, shape)
    return actions.astype(np.float32)


def _batched(environment: ArmEnvironment) -> Callable[[float], int]:
    """Return a function that steps the environment for some seconds -> physics steps taken."""
    task, endless = environment.task, itertools.cycle(_random_actions(environment))
    environment.reset()

    def turn(seconds: float) -> int:
        moved, until = 0, time.perf_counter() + seconds
        while time.perf_counter() < until:
            step = environment.step(next(endless))
            moved += int((step.step_type != StepType.FIRST).sum())  # FIRST: no physics
        return moved * task.ticks * task.substeps

    return turn


def _bare(task: ArmTask, pool: ThreadPoolExecutor, cores: int) -> Callable[[float], int]:
    """Return a function that calls mj_step for some seconds -> physics steps taken."""
    substeps, full = task.ticks * task.substeps, mujoco.mjtState.mjSTATE_INTEGRATION

    def one(twin: Twin, controls: np.ndarray, seconds: float) -> int:
        model, data = twin.model, twin.data
        start = np.empty(mujoco.mj_stateSize(model, full))
        mujoco.mj_getState(model, data, start, full)
        steps, until = 0, time.perf_counter() + seconds
        while time.perf_counter() < until:
            mujoco.mj_setState(model, data, start, full)
            for control in controls:
                data.ctrl[:] = control
                mujoco.mj_step(model, data, substeps)
            steps += len(controls) * substeps
        mujoco.mj_setState(model, data, start, full)
        return steps

    twins, controls = zip(*(_episode(task, seed) for seed in range(cores)), strict=True)

    def turn(seconds: float) -> int:
        return sum(pool.map(one, twins, controls, [seconds] * cores))

    return turn


def _episode(task: ArmTask, seed: int) -> tuple[Twin, np.ndarray]:
    """Return a twin where an episode starts, and what its actuators are told [T, nu] then."""
    environment, twin, controls = ArmEnvironment(task), Twin(task), []
    environment.reset([seed])
    endless = itertools.cycle(_random_actions(environment))
    for _ in range(task.max_steps):
        action = next(endless)
        environment.step(action)
        twin.set_command(environment.columns['command.position'][0])
        width = gripper_width(environment.contract, action[0], task.robot)
        if width is not None:
            twin.set_gripper(float(width))
        controls.append(twin.data.ctrl.copy())
    environment.close()
    twin.reset(seed)
    return twin, np.array(controls)
