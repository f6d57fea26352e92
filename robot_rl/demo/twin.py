"""Episodes on the twin through real ROS 2 nodes, and what their recordings say of the loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robot_rl.nodes.supervisor import Supervisor
from robot_rl.storage.episode import EpisodeHeader
from robot_rl.storage.samples import stamp_ns
from robot_rl.storage.store import Store

_ACTION, _APPLIED = '/policy/action', '/command_guard/applied'


class Batch(NamedTuple):
    """Episodes with one policy: its file or built-in name, how many, the first seed, a tag."""

    policy: str
    episodes: int
    first_seed: int
    tag: str


def run_batch(batch: Batch, task: str, store: Path, logs: Path) -> Iterator[dict[str, Any]]:
    """Start the twin's nodes, run the batch, and yield one line for each ended episode.

    The nodes are gone when the iteration ends, however it ends. Raises NodeFailure where a node
    dies or stands still.
    """
    with Supervisor(logs / batch.tag) as supervisor:
        supervisor.start('sim_robot', {'task': task})
        supervisor.start('command_guard')
        supervisor.start('episode_recorder', {'root': str(store)})
        supervisor.start(
            'policy', {'policy': batch.policy, 'task': task, 'seed': batch.first_seed}
        )
        supervisor.start(
            'session',
            {
                'task': task,
                'policy': batch.policy,
                'episodes': batch.episodes,
                'first_seed': batch.first_seed,
                'tags': [batch.tag],
            },
        )
        yield from supervisor.follow('session', timeout_s=60.0)


def loop_figures(store: Store, headers: Sequence[EpisodeHeader]) -> dict[str, Any]:
    """Return rate and latency of the control loop, and the messages recorded and lost.

    The latency is from the stamp of the joint_states sample that an action answers to the first
    command to the arm that answers it, after policy and guard.
    """
    intervals, latencies = [], []
    for header in headers:
        ticks, first = [], {}
        for item in store.open(header.id).messages({_ACTION, _APPLIED}):
            if item.topic == _ACTION:
                ticks.append((item.publish_time_ns, stamp_ns(item)))
            else:
                first.setdefault(stamp_ns(item), item.publish_time_ns)
        intervals += np.diff([published for published, _ in ticks]).tolist()
        latencies += [first[stamp] - stamp for _, stamp in ticks if stamp in first]
    topics = [topic for header in headers for topic in header.topics.values()]
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e-6
    return {
        'rate_hz': 1e9 / float(np.mean(intervals)),
        'longest_interval_ms': float(np.max(intervals)) * 1e-6,
        'latency_ms': {'p50': float(p50), 'p99': float(p99)},
        'messages': sum(topic.count for topic in topics),
        'lost': sum(topic.lost for topic in topics),
    }
