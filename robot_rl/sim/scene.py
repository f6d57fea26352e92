"""An arm inside a compiled MuJoCo model: where its joints, actuators and target stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import mujoco
import numpy as np

from robot_rl import resources
from robot_rl.errors import SpecError

# The mocap body that marks where the task wants the tool.
TARGET_BODY = 'target'


@dataclass(frozen=True)
class ArmIndex:
    """Addresses of an arm's joints in their own order, and of the target marker."""

    qpos: np.ndarray  # [n] in MjData.qpos
    qvel: np.ndarray  # [n] in MjData.qvel
    ctrl: np.ndarray  # [n] in MjData.ctrl, of the position servos named as the joints
    marker: int  # in MjData.mocap_pos

    @classmethod
    def of(cls, model: mujoco.MjModel, joints: Sequence[str]) -> Self:
        """Find `joints`, their actuators and the target. Raises SpecError for a missing one."""
        try:
            return cls(
                qpos=np.array([model.joint(name).qposadr[0] for name in joints]),
                qvel=np.array([model.joint(name).dofadr[0] for name in joints]),
                ctrl=np.array([model.actuator(name).id for name in joints]),
                marker=int(model.body(TARGET_BODY).mocapid[0]),
            )
        except KeyError as error:
            raise SpecError(
                f'the scene needs each of {list(joints)} as a joint and as an actuator, and a '
                f'mocap body {TARGET_BODY!r}: {error.args[0].splitlines()[0]}'
            ) from None


def load_scene(name: str, timestep_s: float) -> mujoco.MjModel:
    """Compile an MJCF from robots/models, or by its path. Raises SpecError with the reason."""
    path = resources.model(name)
    try:
        model = mujoco.MjModel.from_xml_path(str(path))
    except ValueError as error:
        raise SpecError(f'{path}: MuJoCo cannot read it ({error})') from None
    model.opt.timestep = timestep_s
    return model
