"""From a faulty twin's recorded episodes to parameters that make another just as faulty."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python

from robot_rl.cli.main import main
from robot_rl.specs import RobotSpec

HIDDEN = {
    'command_delay_s': 0.04,
    'gain': [0.6, 0.8, 0.7, 1.5, 0.8, 1.0],
    'friction': [20.0, 10.0, 15.0, 4.0, 2.0, 0.0],
}


def record(supervisor, root, episodes):
    supervisor.start('sim_robot', HIDDEN)
    supervisor.start('command_guard')
    supervisor.start('episode_recorder', {'root': str(root)})
    supervisor.start('policy', {'policy': 'random', 'seed': 5})
    supervisor.start('session', {'policy': 'random', 'episodes': episodes, 'first_seed': 7})
    lines = list(supervisor.follow('session', timeout_s=60.0))
    assert len(lines) == episodes
    supervisor.stop()


@pytest.mark.slow
def test_a_faulty_arm_is_found_from_recorded_episodes_and_can_be_simulated(
    supervisor, observer, tmp_path, capsys
):
    record(supervisor, tmp_path / 'episodes', 3)
    out = tmp_path / 'twin.yaml'
    words = ['calibrate', '--store', str(tmp_path / 'episodes'), '--out', str(out), '--json']
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    robot = RobotSpec.load('ur5e')
    assert (found['episodes'], [row['joint'] for row in found['joints']]) == (3, [*robot.joints])
    # Beside the twin's own delay there is DDS, and what the scheduler adds: to all joints as much.
    assert found['command_delay_s'] == pytest.approx(0.045, abs=0.015)
    np.testing.assert_allclose(found['gain'], HIDDEN['gain'], rtol=0.25)
    # Delay and stiffness stand in for each other; how late a joint is in all is told better. A
    # servo of the model is kv / kp = 40 ms late.
    late, right = (
        answer['command_delay_s'] + 0.04 / np.array(answer['gain']) for answer in (found, HIDDEN)
    )
    more = late - right
    assert -0.002 < np.median(more) < 0.015
    np.testing.assert_allclose(more, np.median(more), atol=0.004)
    np.testing.assert_allclose(found['friction'], HIDDEN['friction'], atol=4.0)
    for row in found['joints']:
        assert row['moved'] and row['rms_after'] < 0.25 * row['rms_before']
    supervisor.start('sim_robot', name='again', ros_arguments=['--params-file', str(out)])
    supervisor.wait_ready()
    request = GetParameters.Request(names=['command_delay_s', 'gain', 'friction'])
    got = observer.call('sim_robot/get_parameters', GetParameters, request).values
    for name, value in zip(request.names, got, strict=True):
        assert np.array(parameter_value_to_python(value)).tolist() == found[name]
