"""Updates/s of D4PG, MPO and DMPO on one core, beside the time of their own matrix products."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from robot_rl import registry
from robot_rl.bench import learner_peers
from robot_rl.bench.learner_floor import products
from robot_rl.errors import RobotRLError
from robot_rl.policies import compiler
from robot_rl.policies.actor_critic import ActorCritic
from robot_rl.policies.products import fast_products
from robot_rl.specs import ActionField, Contract, ObservationField
from robot_rl.storage.priorities import Priorities
from robot_rl.storage.sampler import WindowSampler
from robot_rl.storage.steps import (
    ACTION,
    DISCOUNT,
    LAST,
    OBSERVATION,
    REWARD,
    STATE,
    STEP_TYPE,
    Steps,
)
from robot_rl.training.device import DeviceColumns

AGENTS = ('d4pg', 'mpo', 'dmpo')
# A middling task of the control suite, walker: 24 numbers in, 6 out.
_OBSERVATION, _ACTION = 24, 6
_RECURRENT = {'memory': 128, 'batch_size': 32, 'sequence_length': 20, 'burn_in': 10}
_ROWS = 100_000
# So short that all sides see the same load of the machine, so long that a clock's tick is nothing.
_SLICE_S = 0.1


def run(
    seconds: float = 20.0,
    agents: Sequence[str] = AGENTS,
    peers: bool = False,
    device: str = 'cpu',
    settings: Mapping[str, Any] = {},
) -> Iterator[dict[str, Any]]:
    """Yield rates of updates against those of their products, and the share of the sampling.

    Each agent, and the peers, are measured for about `seconds`, after what torch.compile takes.
    Sides that are compared alternate in slices of a tenth of a second, and each keeps the median
    of its slices, by _seconds_of. `settings` change the agents' configs.

    Raises RobotRLError where there is no GPU, or no peer, and one is asked for.
    """
    if device != 'cpu' and not torch.cuda.is_available():
        raise RobotRLError(
            f'bench learner --device {device}: torch finds no GPU here; cpu is right'
        )
    if peers:
        learner_peers.require()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        execution = 'fused' if compiler.missing() else 'compiled'
        for name in agents:
            yield from _feed_forward(name, execution, settings, seconds / 2, device)
            yield from _recurrent(name, execution, _RECURRENT | settings, seconds / 2, device)
        if peers:
            yield from _beside_peers(execution, settings, seconds, device)
    finally:
        torch.set_num_threads(threads)


def _feed_forward(
    name: str, best: str, settings: Mapping[str, Any], seconds: float, device: str
) -> Iterator[dict[str, Any]]:
    learners = {
        execution: _learner(name, execution, settings, device)
        for execution in (best, 'fused', 'plain')
    }
    sampler, prioritised = (_sampler(learners[best], by_priority) for by_priority in (False, True))
    batch_size = learners[best].config.batch_size
    surprise = np.random.default_rng(0).uniform(0, 1, batch_size)

    def draw_and_give_back() -> None:
        place = prioritised.transitions(batch_size).place
        prioritised.update_priorities(place, surprise)

    draws = {
        'sampling': lambda: sampler.transitions(batch_size),
        'prioritised_sampling': draw_and_give_back,
    }
    took = _measured(learners, best, sampler.transitions(batch_size), draws, seconds, device)
    row = functools.partial(_row, device=device)
    yield row(f'{name}_updates', 1 / took[best], '1/s', 1 / took['floor'], execution=best)
    yield row(f'{name}_floor', 1 / took['floor'], '1/s', 1 / took['usual_floor'])
    for execution in ('fused', 'plain'):
        value, reference = 1 / took[execution], 1 / took[best]
        yield row(f'{name}_{execution}_updates', value, '1/s', reference, execution=execution)
    # Of the reference, which an update without anything but its products would reach.
    value, reference = took['plain'] / took[best], took['plain'] / took['floor']
    yield row(f'{name}_speedup', value, 'x', reference, execution=best)
    for draw in draws:
        yield row(f'{name}_{draw}', took[draw] * 1e3, 'ms', took[best] * 1e3)


def _recurrent(
    name: str, best: str, settings: Mapping[str, Any], seconds: float, device: str
) -> Iterator[dict[str, Any]]:
    learner = _learner(name, best, settings, device)
    config, sampler = learner.config, _sampler(learner)

    def draw() -> Any:
        return sampler.sequences(config.batch_size, config.sequence_length, config.burn_in)

    took = _measured({best: learner}, best, draw(), {'sampling': draw}, seconds, device)
    row = functools.partial(_row, device=device)
    yield row(f'{name}_lstm_updates', 1 / took[best], '1/s', 1 / took['floor'], execution=best)
    yield row(f'{name}_lstm_sampling', took['sampling'] * 1e3, 'ms', took[best] * 1e3)


def _beside_peers(
    execution: str, settings: Mapping[str, Any], seconds: float, device: str
) -> Iterator[dict[str, Any]]:
    """Yield the peers' rates beside D4PG's, which draws a batch for each update as they do."""
    learner = _learner('d4pg', execution, settings, device)
    config, sampler = learner.config, _sampler(learner)
    peers = learner_peers.sides(config, _OBSERVATION, _ACTION, device)
    sides = {'d4pg': lambda: learner.update(sampler.transitions(config.batch_size))} | peers
    took = _interleaved(sides, seconds, device)
    for name in peers:
        value, reference = learner_peers.STEPS / took[name], 1 / took['d4pg']
        yield _row(f'{name}_updates', value, '1/s', reference, device=device)


def _row(metric: str, value: float, unit: str, reference: float, **more: str) -> dict[str, Any]:
    numbers = {'value': value, 'reference': reference, 'ratio': value / reference}
    numbers = {key: float(f'{number:.5g}') for key, number in numbers.items()}
    return {'bench': 'learner', 'metric': metric, 'unit': unit} | numbers | more


def _measured(
    learners: Mapping[str, ActorCritic],
    best: str,
    batch: Any,
    draws: Mapping[str, Callable[[], Any]],
    seconds: float,
    device: str,
) -> dict[str, float]:
    """Return the seconds of an update in each execution, of the floor, and of the draws.

    The floor multiplies as the update does, the usual floor as torch does by itself.
    """
    updates = {name: functools.partial(each.update, batch) for name, each in learners.items()}
    made = products(learners[best].config, _OBSERVATION, _ACTION, device)

    def usual_floor() -> None:
        for left, right, out in made:
            torch.mm(left, right, out=out)

    fast = fast_products(learners[best].device)

    def floor() -> None:
        with fast():
            usual_floor()

    floors = {'floor': floor, 'usual_floor': usual_floor}
    return _interleaved(updates | floors | draws, seconds, device)


def _interleaved(
    sides: Mapping[str, Callable[[], Any]], seconds: float, device: str
) -> dict[str, float]:
    """Return the median seconds of one call of each side, measured in turns."""
    calls = {}
    for name, side in sides.items():
        _seconds_of(side, 3, device)  # first calls compile and allocate
        calls[name] = max(1, round(_SLICE_S / max(_seconds_of(side, 1, device), 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in sides}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 3:
        for name, side in sides.items():
            side()  # the caches are this side's own when the clock starts
            times[name].append(_seconds_of(side, calls[name], device) / calls[name])
    return {name: float(np.median(taken)) for name, taken in times.items()}


def _seconds_of(side: Callable[[], Any], calls: int, device: str) -> float:
    """Return how long `calls` calls take: with a GPU by the clock on the wall, else of a core.

    One thread that waits for nothing takes as long by either clock where it has a core for
    itself; where it shares one, that of the core does not count what others do.
    """
    clock, wait = time.process_time, lambda: None
    if device != 'cpu':
        clock, wait = time.perf_counter, torch.cuda.synchronize
    wait()
    start = clock()
    for _ in range(calls):
        side()
    wait()
    return clock() - start


def _learner(
    name: str, execution: str, settings: Mapping[str, Any], device: str = 'cpu'
) -> ActorCritic:
    contract = Contract(
        rate_hz=40,
        observation=[ObservationField(name='state', source='env.state', shape=(_OBSERVATION,))],
        action=[
            ActionField(
                name='action',
                kind='generic',
                names=[f'a{i}' for i in range(_ACTION)],
                lower=[-1.0] * _ACTION,
                upper=[1.0] * _ACTION,
            )
        ],
    )
    agent = registry.resolve('agent', name)
    return agent.learner(contract, agent.config(execution=execution, **settings), device=device)


def _sampler(learner: ActorCritic, by_priority: bool = False) -> WindowSampler:
    """Return a sampler over episodes of 1000 steps of noise."""
    rng = np.random.default_rng(0)
    kind = np.ones((1, _ROWS), np.int8)
    kind[:, ::1001], kind[:, 1000::1001] = 0, 2
    columns = {
        OBSERVATION + 'state': rng.standard_normal((1, _ROWS, _OBSERVATION), np.float32),
        ACTION: rng.uniform(-1, 1, (1, _ROWS, _ACTION)).astype(np.float32),
        REWARD: rng.uniform(0, 1, (1, _ROWS)).astype(np.float32),
        DISCOUNT: np.ones((1, _ROWS), np.float32),
        STEP_TYPE: kind,
    }
    for name, value in learner.behaviour(1).initial_state(1).items():
        columns[STATE + name] = rng.uniform(-1, 1, (1, _ROWS, *value.shape[1:])).astype(np.float32)
    priorities = None
    if by_priority:
        priorities = Priorities(_ROWS)
        priorities.set(np.arange(_ROWS), np.where(kind[0] == LAST, 0, rng.uniform(0, 1, _ROWS)))
    steps, config, take = Steps(columns), learner.config, None
    if learner.device.type != 'cpu':
        take = DeviceColumns(steps, learner.device).take
    return WindowSampler(steps, config.n_step, config.discount, priorities=priorities, take=take)
