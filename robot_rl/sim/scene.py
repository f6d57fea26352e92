"""An arm inside a compiled MuJoCo model: where joints and bodies stand, how it is moved."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import mujoco
import numpy as np

from robot_rl.errors import SpecError
from robot_rl.robots import quaternions
from robot_rl.robots.mjcf import find, load_model, named
from robot_rl.specs import RobotSpec

# How MuJoCo computes an actuator's force, as far as it can be turned round: gain * ctrl + bias.
_FIXED = int(mujoco.mjtGain.mjGAIN_FIXED)
_BIAS = int(mujoco.mjtBias.mjBIAS_NONE), int(mujoco.mjtBias.mjBIAS_AFFINE)
_DYNAMICS = tuple(
    int(kind)
    for kind in (
        mujoco.mjtDyn.mjDYN_NONE,
        mujoco.mjtDyn.mjDYN_FILTER,
        mujoco.mjtDyn.mjDYN_FILTEREXACT,
    )
)
_JOINT = int(mujoco.mjtTrn.mjTRN_JOINT), int(mujoco.mjtTrn.mjTRN_JOINTINPARENT)
_TENDON, _WRAP_JOINT = int(mujoco.mjtTrn.mjTRN_TENDON), int(mujoco.mjtWrap.mjWRAP_JOINT)
_FREE = int(mujoco.mjtJoint.mjJNT_FREE)
_SINGLE = int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE)
# How hard dry friction is, the most that MuJoCo takes: by its default of 0.9 a joint that should
# stick creeps on at some hundredths of a rad/s.
_DRY = 0.9999


@dataclass(frozen=True, eq=False)
class Actuators:
    """What moves each of n joints: a position servo, or an actuator that takes a force, or none.

    The force on a joint is gear * (gain * ctrl + bias[0] + bias[1] * length + bias[2] * velocity),
    with length = gear * position. Where bias[1] is negative that is a servo: ctrl says where to.
    """

    ctrl: np.ndarray  # [n] in MjData.ctrl; -1: the model has none, forces are put on the joint
    gear: np.ndarray  # [n] actuator length per joint position
    gain: np.ndarray  # [n]
    bias: np.ndarray  # [n, 3]

    @classmethod
    def of(cls, model: mujoco.MjModel, joints: Sequence[int]) -> Self:
        """Find the actuators of these joints. Raises SpecError for several, or a strange one."""
        found = [_actuator(model, joint) for joint in joints]
        ids = np.array([index for index, _ in found], dtype=int)
        bare = ids < 0
        gain, bias = np.ones(len(ids)), np.zeros((len(ids), 3))
        gain[~bare] = model.actuator_gainprm[ids[~bare], 0]
        bias[~bare] = model.actuator_biasprm[ids[~bare], :3]
        return cls(ids, np.array([gear for _, gear in found]), gain, bias)

    @functools.cached_property
    def servo(self) -> np.ndarray:
        """Which of them hold a position by themselves -> bool [n]."""
        return self.bias[:, 1] < 0

    @property
    def stiffness(self) -> np.ndarray:
        """By how much the joint's force grows with the distance to where it is to be [n]."""
        return -(self.gear**2) * self.bias[:, 1]

    def towards(self, positions: np.ndarray) -> np.ndarray:
        """Return the ctrl [..., n] with which servos go to joint positions [..., n]."""
        return self._scale * positions + self._offset

    def pushing(self, force: np.ndarray, position: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """Return the ctrl [n] that puts this force [n] on joints that move so; of none, itself."""
        own = self.bias * np.stack([np.ones_like(position), position, velocity], axis=1)
        own[:, 1:] *= self.gear[:, None]
        return (force / self.gear - own.sum(axis=1)) / self.gain

    @functools.cached_property
    def _scale(self) -> np.ndarray:
        return -self.bias[:, 1] * self.gear / self.gain

    @functools.cached_property
    def _offset(self) -> np.ndarray:
        return -self.bias[:, 0] / self.gain


@dataclass(frozen=True, eq=False)
class ArmIndex:
    """Addresses of an arm's joints, in their own order, and their actuators."""

    joints: np.ndarray  # [n] their ids
    qpos: np.ndarray  # [n] in MjData.qpos
    qvel: np.ndarray  # [n] in MjData.qvel
    actuators: Actuators

    @classmethod
    def of(cls, model: mujoco.MjModel, joints: Sequence[str]) -> Self:
        """Find RobotSpec.model_joints and their actuators. Raises SpecError for a missing one."""
        ids = np.array([named(model, 'joint', name) for name in joints])
        return cls(
            joints=ids,
            qpos=model.jnt_qposadr[ids].copy(),
            qvel=model.jnt_dofadr[ids].copy(),
            actuators=Actuators.of(model, ids),
        )

    def require_servos(self, model: mujoco.MjModel) -> None:
        """Raise SpecError where a joint is not moved by a position actuator."""
        for joint, servo in zip(self.joints, self.actuators.servo, strict=True):
            if not servo:
                raise SpecError(
                    f'joint {model.joint(joint).name!r} of the scene is moved by force; '
                    'a task needs a position actuator'
                )

    def tune(
        self,
        model: mujoco.MjModel,
        nominal: mujoco.MjModel,
        gain: np.ndarray,
        friction: np.ndarray,
    ) -> None:
        """Make servos `gain` [n] times as stiff as in `nominal`, with more dry friction [n] [N m].

        Where to a ctrl tells a servo to go stays as it is; joints without one are left alone.
        """
        servo, dofs = self.actuators.servo, self.qvel
        ids, factor = self.actuators.ctrl[servo], gain[servo]
        model.actuator_gainprm[ids, 0] = nominal.actuator_gainprm[ids, 0] * factor
        model.actuator_biasprm[ids, :2] = nominal.actuator_biasprm[ids, :2] * factor[:, None]
        model.dof_frictionloss[dofs] = nominal.dof_frictionloss[dofs] + friction
        model.dof_solimp[dofs] = nominal.dof_solimp[dofs]
        model.dof_solimp[dofs[friction > 0], :2] = _DRY

    def others(self, model: mujoco.MjModel) -> list[int]:
        """Return the ids of the named hinges and slides on the same base that are not the arm's.

        Those of a gripper, say; what stands about the scene is on a base of its own.
        """
        root = model.body_rootid[model.jnt_bodyid]
        return [
            joint
            for joint in range(model.njnt)
            if root[joint] == root[self.joints[0]]
            and model.jnt_type[joint] in _SINGLE
            and joint not in self.joints
            and model.joint(joint).name
        ]


@dataclass(frozen=True, eq=False)
class Jaw:
    """The joint of RobotSpec.gripper and those that its actuator moves alike."""

    qpos: np.ndarray  # [k] in MjData.qpos, the gripper's own joint first
    actuators: Actuators  # of the one joint

    @classmethod
    def of(cls, model: mujoco.MjModel, robot: RobotSpec) -> Self | None:
        """Find the gripper; None: the robot has none, or its model is of the arm alone.

        Raises SpecError where its joint has no range, or no position actuator.
        """
        if robot.gripper is None:
            return None
        name = robot.mjcf_joints.get(robot.gripper.joint, robot.gripper.joint)
        joint = find(model, 'joint', name)
        if joint is None:
            return None
        actuators = Actuators.of(model, [joint])
        if not (model.jnt_limited[joint] and actuators.servo.all()):
            raise SpecError(
                f'gripper joint {name!r} of the scene needs a range and a position actuator'
            )
        alike = [j for j in range(model.njnt) if _gear(model, actuators.ctrl[0], j)]
        joints = [joint, *(j for j in alike if j != joint)]
        return cls(model.jnt_qposadr[joints].copy(), actuators)

    def towards(self, position: np.ndarray) -> np.ndarray:
        """Return the ctrl [..., 1] with which the jaw goes to joint positions [..., 1]."""
        return self.actuators.towards(position)


@dataclass(frozen=True, eq=False)
class Bodies:
    """Where the bodies of pose streams stand: '<body>_pose' is of the body `<body>`."""

    free: dict[str, int]  # {stream: address in MjData.qpos}: position [3], orientation [4]
    marks: dict[str, int]  # {stream: place in MjData.mocap_pos and mocap_quat}
    solid: bool  # whether something can touch one of the marks

    @classmethod
    def of(cls, model: mujoco.MjModel, streams: Iterable[str]) -> Self:
        """Find them. Raises SpecError where the scene lacks one, or where it cannot be placed."""
        free, marks, solid = {}, {}, False
        for stream in streams:
            name = stream.removesuffix('_pose')
            body = find(model, 'body', name)
            joint = model.body_jntadr[body] if body is not None else -1
            if body is not None and model.body_mocapid[body] >= 0:
                marks[stream] = int(model.body_mocapid[body])
                of_body = model.geom_bodyid == body
                solid |= bool((model.geom_contype | model.geom_conaffinity)[of_body].any())
            elif joint >= 0 and model.jnt_type[joint] == _FREE:
                free[stream] = int(model.jnt_qposadr[joint])
            else:
                raise SpecError(
                    f'the scene needs a mocap body {name!r}, or one of that name with a free joint'
                )
        return cls(free, marks, solid)

    def place(self, data: mujoco.MjData, poses: Mapping[str, tuple]) -> None:
        """Put bodies where `poses` {stream: (position [3], orientation [4], ...)} say."""
        for stream, (position, orientation, *_) in poses.items():
            if stream in self.free:
                first = self.free[stream]
                data.qpos[first : first + 7] = [*position, *orientation]
            else:
                data.mocap_pos[self.marks[stream]] = position
                data.mocap_quat[self.marks[stream]] = orientation

    def poses(self, data: mujoco.MjData) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return {stream: (position [3], orientation [4])} as they stand."""
        poses = {}
        for stream, first in self.free.items():
            pose = data.qpos[first : first + 7].copy()
            poses[stream] = pose[:3], pose[3:]
        for stream, mark in self.marks.items():
            poses[stream] = data.mocap_pos[mark].copy(), data.mocap_quat[mark].copy()
        return poses


def load_scene(name: str, timestep_s: float) -> mujoco.MjModel:
    """Compile the MJCF called `name`, see resources.model. Raises SpecError, UnknownName."""
    model = load_model(name)
    model.opt.timestep = timestep_s
    return model


def extent(model: mujoco.MjModel, body: str) -> np.ndarray | None:
    """Return the edges [3] [m] of the box about the boxes that a body is made of, in its frame.

    None: something else of it can be touched, or nothing.
    """
    first, count = (a[model.body(body).id] for a in (model.body_geomadr, model.body_geomnum))
    geoms = np.arange(first, first + count)
    geoms = geoms[(model.geom_contype[geoms] | model.geom_conaffinity[geoms]) != 0]
    if not len(geoms) or (model.geom_type[geoms] != mujoco.mjtGeom.mjGEOM_BOX).any():
        return None
    turned = quaternions.to_matrix(model.geom_quat[geoms])
    middles = model.geom_pos[geoms]
    halves = (np.abs(turned) @ model.geom_size[geoms, :, None])[..., 0]
    return (middles + halves).max(axis=0) - (middles - halves).min(axis=0)


def _actuator(model: mujoco.MjModel, joint: int) -> tuple[int, float]:
    """Return the id of the actuator that moves a joint, and its gear; -1 and 1 where none does.

    It acts on the joint itself or on a fixed tendon that the joint is part of; there, the others
    are taken to move as this one does, as the two fingers of a gripper. Raises SpecError for
    several, and for one whose force is no plain sum.
    """
    gears = {index: _gear(model, index, joint) for index in range(model.nu)}
    found = [index for index, gear in gears.items() if gear]
    if not found:
        return -1, 1.0
    known = [
        index
        for index in found
        if model.actuator_gaintype[index] == _FIXED
        and model.actuator_biastype[index] in _BIAS
        and model.actuator_dyntype[index] in _DYNAMICS
    ]
    if len(found) != 1 or not known:
        raise SpecError(
            f'joint {model.joint(joint).name!r} of the scene has {len(found)} actuators, '
            f'{len(known)} of them of kind position, velocity or motor; right is one of these, '
            'or none'
        )
    return found[0], gears[found[0]]


def _gear(model: mujoco.MjModel, actuator: int, joint: int) -> float:
    """Return an actuator's change of length per motion of a joint; 0: it does not move it."""
    kind, (target, _) = model.actuator_trntype[actuator], model.actuator_trnid[actuator]
    gear = float(model.actuator_gear[actuator, 0])
    if kind in _JOINT:
        return gear if target == joint else 0.0
    if kind != _TENDON:
        return 0.0
    first, count = model.tendon_adr[target], model.tendon_num[target]
    wraps = range(first, first + count)
    if any(model.wrap_type[wrap] != _WRAP_JOINT for wrap in wraps):
        return 0.0
    if all(model.wrap_objid[wrap] != joint for wrap in wraps):
        return 0.0
    return gear * float(sum(model.wrap_prm[wrap] for wrap in wraps))
