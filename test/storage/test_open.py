"""robot-rl episodes open, with a program of the test in the place of a viewer."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader

from robot_rl.cli.main import main
from robot_rl.storage.episode import EpisodeHeader
from robot_rl.storage.foreign import ForeignEpisode, write
from robot_rl.storage.pictures import Pictures
from robot_rl.storage.schemas import message_definition
from robot_rl.storage.store import Store
from robot_rl.storage.streams import read_messages

START_NS = 1_700_000_000_000_000_000


@pytest.fixture
def viewer(tmp_path, monkeypatch):
    """Return `install(name)`, which puts a program on the PATH that notes what it is given."""
    folder, seen = tmp_path / 'bin', tmp_path / 'seen'
    folder.mkdir()
    monkeypatch.setenv('PATH', f'{folder}:/bin:/usr/bin')

    def install(name: str) -> Path:
        program = folder / name
        program.write_text(f'#!/bin/sh\necho "$1" > "{seen}.new"\nmv "{seen}.new" "{seen}"\n')
        program.chmod(0o755)
        return seen

    return install


@pytest.fixture
def store(tmp_path):
    """A store with an episode that has columns only, and a reward."""
    rng = np.random.default_rng(1)
    columns = {
        'time': START_NS * 1e-9 + np.arange(4) / 10,
        'joint_states.position': rng.normal(size=(4, 2)),
        'wrist.image': Pictures.of(
            [b'\xff\xd8one', b'\x89PNGtwo'], np.array([0, 0, 1, 1]), (6, 8)
        ),
        'map.depth': rng.random((4, 3, 5)).astype(np.float32),
        'gripper.grasp': np.array([[0], [1], [1], [0]]),
        'action/requested': rng.normal(size=(3, 2)),
        'action/applied': rng.normal(size=(3, 2)),
    }
    store = Store(tmp_path / 'a store')
    write(store.root, ForeignEpisode(EpisodeHeader(id='steps', start_time_ns=START_NS), columns))
    store.add_reward('steps', [0.0, 0.5, 1.0], task='t', kind='sketch', author='anna b')
    return store, columns


def given(seen: Path) -> Path:
    end = time.monotonic() + 10
    while not seen.exists():
        assert time.monotonic() < end, 'the viewer was not started'
        time.sleep(0.02)
    return Path(seen.read_text().strip())


def test_an_episode_s_mcap_file_is_opened_as_it_is(viewer, tmp_path, record_short, capsys):
    path, seen = record_short(tmp_path / 'b', id='e'), viewer('rerun')
    assert main(['episodes', 'open', 'e', '--store', str(tmp_path / 'b'), '--json']) == 0
    assert given(seen) == path / 'streams.mcap'
    assert json.loads(capsys.readouterr().out)['path'] == str(path / 'streams.mcap')


def test_foxglove_goes_first_and_with_chooses(viewer, tmp_path, record_short, capsys):
    record_short(tmp_path / 'b', id='e')
    viewer('rerun'), viewer('foxglove-studio')
    words = ['episodes', 'open', 'e', '--store', str(tmp_path / 'b')]
    assert main(words) == 0
    assert 'foxglove-studio' in capsys.readouterr().out
    assert main([*words, '--with', 'rerun']) == 0
    assert f'{os.sep}rerun ' in capsys.readouterr().out


def test_without_a_viewer_a_line_says_what_to_get(viewer, tmp_path, record_short, capsys):
    record_short(tmp_path / 'b', id='e')
    assert main(['episodes', 'open', 'e', '--store', str(tmp_path / 'b')]) == 2
    told = capsys.readouterr().err
    assert 'foxglove and rerun not found on the PATH' in told
    assert 'pip install rerun-sdk' in told and told.count('\n') == 1


def test_columns_are_written_out_as_messages(viewer, store, capsys):
    pytest.importorskip('rclpy', reason='needs the definitions of messages (extra `ros`)')
    seen, (store, columns) = viewer('rerun'), store
    assert main(['episodes', 'open', 'steps', '--store', str(store.root)]) == 0
    path = given(seen)
    assert path.name == 'steps.mcap'
    with path.open('rb') as file:
        summary = make_reader(file).get_summary()
    assert summary.statistics.message_start_time == START_NS
    text = message_definition('sensor_msgs/msg/JointState')
    assert text.encode() in {schema.data for schema in summary.schemas.values()}
    found: dict[str, list] = {}
    for item in read_messages(path):
        found.setdefault(item.topic, []).append(item.message)
    np.testing.assert_array_equal(
        [m.position for m in found['/joint_states']], columns['joint_states.position']
    )
    pictures = found['/wrist/image']
    assert [(m.format, bytes(m.data)) for m in pictures[1:3]] == [
        ('jpeg', b'\xff\xd8one'),
        ('png', b'\x89PNGtwo'),
    ]
    depth = found['/map/depth'][2]
    assert (depth.height, depth.width, depth.encoding) == (3, 5, '32FC1')
    values = np.frombuffer(bytes(depth.data), '<f4').reshape(3, 5)
    np.testing.assert_array_equal(values, columns['map.depth'][2])
    actions = [list(m.data) for m in found['/action/applied']]
    np.testing.assert_array_equal(actions, columns['action/applied'])
    assert [list(m.data) for m in found['/rewards/sketch_anna_b']] == [[0.0], [0.5], [1.0]]
    stamp = found['/joint_states'][3].header.stamp
    assert abs(stamp.sec * 10**9 + stamp.nanosec - START_NS - 300_000_000) < 300
