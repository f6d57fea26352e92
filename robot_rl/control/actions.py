"""From an action in contract units to joint targets and a gripper's width, and back.

What moves the arm goes on from the last command, never from the measured pose: joint_delta adds
to it, joint_velocity and cartesian_twist lead on from it for one control period. A twist is
integrated by differential inverse kinematics, see KinematicChain.displaced.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from robot_rl.control.limiter import require_finite
from robot_rl.errors import ContractMismatch
from robot_rl.specs import ActionField, Box, Contract, RobotSpec
from robot_rl.specs.contract import TWIST

OF_JOINTS = ('joint_position', 'joint_delta', 'joint_velocity')
SUPPORTED = (*OF_JOINTS, 'cartesian_twist', 'gripper')


class Chain(Protocol):
    """The part of robots.kinematics.KinematicChain that twists need."""

    def displaced(self, q: np.ndarray, displacement: np.ndarray, space: Box) -> np.ndarray:
        """Return joint values [..., n] whose tool is displaced [..., 6] against that at q."""
        ...

    def displacement(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Return how the tool is displaced [..., 6] from joint values `start` to `end`."""
        ...


def joint_target(
    contract: Contract,
    action: ArrayLike,
    command: ArrayLike,
    robot: RobotSpec,
    chain: Chain | None = None,
) -> np.ndarray:
    """Return the joint positions [..., n] that `action` [..., A] asks for after `command`.

    The action is clipped to the contract's bounds; joints that no action moves keep `command`
    [..., n]. The tool of a cartesian_twist, for which `chain` is needed, stays in the workspace.
    Raises ContractMismatch for a wrong size, a non-finite value or an unsupported kind.
    """
    action, command = require_finite('action', action), require_finite('command', command)
    _require_size('action', action, contract.action_size)
    _require_size('command', command, len(robot.joints))
    plan = _plan(contract, robot)
    action = np.clip(action, plan.lower, plan.upper)
    if plan.twist:
        displacement = np.zeros((*command.shape[:-1], len(TWIST)))
        displacement[..., plan.axes] = action[..., plan.twist] * contract.period_s
        return chain.displaced(command, displacement, robot.workspace)
    target = command.copy()
    base = np.where(plan.relative, command[..., plan.joints], 0.0)
    target[..., plan.joints] = base + action[..., plan.elements] * plan.scale
    return target


def gripper_width(contract: Contract, action: ArrayLike, robot: RobotSpec) -> np.ndarray | None:
    """Return the width [...] [m] that `action` [..., A] asks for; None: it says nothing of it."""
    plan = _plan(contract, robot)
    if plan.gripper is None:
        return None
    wanted = np.asarray(action, np.float64)[..., plan.gripper]
    low, high = plan.lower[plan.gripper], plan.upper[plan.gripper]
    return np.clip(wanted, max(low, 0.0), min(high, robot.gripper.open_width))


def applied_action(
    contract: Contract,
    target: ArrayLike,
    command: ArrayLike,
    robot: RobotSpec,
    chain: Chain | None = None,
    width: ArrayLike | None = None,
) -> np.ndarray:
    """Return the action [..., A] that leads from `command` to `target` [..., n] (joint_target^-1).

    With the limited target, and the gripper's `width` [...], this is what was applied of the
    action that was requested.
    """
    target, command = np.asarray(target, np.float64), np.asarray(command, np.float64)
    plan = _plan(contract, robot)
    action = np.empty((*target.shape[:-1], contract.action_size))
    base = np.where(plan.relative, command[..., plan.joints], 0.0)
    action[..., plan.elements] = (target[..., plan.joints] - base) / plan.scale
    if plan.twist:
        displacement = chain.displacement(command, target)
        action[..., plan.twist] = displacement[..., plan.axes] / contract.period_s
    if plan.gripper is not None:
        action[..., plan.gripper] = width
    return action


def require_supported(contract: Contract, robot: RobotSpec) -> None:
    """Raise ContractMismatch where an action is not one that this robot can be commanded by."""
    _plan(contract, robot)


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """Where the elements of an action [A] go."""

    lower: np.ndarray  # [A]
    upper: np.ndarray  # [A]
    elements: list[int]  # [k] those that move one joint each
    joints: list[int]  # [k] which
    relative: np.ndarray  # [k] bool: to the last command
    scale: np.ndarray  # [k] the period for a velocity, else 1
    twist: list[int]  # [m] those of a twist
    axes: list[int]  # [m] where they stand in TWIST
    gripper: int | None


def _plan(contract: Contract, robot: RobotSpec) -> _Plan:
    gripper = robot.gripper is not None
    return _plan_of(contract.action, contract.period_s, robot.joints, gripper, robot.name)


@functools.lru_cache(maxsize=16)
def _plan_of(
    fields: tuple[ActionField, ...],
    period_s: float,
    joints: tuple[str, ...],
    has_gripper: bool,
    robot: str,
) -> _Plan:
    for field in fields:
        _require_known(field, joints, has_gripper, robot)
    elements = [(field.kind, name) for field in fields for name in field.names]
    _require_distinct(elements)
    own = [index for index, (kind, _) in enumerate(elements) if kind in OF_JOINTS]
    twist = [index for index, (kind, _) in enumerate(elements) if kind == 'cartesian_twist']
    grip = [index for index, (kind, _) in enumerate(elements) if kind == 'gripper']
    if own and twist:
        raise ContractMismatch(
            'action: beside a cartesian_twist, which moves all, no joint is commanded'
        )
    kinds = [elements[index][0] for index in own]
    return _Plan(
        lower=np.array([bound for field in fields for bound in field.lower]),
        upper=np.array([bound for field in fields for bound in field.upper]),
        elements=own,
        joints=[joints.index(elements[index][1]) for index in own],
        relative=np.array([kind != 'joint_position' for kind in kinds], dtype=bool),
        scale=np.array([period_s if kind == 'joint_velocity' else 1.0 for kind in kinds]),
        twist=twist,
        axes=[TWIST.index(elements[index][1]) for index in twist],
        gripper=grip[0] if grip else None,
    )


def _require_known(
    field: ActionField, joints: tuple[str, ...], has_gripper: bool, robot: str
) -> None:
    """Raise ContractMismatch for a kind or a name that this robot does not have."""
    if field.kind not in SUPPORTED:
        raise ContractMismatch(
            f'action {field.name}: kind {field.kind!r} cannot be commanded; '
            f'supported: {", ".join(SUPPORTED)}'
        )
    if field.kind == 'gripper':
        if not has_gripper:
            raise ContractMismatch(f'action {field.name}: {robot} has no gripper')
        if len(field.names) != 1:
            raise ContractMismatch(
                f'action {field.name}: a gripper takes one width, found {list(field.names)}'
            )
        return
    known = TWIST if field.kind == 'cartesian_twist' else joints
    what = 'elements of a twist' if known is TWIST else f'joints of {robot}'
    if unknown := [name for name in field.names if name not in known]:
        raise ContractMismatch(
            f'action {field.name}: {unknown} are no {what}, which has {list(known)}'
        )


def _require_distinct(elements: list[tuple[str, str]]) -> None:
    names = [name for _, name in elements]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ContractMismatch(f'action: joints {twice} are commanded more than once')
    if sum(kind == 'gripper' for kind, _ in elements) > 1:
        raise ContractMismatch('action: the gripper is commanded more than once')


def _require_size(what: str, values: np.ndarray, size: int) -> None:
    if values.ndim == 0 or values.shape[-1] != size:
        raise ContractMismatch(f'{what}: expected {size} values, found shape {values.shape}')
