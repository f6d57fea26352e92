"""An arm inside a compiled MuJoCo model: where its joints, actuators and target stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import mujoco
import numpy as np

from robot_rl.errors import SpecError
from robot_rl.robots.mjcf import find, load_model, named

# The mocap body that marks where the task wants the tool.
TARGET_BODY = 'target'


@dataclass(frozen=True)
class ArmIndex:
    """Addresses of an arm's joints in their own order, and of the target marker."""

    qpos: np.ndarray  # [n] in MjData.qpos
    qvel: np.ndarray  # [n] in MjData.qvel
    ctrl: np.ndarray  # [n] in MjData.ctrl, of the position servos on the joints
    marker: int  # in MjData.mocap_pos

    @classmethod
    def of(cls, model: mujoco.MjModel, joints: Sequence[str]) -> Self:
        """Find RobotSpec.model_joints, their servos and the target.

        Raises SpecError for a missing one.
        """
        ids = [named(model, 'joint', name) for name in joints]
        return cls(
            qpos=model.jnt_qposadr[ids].copy(),
            qvel=model.jnt_dofadr[ids].copy(),
            ctrl=np.array([_servo(model, index) for index in ids]),
            marker=_marker(model),
        )


def load_scene(name: str, timestep_s: float) -> mujoco.MjModel:
    """Compile the MJCF called `name`, see resources.model. Raises SpecError, UnknownName."""
    model = load_model(name)
    model.opt.timestep = timestep_s
    return model


def _marker(model: mujoco.MjModel) -> int:
    """Return the mocap id of the target. Raises SpecError where the scene has none."""
    body = find(model, 'body', TARGET_BODY)
    if body is None or model.body_mocapid[body] < 0:
        raise SpecError(f'the scene needs a mocap body {TARGET_BODY!r}')
    return int(model.body_mocapid[body])


def _servo(model: mujoco.MjModel, joint: int) -> int:
    """Return the id of the position servo on a joint. Raises SpecError where there is none."""
    on_joint = model.actuator_trntype == mujoco.mjtTrn.mjTRN_JOINT
    gain, stiffness = model.actuator_gainprm[:, 0], -model.actuator_biasprm[:, 1]
    servos = on_joint & (model.actuator_trnid[:, 0] == joint) & (gain == stiffness)
    found = np.flatnonzero(servos)
    if len(found) != 1:
        raise SpecError(
            f'joint {model.joint(joint).name!r} of the scene has {len(found)} position actuators; '
            'it needs one'
        )
    return int(found[0])
