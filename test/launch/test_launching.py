"""What the launch files tell the nodes; needs no ROS 2."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from robot_rl.nodes.launching import Launch


@pytest.mark.parametrize(
    ('sim', 'first_seed', 'manual', 'told'),
    [
        ('true', '', '', (None, None)),  # as in the file of parameters
        ('true', '7', 'true', (7, True)),
        ('false', '', '', (-1, True)),
        ('false', '7', 'false', (7, False)),
    ],
)
def test_a_real_arm_has_no_seeds_and_waits_for_a_person_unless_told(sim, first_seed, manual, told):
    arguments = {'sim': sim, 'first_seed': first_seed, 'manual': manual}
    launch = Launch(SimpleNamespace(launch_configurations=arguments), 'deploy')
    assert (launch.first_seed, launch.manual) == told
