"""What an arm is, what a policy sees and commands, and what a policy file is.

Each is declared once, as a frozen model that reads and writes YAML and JSON.
"""

from robot_rl.specs.base import Spec
from robot_rl.specs.contract import ActionField, Contract, ObservationField, fits, require_fit
from robot_rl.specs.policy_card import PolicyCard, StateField
from robot_rl.specs.robot import Box, Camera, Controller, Gripper, JointLimits, RobotSpec

__all__ = [
    'ActionField',
    'Box',
    'Camera',
    'Contract',
    'Controller',
    'Gripper',
    'JointLimits',
    'ObservationField',
    'PolicyCard',
    'RobotSpec',
    'Spec',
    'StateField',
    'fits',
    'require_fit',
]
