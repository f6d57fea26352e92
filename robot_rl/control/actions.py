"""From an action in contract units to joint targets, and back."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike

from robot_rl.control.limiter import require_finite
from robot_rl.errors import ContractMismatch
from robot_rl.specs import Contract, RobotSpec

SUPPORTED = ('joint_position', 'joint_delta')


def joint_target(
    contract: Contract, action: ArrayLike, command: ArrayLike, robot: RobotSpec
) -> np.ndarray:
    """Return the joint positions [..., n] that `action` [..., A] asks for.

    The action is clipped to the contract's bounds; joint_delta adds to `command` [..., n], the
    last commanded (never the measured) positions; joints that no action names keep `command`.
    Raises ContractMismatch for a wrong size, a non-finite value or an unsupported kind.
    """
    action, command = require_finite('action', action), require_finite('command', command)
    _require_size('action', action, contract.action_size)
    _require_size('command', command, len(robot.joints))
    joints, relative, lower, upper = _plan(contract, robot)
    target = command.copy()
    base = np.where(relative, command[..., joints], 0.0)
    target[..., joints] = base + np.clip(action, lower, upper)
    return target


def applied_action(
    contract: Contract, target: ArrayLike, command: ArrayLike, robot: RobotSpec
) -> np.ndarray:
    """Return the action [..., A] that leads from `command` to `target` [..., n] (joint_target^-1).

    With the limited target this is what was applied of the action that was requested.
    """
    target, command = np.asarray(target, np.float64), np.asarray(command, np.float64)
    joints, relative, _, _ = _plan(contract, robot)
    return target[..., joints] - np.where(relative, command[..., joints], 0.0)


def require_supported(contract: Contract, robot: RobotSpec) -> None:
    """Raise ContractMismatch where an action is not one that this robot can be commanded by."""
    _plan(contract, robot)


@functools.lru_cache(maxsize=16)
def _plan_of(fields: tuple, joints: tuple[str, ...], robot: str) -> tuple:
    """Return joint index, 'is relative', lower and upper bound of every action element."""
    names = [name for field in fields for name in field.names]
    for field in fields:
        if field.kind not in SUPPORTED:
            raise ContractMismatch(
                f'action {field.name}: kind {field.kind!r} cannot be commanded; '
                f'supported: {", ".join(SUPPORTED)}'
            )
        unknown = [name for name in field.names if name not in joints]
        if unknown:
            raise ContractMismatch(
                f'action {field.name}: {unknown} are no joints of {robot}, '
                f'which has {list(joints)}'
            )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ContractMismatch(f'action: joints {twice} are commanded more than once')
    return (
        [joints.index(name) for name in names],
        np.array([field.kind == 'joint_delta' for field in fields for _ in field.names]),
        np.array([bound for field in fields for bound in field.lower]),
        np.array([bound for field in fields for bound in field.upper]),
    )


def _plan(contract: Contract, robot: RobotSpec) -> tuple:
    return _plan_of(contract.action, robot.joints, robot.name)


def _require_size(what: str, values: np.ndarray, size: int) -> None:
    if values.ndim == 0 or values.shape[-1] != size:
        raise ContractMismatch(f'{what}: expected {size} values, found shape {values.shape}')
