"""Latency from sensor to command, punctuality and CPU of real nodes, beside an empty chain."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from robot_rl import registry, resources
from robot_rl.bench.processes import cpu_shares, last_words
from robot_rl.nodes.supervisor import Supervisor
from robot_rl.policies.d4pg import D4PGConfig, D4PGLearner
from robot_rl.policies.export import export_onnx
from robot_rl.specs import PolicyCard
from robot_rl.specs.base import load_yaml
from robot_rl.storage.episode import EpisodeReader
from robot_rl.storage.samples import stamp_ns

TASK, ROBOT = 'ur5e_reach', 'ur5e'
RATES_HZ = (50, 100, 250, 500)
# The slowest that an arm is commanded and measured at, whatever the policy's rate.
SLOWEST_ARM_HZ = 100
# The real chain, and the link of the empty one that each process is compared with. Samples come
# from the driver, for which the twin stands, and commands go there.
CHAIN = {
    'sim_robot': 'source',
    'policy': 'policy',
    'command_guard': 'guard',
    'episode_recorder': 'sink',
}
APPLIED = '/command_guard/applied'
# The twin stands for a driver, whose controller_manager runs so.
DRIVER_PRIORITY = 50
# A period that lasts so many times as long as it should is late.
LATE = 1.5
# What a graph does in its first moments counts for nothing.
WARM_UP_S = 1.0
TURNS = 4


class EmptyChain(NamedTuple):
    """Stamp to arrival where it came from [n] [s], and the share of a core of each link."""

    latency: np.ndarray
    cpu: dict[str, float]


class RealChain(NamedTuple):
    """What became of the samples that a policy took [n] [s], and how punctual the ticks were.

    `latency` is from a sample's stamp to the arrival, at the arm's driver, of the first command
    that reflects it, less how long sample and command waited for the next tick of policy and
    guard: these are `policy_wait` and `guard_wait`. `late`: the share of periods that were, by
    process.
    """

    latency: np.ndarray
    policy_wait: np.ndarray
    guard_wait: np.ndarray
    late: dict[str, float]
    cpu: dict[str, float]


def run(seconds: float = 20.0, rates_hz: tuple[int, ...] = RATES_HZ) -> Iterator[dict[str, Any]]:
    """Yield what the real chain does at each rate of the policy, and the empty one beside it.

    A D4PG policy of the default size moves the twin through guard and recorder. The two chains
    take turns, since at high rates there is not the room for both on a small machine, and several
    times, since one start of the same processes is up to twice as quick as another. Each has half
    of `seconds` at each rate.
    """
    for rate_hz in rates_hz:
        each, real, empty = seconds / 2 / TURNS, [], []
        with tempfile.TemporaryDirectory() as folder:
            for turn in range(TURNS):
                empty.append(_empty(rate_hz, each, Path(folder, f'empty-{turn}')))
                real.append(_real(rate_hz, each, Path(folder, f'real-{turn}')))
        yield from _rows(rate_hz, RealChain(*_pooled(real)), EmptyChain(*_pooled(empty)))


def _pooled(turns: Sequence[tuple]) -> Iterator[np.ndarray | dict[str, float]]:
    """Yield each field of one chain's turns: values one after another, the mean of shares."""
    for fields in zip(*turns, strict=True):
        if isinstance(fields[0], dict):
            yield {name: float(np.mean([share[name] for share in fields])) for name in fields[0]}
        else:
            yield np.concatenate(fields)


def _rows(rate_hz: int, real: RealChain, empty: EmptyChain) -> Iterator[dict[str, Any]]:
    for statistic, percent in (('p50', 50), ('p99', 99)):
        value, reference = (np.percentile(x.latency, percent) for x in (real, empty))
        yield _row(f'latency_{rate_hz}hz_{statistic}', 'ms', value * 1e3, reference * 1e3)
    ticking = _ticking(rate_hz)
    # All of it, in which the two may wait for a tick for as long as a period each.
    whole = real.latency + real.policy_wait + real.guard_wait
    periods = sum(1.0 / hz for hz in ticking.values())
    for statistic, percent in (('p50', 50), ('p99', 99)):
        value = np.percentile(whole, percent)
        yield _row(f'with_waits_{rate_hz}hz_{statistic}', 'ms', value * 1e3, periods * 1e3)
    for who, node, wait in (
        ('policy', 'policy', real.policy_wait),
        ('guard', 'command_guard', real.guard_wait),
    ):
        hz = ticking[node]
        yield _row(f'{who}_timer_wait_{rate_hz}hz_p50', 'ms', np.median(wait) * 1e3, 1e3 / hz)
        late, timer = real.late[node] * 100, real.late[_timer(hz)] * 100
        yield _row(f'{who}_late_{rate_hz}hz', '% of periods', late, timer)
    for name, link in CHAIN.items():
        value, reference = real.cpu[link] * 100, empty.cpu[link] * 100
        yield _row(f'cpu_{name}_{rate_hz}hz', '% of a core', value, reference)


def _row(metric: str, unit: str, value: float, reference: float) -> dict[str, Any]:
    """Return a row; where nothing is what it is compared with, there is no ratio."""
    return {
        'bench': 'deploy',
        'metric': metric,
        'value': round(float(value), 3),
        'unit': unit,
        'reference': round(float(reference), 3),
        'ratio': round(float(value / reference), 3) if reference else None,
    }


def _empty(rate_hz: int, seconds: float, folder: Path) -> EmptyChain:
    """Run the empty chain for a while."""
    with Supervisor(folder) as supervisor:
        for role in reversed(CHAIN.values()):  # the source last
            supervisor.start('echo', {'role': role, 'rate_hz': float(rate_hz)}, name=role)
        _start_timers(supervisor, rate_hz)
        supervisor.wait_ready(60)
        time.sleep(WARM_UP_S)
        with cpu_shares(supervisor, {role: role for role in CHAIN.values()}) as cpu:
            time.sleep(seconds)
        latency = np.array(last_words(supervisor, 'source')['latency_s'])
    return EmptyChain(latency[round(WARM_UP_S * rate_hz) :], cpu)


def _real(rate_hz: int, seconds: float, folder: Path) -> RealChain:
    """Run one episode of so many seconds."""
    folder.mkdir(parents=True)
    robot, task, policy = _files(rate_hz, folder)
    steps = round((WARM_UP_S + seconds) * rate_hz)
    with Supervisor(folder / 'logs') as supervisor:
        twin = {'task': task, 'realtime_priority': DRIVER_PRIORITY}
        supervisor.start('traced_twin', twin, name='sim_robot')
        supervisor.start('traced_policy', {'policy': policy, 'robot': robot}, name='policy')
        supervisor.start('traced_guard', {'robot': robot}, name='command_guard')
        recorder = {'root': str(folder / 'episodes'), 'robot': robot}
        supervisor.start('episode_recorder', recorder)
        timers = _start_timers(supervisor, rate_hz)
        supervisor.wait_ready(60)
        supervisor.start('session', {'task': task, 'policy': policy, 'max_steps': steps})
        while not list(folder.glob('episodes/*.partial')):  # until the episode is being prepared
            supervisor.check()
            time.sleep(0.05)
        with cpu_shares(supervisor, CHAIN) as cpu:
            (episode,) = supervisor.follow('session', seconds + 60)
        ending = ('policy', 'command_guard', *timers, 'sim_robot')
        traces = {name: last_words(supervisor, name) for name in ending}
    return _read(traces, EpisodeReader(episode['path']), rate_hz, cpu)


def _arm_hz(rate_hz: int) -> float:
    return float(max(rate_hz, SLOWEST_ARM_HZ))


def _ticking(rate_hz: int) -> dict[str, float]:
    """Return how often the two nodes tick that decide when a command goes out [Hz]."""
    return {'policy': float(rate_hz), 'command_guard': _arm_hz(rate_hz)}


def _start_timers(supervisor: Supervisor, rate_hz: int) -> list[str]:
    """Start the bare timers, which both chains have beside them, and return their names."""
    timers = {_timer(hz): hz for hz in _ticking(rate_hz).values()}
    for name, hz in timers.items():
        supervisor.start('echo', {'role': 'timer', 'rate_hz': hz}, name=name)
    return list(timers)


def _timer(hz: float) -> str:
    """Return the name of the bare timer of this rate, beside which a node's ticks stand."""
    return f'timer_{hz:g}hz'


def _files(rate_hz: int, folder: Path) -> tuple[str, str, str]:
    """Write an arm, a task and a policy for this control rate; return their paths."""
    robot, task, policy = (folder / name for name in ('arm.yaml', 'task.yaml', 'policy.onnx'))
    spec = load_yaml(resources.find('config/robots', ROBOT))
    spec['joint_states_rate_hz'] = spec['controller']['rate_hz'] = _arm_hz(rate_hz)
    robot.write_text(yaml.safe_dump(spec))
    rate = {'rate_hz': float(rate_hz), 'robot': str(robot)}
    task.write_text(yaml.safe_dump(load_yaml(resources.find('config/tasks', TASK)) | rate))
    contract = registry.make_task(str(task)).contract()
    learner = D4PGLearner(contract, D4PGConfig())
    export_onnx(learner.policy, PolicyCard(id='bench', contract=contract), policy)
    return str(robot), str(task), str(policy)


def _read(
    traces: Mapping[str, Any], episode: EpisodeReader, rate_hz: int, cpu: dict[str, float]
) -> RealChain:
    """Follow each sample from its stamp to the arm, without the moments of the start."""
    came = dict(traces['sim_robot']['commands'])
    ticks = {n: np.array(trace['ticks_ns']) for n, trace in traces.items() if 'ticks_ns' in trace}
    begins = ticks['policy'][0] + round(WARM_UP_S * 1e9)
    ends = ticks['policy'][-1]
    samples, commands = (
        {stamp: times for stamp, *times in traces[name]['taken']}
        for name in ('policy', 'command_guard')
    )
    latency, policy_wait, guard_wait = [], [], []
    for stamp, arrived in _arrivals(episode, came).items():
        if stamp not in samples or stamp not in commands or samples[stamp][1] < begins:
            continue
        (came, began), (command_came, guard_began) = samples[stamp], commands[stamp]
        latency.append((came - stamp) + (command_came - began) + (arrived - guard_began))
        policy_wait.append(began - came)
        guard_wait.append(guard_began - command_came)
    late = {}
    rates = _ticking(rate_hz)
    for name, hz in (rates | {_timer(hz): hz for hz in rates.values()}).items():
        times = ticks[name]
        periods = np.diff(times[(times >= begins) & (times <= ends)])
        late[name] = float((periods > LATE * 1e9 / hz).mean())
    return RealChain(*(np.array(x) * 1e-9 for x in (latency, policy_wait, guard_wait)), late, cpu)


def _arrivals(episode: EpisodeReader, came: Mapping[int, int]) -> dict[int, int]:
    """Return when the first command that reflects a sample came to the arm, by its stamp [ns].

    `came`: when each command did, by when it was published. It has no stamp: the guard publishes
    it just before it says what it was.
    """
    applied: dict[int, int] = {}
    for item in episode.messages((APPLIED,)):
        applied.setdefault(stamp_ns(item), item.publish_time_ns)
    published = np.array(sorted(came))
    before = np.searchsorted(published, list(applied.values())) - 1
    return {s: came[at] for s, at in zip(applied, published[before].tolist(), strict=True)}
