"""Windows/s of a LeRobotDataset read by its own loader. A program for a Python that has lerobot.

It imports nothing of robot_rl, which need not be installed there:

    python storage_lerobot.py FOLDER

FOLDER holds the data set as FOLDER/dataset, or columns [M, ...] as <name>.npy, of which one with
videos is written first; and spec.json: {rate_hz, episode (rows of each), offsets {name: rows, from
the start of a window}, batch_size, workers, seconds}. It prints {"windows": 1/s}.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np


def main(folder: Path) -> None:
    """Read the data set for a while, and print how fast that was."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from torch.utils.data import DataLoader

    spec = json.loads((folder / 'spec.json').read_text())
    rate_hz, root = spec['rate_hz'], folder / 'dataset'
    if not root.exists():
        columns = {path.stem: np.load(path) for path in folder.glob('*.npy')}
        _write(root, columns, rate_hz, spec['episode'])
    windows = {name: [row / rate_hz for row in rows] for name, rows in spec['offsets'].items()}
    dataset = LeRobotDataset('bench', root=root, delta_timestamps=windows, return_uint8=True)
    loader = DataLoader(
        dataset, batch_size=spec['batch_size'], shuffle=True, num_workers=spec['workers']
    )
    read, start = 0, 0.0
    while not start or time.perf_counter() < start + spec['seconds']:
        for batch in loader:
            if not start:  # the workers are there
                start = time.perf_counter()
                continue
            read += len(batch['action'])
            if time.perf_counter() >= start + spec['seconds']:
                break
    print(json.dumps({'windows': read / (time.perf_counter() - start)}))


def _write(root: Path, columns: dict[str, np.ndarray], rate_hz: int, episode: int) -> None:
    """Write columns as episodes of so many rows, their pictures as videos."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {name: _feature(column) for name, column in columns.items()}
    writer = LeRobotDataset.create('bench', rate_hz, features, root=root, use_videos=True)
    for row in range(len(columns['action'])):
        writer.add_frame({name: c[row] for name, c in columns.items()} | {'task': 'bench'})
        if (row + 1) % episode == 0:
            writer.save_episode()
    writer.finalize()


def _feature(column: np.ndarray) -> dict:
    if column.dtype == np.uint8:
        names = ['height', 'width', 'channels']
        return {'dtype': 'video', 'shape': column.shape[1:], 'names': names}
    return {'dtype': 'float32', 'shape': column.shape[1:], 'names': None}


if __name__ == '__main__':
    main(Path(sys.argv[1]))
