"""What an arm was told, as actions of a contract: the inverse of what control makes of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from robot_rl.errors import ContractMismatch
from robot_rl.specs import ActionField, Contract, RobotSpec
from robot_rl.specs.contract import TWIST


class Chain(Protocol):
    """The part of robots.kinematics.KinematicChain that twists need."""

    def displacement(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Return how the tool is displaced [..., 6] from joint positions [..., n] to others."""
        ...


# Makes the chain of a robot. It is handed in by whoever has physics: it takes a model's file,
# which nothing in storage can read.
Kinematics = Callable[[RobotSpec], Chain]


class Told(NamedTuple):
    """What an arm was told in T periods."""

    before: np.ndarray  # [T, n] the joint positions that it was led from
    after: np.ndarray  # [T, n] and to
    width: np.ndarray  # [T] what its gripper was told [m]; NaN where it has none


def as_action(contract: Contract, robot: RobotSpec, told: Told, chain: Chain | None) -> np.ndarray:
    """Return the actions [T, A], in contract units, that what was told amounts to.

    Without `chain` the elements of a cartesian_twist are NaN.
    """
    parts = [_part(field, contract.period_s, robot, told, chain) for field in contract.action]
    return np.concatenate(parts, axis=1)


def has_twist(contract: Contract) -> bool:
    """Tell whether kinematics are needed to say what a path of joints is as an action."""
    return any(field.kind == 'cartesian_twist' for field in contract.action)


def require_kinds(contract: Contract, robot: RobotSpec, where: str) -> None:
    """Raise ContractMismatch, beginning with `where`, for actions that no command amounts to."""
    for field in contract.action:
        if field.kind in ('effort', 'generic'):
            raise ContractMismatch(
                f'{where}: action {field.name} is of kind {field.kind}, which no command to an '
                'arm amounts to'
            )
        if field.kind == 'gripper':
            if robot.gripper is None:
                raise ContractMismatch(f'{where}: {field.name}: {robot.name} has no gripper')
            continue
        twist = field.kind == 'cartesian_twist'
        known = TWIST if twist else robot.joints
        what = 'elements of a twist' if twist else f'joints of {robot.name}'
        if unknown := [name for name in field.names if name not in known]:
            raise ContractMismatch(
                f'{where}: action {field.name}: {unknown} are no {what}, which has {list(known)}'
            )


def _part(
    field: ActionField, period_s: float, robot: RobotSpec, told: Told, chain: Chain | None
) -> np.ndarray:
    """Return one field's elements [T, k]."""
    if field.kind == 'gripper':
        return told.width[:, None]
    if field.kind == 'cartesian_twist':
        if chain is None:
            return np.full((len(told.before), len(field.names)), np.nan)
        way = chain.displacement(told.before, told.after) / period_s
        return way[:, [TWIST.index(name) for name in field.names]]
    index = [robot.joints.index(name) for name in field.names]
    if field.kind == 'joint_position':
        return told.after[:, index]
    delta = told.after[:, index] - told.before[:, index]
    return delta / period_s if field.kind == 'joint_velocity' else delta
