"""The shipped policy on the twin, through ROS 2: what one sees a minute after installing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
from rich.console import Console

from robot_rl import registry
from robot_rl.demo.pipeline import TASK, pretrained_policy, print_table, record
from robot_rl.demo.twin import Batch
from robot_rl.evaluation.pictures import EpisodePictures
from robot_rl.imitation.data import judge
from robot_rl.sim.environment import HELD_OUT
from robot_rl.storage.store import Store


def run(folder: Path, episodes: int, console: Console) -> dict[str, Any]:
    """Run and record `episodes`, judge them, and write pictures of the first one."""
    task, store = registry.make_task(TASK), Store(folder / 'episodes')
    batch = Batch(str(pretrained_policy()), episodes, HELD_OUT, 'deployed')
    record([batch], store, folder / 'logs')
    judged = judge(store, task)
    rows = [
        [
            episode.header.id,
            'reached' if episode.header.success else 'missed',
            f'{1000 * task.final_distance(episode.columns):.1f} mm',
        ]
        for episode in judged
    ]
    print_table(console, ('episode', 'result', 'final distance'), rows)
    for number, picture in enumerate(EpisodePictures(task).of(judged[0].columns).values()):
        cv2.imwrite(str(folder / f'reach-{number}.png'), picture[..., ::-1])
    return {'episodes': len(judged), 'reached': sum(bool(e.header.success) for e in judged)}
