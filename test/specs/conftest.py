from __future__ import annotations

import copy

import pytest

ROBOT = {
    'name': 'planar',
    'joints': ['shoulder', 'elbow'],
    'joint_limits': {
        'shoulder': {'min_position': -2.0, 'max_position': 2.0, 'max_velocity': 1.0},
        'elbow': {'min_position': -1.5, 'max_position': 1.0, 'max_velocity': 2.0},
    },
    'home': {'shoulder': 0.0, 'elbow': 0.5},
    'workspace': {'lower': [-1, -1, 0], 'upper': [1, 1, 1]},
    'mjcf': 'planar.xml',
    'tool_site': 'tool',
}
CONTRACT = {
    'rate_hz': 20,
    'observation': [
        {'name': 'q', 'source': 'joint_states.position', 'names': ['elbow'], 'shape': [1]},
        {'name': 'target', 'source': 'target_pose.position', 'shape': [3], 'goal': True},
        {'name': 'last', 'source': 'command.position', 'shape': [2], 'history': 4},
    ],
    'action': [
        {
            'name': 'arm',
            'kind': 'joint_delta',
            'names': ['shoulder', 'elbow'],
            'lower': [-0.1, -0.2],
            'upper': [0.1, 0.3],
        },
        {'name': 'hand', 'kind': 'gripper', 'names': ['width'], 'lower': [0], 'upper': [1]},
    ],
}


@pytest.fixture
def robot_data() -> dict:
    return copy.deepcopy(ROBOT)


@pytest.fixture
def contract_data() -> dict:
    return copy.deepcopy(CONTRACT)
