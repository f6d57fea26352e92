"""robot-rl calibrate: what it says of episodes that it cannot use."""

from __future__ import annotations

import pytest

from robot_rl.cli.main import main
from robot_rl.specs import RobotSpec
from robot_rl.storage.episode import EpisodeHeader, EpisodeWriter


@pytest.fixture
def run(tmp_path, capsys):
    def call(*words):
        code = main(['calibrate', '--store', str(tmp_path), *words])
        out, err = capsys.readouterr()
        assert not out and not (tmp_path / 'twin.yaml').exists()
        return code, err

    return call


def record(root, **fields):
    with EpisodeWriter(root, EpisodeHeader(**fields)) as writer:
        writer.write('/joint_states', 'x/msg/X', 'uint8 x', b'0001000', 10**9, None, 1)
        writer.commit(result='success')


def test_episodes_of_one_robot_are_needed(tmp_path, run):
    for name in ('ur5e', 'fr3'):
        record(tmp_path, robot=name, robot_spec=RobotSpec.load(name))
    code, err = run()
    assert code == 2 and "2 episodes of ['fr3', 'ur5e'] match; those of one robot" in err
    code, err = run('--query', 'robot=ur3')
    assert code == 2 and '0 episodes of no robot match' in err
    code, err = run('--query', 'robot=ur5e')
    assert code == 2 and 'needs one topic forward_position_controller/commands' in err
    slower = RobotSpec.load('ur5e').replace(joint_states_rate_hz=50.0)
    record(tmp_path, robot='ur5e', robot_spec=slower)
    code, err = run('--query', 'robot=ur5e')
    assert code == 2 and 'described alike' in err
