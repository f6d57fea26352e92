"""Parameters as `ros2 param` sees them."""

from __future__ import annotations

import importlib

import pytest
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParameters
from rclpy.parameter import Parameter, parameter_value_to_python

NODES = [
    'sim_robot',
    'policy',
    'command_guard',
    'episode_recorder',
    'session',
    'camera',
    'image_feed',
    'replay',
    'teleop',
]


@pytest.fixture
def everyone(supervisor, tmp_path, still_episode):
    for node in NODES:
        given = {'root': str(tmp_path)} if node == 'episode_recorder' else {}
        given |= {'episode': str(still_episode())} if node == 'replay' else {}
        given |= {'device': 'twist'} if node == 'teleop' else {}
        given |= {'manual': True, 'participants': ['policy']} if node == 'session' else {}
        supervisor.start(node, given)
    supervisor.wait_ready()


def test_every_node_says_what_its_parameters_are_and_which_may_change(everyone, observer):
    """An attribute `_parameters` of ours hid rclpy's: three nodes answered that they had none."""
    for node in NODES:
        model = importlib.import_module(f'robot_rl.nodes.{node}').Parameters
        names = list(model.model_fields)
        request = DescribeParameters.Request(names=names)
        described = observer.call(f'{node}/describe_parameters', DescribeParameters, request)
        for name, descriptor in zip(names, described.descriptors, strict=True):
            assert descriptor.description == model.model_fields[name].description
            changeable = node == 'policy' or (node, name) == ('session', 'policy')
            changeable |= (node, name) == ('teleop', 'speed_scale')
            changeable |= node == 'sim_robot' and name.startswith('push_')
            assert descriptor.read_only is not changeable
        got = observer.call(
            f'{node}/get_parameters', GetParameters, GetParameters.Request(names=names)
        )
        values = dict(zip(names, map(parameter_value_to_python, got.values), strict=True))
        if 'robot' in values:  # a twin is of its task's, a replay of its episode's, unless told
            of_others = ('sim_robot', 'camera', 'replay')
            assert values['robot'] == ('' if node in of_others else 'ur5e')


def test_a_fixed_parameter_stays_as_it_was(everyone, observer):
    request = SetParameters.Request()
    request.parameters = [Parameter('episodes', value=7).to_parameter_msg()]
    (result,) = observer.call('session/set_parameters', SetParameters, request).results
    assert not result.successful and 'read-only' in result.reason
