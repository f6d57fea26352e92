"""What the next episode will take on the disk, from the last ones of its kind."""

import numpy as np

from robot_rl.storage.episode import read_header
from robot_rl.storage.recent import RecentSizes


def test_the_mean_is_of_the_last_episodes_of_the_kind(tmp_path, record_short):
    def record(number, messages, **fields):
        path = record_short(tmp_path, messages, id=f'e{number:02}', **fields)
        return path, (path / 'streams.mcap').stat().st_size

    none = RecentSizes(tmp_path / 'missing')
    assert none.mean('a', 'policy') is None
    sizes = [record(n, messages=5 + 30 * n, task='a')[1] for n in range(8)]
    record(8, 500, task='b')
    record(9, 500, task='a', source='teleop')
    (tmp_path / 'notes').mkdir()
    (tmp_path / 'x.partial').mkdir()
    recent = RecentSizes(tmp_path)
    assert recent.mean('a', 'policy') == np.mean(sizes[3:])
    assert recent.mean('c', 'policy') is None
    path, size = record(10, 700, task='a')
    recent.add(read_header(path))
    assert recent.mean('a', 'policy') == np.mean([*sizes[4:], size])


def test_an_episode_of_a_kind_that_was_not_asked_for_counts_once(tmp_path, record_short):
    sizes = []
    recent = RecentSizes(tmp_path)
    for number, messages in enumerate((5, 300)):
        path = record_short(tmp_path, messages, id=f'e{number}', task='a')
        sizes.append((path / 'streams.mcap').stat().st_size)
    recent.add(read_header(path))
    assert recent.mean('a', 'policy') == np.mean(sizes)
