"""Windows/s of a LeRobotDataset read by its own loader. A program for a Python that has lerobot.

It imports nothing of robot_rl, which need not be installed there:

    python storage_lerobot.py FOLDER

FOLDER holds columns [M, ...] as <name>.npy, and spec.json: {rate_hz, episode (rows of each),
offsets {name: rows, from the start of a window}, form ('low' | 'image' | 'video'), batch_size,
workers, seconds}. It writes the data set into FOLDER/dataset and prints {"windows": 1/s}.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np


def main(folder: Path) -> None:
    """Write the data set, read it for a while, and print how fast that was."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from torch.utils.data import DataLoader

    spec = json.loads((folder / 'spec.json').read_text())
    columns = {path.stem: np.load(path) for path in folder.glob('*.npy')}
    features = {name: _feature(column, spec['form']) for name, column in columns.items()}
    rate_hz, root = spec['rate_hz'], folder / 'dataset'
    writer = LeRobotDataset.create(
        'bench', rate_hz, features, root=root, use_videos=spec['form'] == 'video'
    )
    for row in range(len(columns['action'])):
        writer.add_frame({name: c[row] for name, c in columns.items()} | {'task': 'bench'})
        if (row + 1) % spec['episode'] == 0:
            writer.save_episode()
    writer.finalize()
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


def _feature(column: np.ndarray, form: str) -> dict:
    if column.dtype == np.uint8:
        names = ['height', 'width', 'channels']
        return {'dtype': form, 'shape': column.shape[1:], 'names': names}
    return {'dtype': 'float32', 'shape': column.shape[1:], 'names': None}


if __name__ == '__main__':
    main(Path(sys.argv[1]))
