"""A small arm that needs no model file: three joints in a plane."""

from __future__ import annotations

import numpy as np
import pytest

from robot_rl.specs import ActionField, Contract, ObservationField, RobotSpec

JOINTS = ('shoulder', 'elbow', 'wrist')
LENGTHS = (0.4, 0.3, 0.2)


class PlanarChain:
    """Forward kinematics of LENGTHS in the xy plane, by complex numbers."""

    joints = JOINTS
    reach = np.cumsum(LENGTHS[::-1])[::-1]

    def forward(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        heading = np.cumsum(positions, axis=-1)
        tip = (np.array(LENGTHS) * np.exp(1j * heading)).sum(axis=-1)
        angle = heading[..., -1]
        zero = np.zeros_like(angle)
        position = np.stack([tip.real, tip.imag, zero], axis=-1)
        return position, np.stack([np.cos(angle / 2), zero, zero, np.sin(angle / 2)], axis=-1)

    def position(self, positions: np.ndarray) -> np.ndarray:
        return self.forward(positions)[0]

    def points(self, positions: np.ndarray) -> np.ndarray:
        heading = np.exp(1j * np.cumsum(positions, axis=-1)) * LENGTHS
        joints = np.concatenate([np.zeros_like(heading[..., :1]), np.cumsum(heading, axis=-1)], -1)
        return np.stack([joints.real, joints.imag, np.zeros(joints.shape)], axis=-1)


@pytest.fixture(scope='session')
def chain() -> PlanarChain:
    return PlanarChain()


@pytest.fixture(scope='session')
def robot() -> RobotSpec:
    limits = {
        'shoulder': {'min_position': -2.0, 'max_position': 2.0, 'max_velocity': 1.0},
        'elbow': {'min_position': -1.5, 'max_position': 1.0, 'max_velocity': 2.0},
        'wrist': {'min_position': -3.0, 'max_position': 3.0, 'max_velocity': 4.0},
    }
    return RobotSpec.parse(
        {
            'name': 'planar',
            'joints': list(JOINTS),
            'joint_limits': limits,
            'home': dict.fromkeys(JOINTS, 0.0),
            'workspace': {'lower': [-1, -1, -1], 'upper': [1, 1, 1]},
            'mjcf': 'none.xml',
            'tool_site': 'tool',
        }
    )


@pytest.fixture(scope='session')
def contract() -> Contract:
    return Contract(
        rate_hz=20,
        observation=(
            ObservationField(
                name='joint_position', source='joint_states.position', names=JOINTS, shape=(3,)
            ),
            ObservationField(
                name='joint_velocity',
                source='joint_states.velocity',
                names=JOINTS,
                shape=(3,),
                max_age_s=0.1,
                fill='difference',
            ),
            ObservationField(
                name='command', source='command.position', names=JOINTS, shape=(3,), history=2
            ),
            ObservationField(name='tool', source='tool.position', shape=(3,)),
            ObservationField(
                name='target', source='target_pose.position', shape=(3,), max_age_s=1.0, goal=True
            ),
        ),
        action=(
            ActionField(
                name='joints',
                kind='joint_delta',
                names=JOINTS,
                lower=(-0.04, -0.05, -0.06),
                upper=(0.04, 0.05, 0.06),
                unit='rad',
            ),
        ),
    )
