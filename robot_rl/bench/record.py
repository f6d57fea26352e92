"""What the recorder takes and loses, on two cores, at the rates of a real arm with two cameras."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from robot_rl import resources
from robot_rl.bench.processes import cpu_shares, last_words
from robot_rl.nodes.supervisor import Supervisor
from robot_rl.specs.base import load_yaml
from robot_rl.storage.episode import EpisodeReader
from robot_rl.storage.streams import TopicReport

ROBOT, TASK = 'ur5e', 'ur5e/reach'
ARM_HZ, CAMERA_HZ, SIZE = 500.0, 30.0, {'width': 640, 'height': 480}
CAMERAS = 'front', 'wrist'
GENERATORS = 'arm', *CAMERAS
CORES = 2


def run(seconds: float = 600.0) -> Iterator[dict[str, Any]]:
    """Record one episode of so many seconds and yield what became of it.

    Joint states, the commands as the guard tells them and as the arm hears them come at 500 Hz,
    and two cameras' JPEGs at 30 Hz, from processes of their own; the real session conducts it.
    All run on two cores, where there are more.
    """
    with _cores(CORES), tempfile.TemporaryDirectory(prefix='robot-rl-bench-') as folder:
        sent, report, size, cpu = _record(seconds, Path(folder))
    total, received = sum(sent.values()), sum(report[topic].count for topic in sent)
    lost = sum(report[topic].lost for topic in sent)
    yield _row('messages_sent', total, 'messages')
    yield _row('messages_received', received, 'messages', total)
    yield _row('messages_lost', lost, 'by publication sequence number')
    yield _row('written', size / 1e6 / seconds, 'MB/s')
    yield _row('cpu_episode_recorder', cpu['episode_recorder'] * 100, '% of a core')
    yield _row('cpu_generators', sum(cpu[name] for name in GENERATORS) * 100, '% of a core')


def _record(
    seconds: float, folder: Path
) -> tuple[dict[str, int], dict[str, TopicReport], int, dict[str, float]]:
    """Return what was sent, what came, how much was written [bytes], and shares of a core."""
    robot = folder / 'arm.yaml'
    robot.write_text(yaml.safe_dump(_robot()))
    with Supervisor(folder / 'logs') as supervisor:
        topics = [f'{camera}/image_raw/compressed' for camera in CAMERAS]
        about = {'root': str(folder / 'episodes'), 'robot': str(robot), 'topics': topics}
        supervisor.start('episode_recorder', about)
        for name in GENERATORS:
            role = 'arm' if name == 'arm' else 'camera'
            given = {'robot': str(robot), 'role': role, 'seconds': float(seconds)}
            given |= {} if name == 'arm' else {'camera': name}
            supervisor.start('generator', given, name, ['-r', f'__node:={name}'])
        supervisor.wait_ready(60)
        about = {'task': TASK, 'source': 'teleop', 'max_steps': 10**6}
        about |= {'participants': ['episode_recorder', *GENERATORS]}
        supervisor.start('session', about)
        while not list(folder.glob('episodes/*.partial')):  # until the episode is being prepared
            supervisor.check()
            time.sleep(0.05)
        names = {name: name for name in ('episode_recorder', *GENERATORS)}
        with cpu_shares(supervisor, names) as cpu:
            (line,) = supervisor.follow('session', seconds + 60)
        sent = {}
        for name in GENERATORS:
            sent |= last_words(supervisor, name)['sent']
    episode = EpisodeReader(line['path'])
    return sent, episode.header.topics, episode.streams_path.stat().st_size, cpu


def _robot() -> dict[str, Any]:
    """Return an arm with the rates of this benchmark and two cameras, as a file has it."""
    spec = load_yaml(resources.find('config/robots', ROBOT))
    spec['joint_states_rate_hz'] = spec['controller']['rate_hz'] = ARM_HZ
    spec['cameras'] = [{'name': name, 'rate_hz': CAMERA_HZ, **SIZE} for name in CAMERAS]
    return spec


@contextlib.contextmanager
def _cores(number: int) -> Iterator[None]:
    """Keep this process, and those that it starts, on so many cores."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:number])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _row(metric: str, value: float, unit: str, reference: float | None = None) -> dict[str, Any]:
    return {
        'bench': 'record',
        'metric': metric,
        'value': round(value, 3),
        'unit': unit,
        'reference': reference and round(reference, 3),
        'ratio': reference and round(value / reference, 6),
    }
