"""What graphs tell their nodes; needs no ROS 2."""

from __future__ import annotations

import pytest

from robot_rl.errors import SpecError
from robot_rl.nodes.graphs import GRAPHS
from robot_rl.nodes.launching import flags


def parameters(graph, **given):
    processes = GRAPHS[graph].nodes(GRAPHS[graph].values(given))
    return {process.executable: process.parameters for process in processes}


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
    session = parameters('deploy', sim=sim, first_seed=first_seed, manual=manual)['session']
    assert (session.get('first_seed'), session.get('manual')) == told


def test_a_graph_has_the_nodes_that_are_asked_for_and_all_take_part():
    assert list(parameters('sim_robot', seed='3')) == ['sim_robot']
    nodes = parameters('deploy', policy='reach', robot='fr3', storage='/data', operator='007')
    assert list(nodes) == ['policy', 'command_guard', 'sim_robot', 'episode_recorder', 'session']
    assert nodes['session']['participants'] == list(nodes)[:-1]
    assert nodes['policy'] == {'robot': 'fr3', 'policy': 'reach', 'use_sim_time': False}
    assert nodes['episode_recorder']['world'] == 'sim'
    assert nodes['session']['operator'] == '007'
    real = parameters('deploy', sim='false', record='false')
    assert list(real) == ['policy', 'command_guard', 'session']
    assert list(parameters('record', sim='false')) == [
        'command_guard', 'episode_recorder', 'session',
    ]  # fmt: skip


def test_a_person_s_device_and_the_screen_share_a_terminal_and_take_no_part_in_episodes():
    given = {'teleop': 'keyboard', 'screen': 'true', 'terminal': '/dev/pts/7', 'tags': 'a,b'}
    nodes = parameters('record', robot='ur5e', **given)
    assert list(nodes) == [
        'command_guard', 'sim_robot', 'episode_recorder', 'session', 'teleop', 'screen',
    ]  # fmt: skip
    assert nodes['session']['participants'] == ['command_guard', 'sim_robot', 'episode_recorder']
    assert nodes['session']['tags'] == ['a', 'b']
    told = {'device': 'keyboard', 'terminal': '/dev/pts/7', 'use_sim_time': False}
    assert nodes['screen'] == told and nodes['teleop'] == told | {'robot': 'ur5e'}
    assert 'screen' not in parameters('record', teleop='joy', screen='false')
    with pytest.raises(SpecError, match=r"teleop: one of 'none', 'keyboard'"):
        parameters('record', teleop='keybord')


def test_a_screen_is_drawn_by_itself_where_a_device_is_used_on_a_terminal(monkeypatch):
    for on_terminal in (True, False):
        monkeypatch.setattr('sys.stdout.isatty', lambda is_so=on_terminal: is_so)
        assert ('screen' in parameters('record', teleop='joy')) is on_terminal
        assert 'screen' not in parameters('record')


def test_a_person_may_stand_by_while_a_policy_runs_and_takes_no_part_in_the_episode():
    nodes = parameters(
        'deploy', teleop='joy', screen='true', terminal='/dev/pts/7', record='false'
    )
    assert list(nodes) == [
        'policy', 'command_guard', 'sim_robot', 'session', 'teleop', 'screen',
    ]  # fmt: skip
    assert nodes['session']['participants'] == ['policy', 'command_guard', 'sim_robot']
    assert 'teleop' not in parameters('deploy')


def test_cameras_are_those_of_the_twin_or_of_the_arm_s_own_drivers():
    nodes = parameters('deploy', cameras='true', record='false', robot='fr3', task='fr3/push')
    assert list(nodes) == [
        'policy', 'command_guard', 'sim_robot', 'camera', 'image_feed', 'session',
    ]  # fmt: skip
    assert nodes['sim_robot']['publish_state'] and 'publish_state' not in nodes['camera']
    assert nodes['camera']['task'] == nodes['sim_robot']['task'] == 'fr3/push'
    assert nodes['image_feed']['robot'] == nodes['camera']['robot'] == 'fr3'
    # What draws takes no part in episodes; what hands pictures over does.
    assert nodes['session']['participants'] == [
        'policy',
        'command_guard',
        'sim_robot',
        'image_feed',
    ]
    real = parameters('deploy', cameras='true', sim='false', record='false')
    assert list(real) == ['policy', 'command_guard', 'image_feed', 'session']
    assert list(parameters('sim_robot', cameras='true')) == ['sim_robot', 'camera']
    assert 'camera' in parameters('record', cameras='true')


@pytest.mark.parametrize(
    ('given', 'told'),
    [
        ({'polcy': 'x'}, "polcy: no such argument; did you mean 'policy'"),
        ({'sim': 'yes'}, "sim: one of 'true', 'false', found 'yes'"),
        ({'namespace': 'a-b'}, "namespace: 'a-b' is no ROS namespace: letters, digits and _"),
        ({'namespace': '9a'}, "namespace: '9a' is no ROS namespace"),
        ({'episodes': 'many'}, "episodes: a whole number is needed, found 'many'"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(given, told):
    with pytest.raises(SpecError, match=told):
        parameters('deploy', **given)


def test_a_perturbation_is_told_to_who_simulates_and_who_draws():
    nodes = parameters('deploy', perturbation='camera', cameras='true')
    told = [name for name, given in nodes.items() if given.get('perturbation') == 'camera']
    assert told == ['sim_robot', 'camera']
    assert 'perturbation' not in parameters('deploy')['sim_robot']  # as in the file of parameters
    assert parameters('sim_robot', perturbation='knock')['sim_robot']['perturbation'] == 'knock'
    assert 'sim_robot' not in parameters('deploy', sim='false', perturbation='none')


def test_a_real_arm_is_not_perturbed():
    with pytest.raises(SpecError, match="perturbation: 'knock' is of the twin; 'sim' is false"):
        parameters('deploy', sim='false', perturbation='knock')


def test_launch_arguments_become_flags_where_they_say_something():
    given = {'robot': 'ur5e', 'task': '', 'real': 'false', 'judge': 'human'}
    assert flags(given) == ['--robot', 'ur5e', '--judge', 'human']
    assert flags({'real': 'true', 'operator': 'true love'}) == [
        '--real',
        '--operator',
        'true love',
    ]
