"""Latency from sensor to command, and CPU, of real nodes beside an empty chain of processes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from robot_rl import registry, resources
from robot_rl.nodes.supervisor import Supervisor
from robot_rl.policies.d4pg import D4PGConfig, D4PGLearner
from robot_rl.policies.export import export_onnx
from robot_rl.specs import PolicyCard
from robot_rl.specs.base import load_yaml
from robot_rl.storage.episode import EpisodeReader
from robot_rl.storage.streams import StreamMessage

TASK = 'ur5e_reach'
# The real chain, and the link of the empty one that each process is compared with.
CHAIN = {
    'sim_robot': 'source',
    'policy': 'policy',
    'command_guard': 'guard',
    'episode_recorder': 'sink',
}
APPLIED, TO_ARM = '/command_guard/applied', '/forward_position_controller/commands'
COMMAND, ACTION = '/policy/command', '/policy/action'


def run(seconds: float = 20.0) -> Iterator[dict[str, Any]]:
    """Yield latencies of a 20 Hz policy, then the CPU of every process at 50 Hz.

    A D4PG policy of the default size moves the twin through guard and recorder; the empty chain
    runs at the same time, and so under the same load. Latency is from the stamp of a joint_states
    sample to the arrival of the first message that reflects it.
    """
    with tempfile.TemporaryDirectory() as folder:
        latencies, empty, _ = _measure(20.0, seconds / 2, Path(folder, '20'))
        for name, values in latencies.items():
            for statistic, percent in (('p50', 50), ('p99', 99), ('max', 100)):
                value, reference = np.percentile(values, percent), np.percentile(empty, percent)
                yield _row(f'latency_{name}_{statistic}', 'ms', value * 1e3, reference * 1e3)
        _, _, shares = _measure(50.0, seconds / 2, Path(folder, '50'))
        for name, role in CHAIN.items():
            value, reference = shares[name] * 100, shares[f'echo_{role}'] * 100
            yield _row(f'cpu_{name}_50hz', '% of a core', value, reference)


def _row(metric: str, unit: str, value: float, reference: float) -> dict[str, Any]:
    return {
        'bench': 'deploy',
        'metric': metric,
        'value': round(value, 3),
        'unit': unit,
        'reference': round(reference, 3),
        'ratio': round(value / reference, 3),
    }


def _measure(
    rate_hz: float, seconds: float, folder: Path
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, float]]:
    """Run one episode; return latencies [s] by topic, those of the chain, and CPU shares."""
    folder.mkdir(parents=True)
    task, policy = _task(rate_hz, folder), folder / 'policy.onnx'
    contract = registry.make_task(task).contract()
    learner = D4PGLearner(contract, D4PGConfig())
    export_onnx(learner.policy, PolicyCard(id='bench', contract=contract), policy)
    with Supervisor(folder / 'logs') as supervisor:
        for role in CHAIN.values():
            supervisor.start('echo', {'role': role}, name=f'echo_{role}')
        supervisor.start('sim_robot', {'task': task})
        supervisor.start('policy', {'policy': str(policy)})
        supervisor.start('command_guard')
        supervisor.start('episode_recorder', {'root': str(folder / 'episodes')})
        supervisor.wait_ready(60)
        pids = {name: child.pid for name, child in supervisor.children.items()}
        steps = max(round(seconds * rate_hz), 10)
        supervisor.start('session', {'task': task, 'policy': str(policy), 'max_steps': steps})
        while not list(folder.glob('episodes/*.partial')):  # until the episode is being prepared
            supervisor.check()
            time.sleep(0.05)
        before, start = _cpu_seconds(pids), time.monotonic()
        (episode,) = supervisor.follow('session', seconds + 60)
        after, elapsed = _cpu_seconds(pids), time.monotonic() - start
        supervisor.children['echo_sink'].terminate()
        (chain,) = supervisor.follow('echo_sink', 10)
    shares = {name: (after[name] - before[name]) / elapsed for name in pids}
    return _latencies(EpisodeReader(episode['path'])), np.array(chain['latency_s']), shares


def _task(rate_hz: float, folder: Path) -> str:
    """Write the task with another control rate; return its path."""
    path = folder / 'task.yaml'
    task = load_yaml(resources.find('config/tasks', TASK)) | {'rate_hz': rate_hz}
    path.write_text(yaml.safe_dump(task))
    return str(path)


def _cpu_seconds(pids: dict[str, int]) -> dict[str, float]:
    """Return the processor time that each process has had (user and system; proc(5))."""
    used = {}
    for name, pid in pids.items():
        fields = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
        used[name] = (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
    return used


def _latencies(episode: EpisodeReader) -> dict[str, np.ndarray]:
    """Return, per topic, how long after its stamp each decision's first message arrived [s].

    The command to the arm has no stamp: the guard publishes it just before it says what it was.
    """
    first: dict[str, dict[int, StreamMessage]] = {ACTION: {}, COMMAND: {}, APPLIED: {}}
    to_arm = []
    for item in episode.messages((*first, TO_ARM)):
        if item.topic == TO_ARM:
            to_arm.append((item.publish_time_ns, item.log_time_ns))
        else:
            stamp = item.message.header.stamp
            first[item.topic].setdefault(stamp.sec * 1_000_000_000 + stamp.nanosec, item)
    published, arrived = np.array(sorted(to_arm)).T
    found: dict[str, list[int]] = {'command': [], 'applied': [], 'to_arm': []}
    for stamp_ns in first[ACTION].keys() & first[COMMAND].keys() & first[APPLIED].keys():
        applied = first[APPLIED][stamp_ns]
        before = np.searchsorted(published, applied.publish_time_ns) - 1
        found['command'].append(first[COMMAND][stamp_ns].log_time_ns - stamp_ns)
        found['applied'].append(applied.log_time_ns - stamp_ns)
        found['to_arm'].append(arrived[before] - stamp_ns)
    return {name: np.array(values) * 1e-9 for name, values in found.items()}
