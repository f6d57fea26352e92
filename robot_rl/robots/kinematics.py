"""Forward and inverse kinematics of a chain of joints, read once from an MJCF, in pure NumPy."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Self

import mujoco
import numpy as np

from robot_rl.errors import RobotRLError, SpecError
from robot_rl.robots import quaternions
from robot_rl.robots.mjcf import find_tool, load_model, named
from robot_rl.specs import Box, RobotSpec

_HINGE, _SLIDE = int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE)
# Steps per start, and starts, before a pose is called unreachable.
_STEPS, _STARTS = 100, 20
# Damping per squared error (Sugihara, IEEE T-RO 27(5), 2011): bold near the goal, careful far off.
_DAMPING = 0.05
# Largest change of a joint in one step [rad or m]: keeps far targets from overshooting.
_LARGEST_STEP = 0.4
# Steps and damping of one displacement: two leave a hundred-thousandth of it where the smallest
# singular value is 0.3, as amid the workspace of an arm.
_DIFFERENTIAL_STEPS, _DIFFERENTIAL_DAMPING = 2, 2e-4
# How far from the walls of its space a displaced tool stays [m]: from one place to the next joints
# lead it on an arc, which bulges by less.
_WALL_MARGIN = 0.001
_POSITION_TOLERANCE, _ROTATION_TOLERANCE = 1e-6, 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class KinematicChain:
    """A serial chain from a base frame to a tool.

    In the chain's own order k = 0..n-1, joint k's frame stands at the constant transform
    `fixed[k]` from joint k-1's moved frame (from the base for k = 0); the tool stands at
    `fixed[n]` from the last. Joint k turns about, or slides along, its unit `axes[k]`.
    """

    joints: tuple[str, ...]  # order of q
    order: tuple[int, ...]  # where the chain's k-th joint stands in q
    fixed: np.ndarray  # [n + 1, 4, 4]
    axes: np.ndarray  # [n, 3], in the joint's own frame
    hinge: np.ndarray  # [n] bool; else slide
    offset: np.ndarray  # [n] joint value at which the joint's transform is the identity
    lower: np.ndarray  # [n] limits, order of q
    upper: np.ndarray  # [n]

    @classmethod
    def from_spec(cls, robot: RobotSpec) -> Self:
        """Read the chain of `robot` from its MJCF, in the robot's base frame and joint order.

        Raises SpecError where the model lacks the joints, the tool or the base frame.
        """
        model = load_model(robot.mjcf)
        chain = cls.from_model(model, robot.model_joints, robot.tool_site, robot.model_base)
        lower = np.maximum(chain.lower, robot.lower)
        upper = np.minimum(chain.upper, robot.upper)
        return dataclasses.replace(chain, joints=robot.joints, lower=lower, upper=upper)

    @classmethod
    def from_model(
        cls,
        model: mujoco.MjModel,
        joints: Sequence[str],
        tool: str,
        base: str | None = None,
    ) -> Self:
        """Read the chain from body `base` (None: the world) to `tool`; `joints` orders q.

        `tool` is a site or, where no site has that name, a body.

        Raises SpecError where a name is unknown, or `joints` are not the chain's joints.
        """
        root = 0 if base is None else named(model, 'body', base)
        fixed, ids = _walk(model, tool, root)
        found = [model.joint(i).name for i in ids]
        if sorted(found) != sorted(joints):
            raise SpecError(
                f'joints {list(joints)} are not those between {base or "the world"} and tool '
                f'{tool!r}, which are {found}'
            )
        limits = np.array([_limits(model, i) for i in ids]).reshape(-1, 2)
        back = [found.index(joint) for joint in joints]
        return cls(
            joints=tuple(joints),
            order=tuple(list(joints).index(name) for name in found),
            fixed=np.array(fixed),
            axes=model.jnt_axis[ids].reshape(-1, 3).copy(),
            hinge=model.jnt_type[ids] == _HINGE,
            offset=model.qpos0[model.jnt_qposadr[ids]].copy(),
            lower=limits[back, 0],
            upper=limits[back, 1],
        )

    @functools.cached_property
    def reach(self) -> np.ndarray:
        """How far any of `points` moves, at most, when a joint does by 1 rad or m [n] [m].

        That is how far the last of them may be from the joint; or 1, for a slide.
        """
        links = np.linalg.norm(self.fixed[1:, :3, 3], axis=1)
        places = np.abs(np.stack([self.lower, self.upper]) - self.offset[self._back]).max(axis=0)
        slid = np.where(self.hinge, 0.0, places[list(self.order)])
        behind = np.cumsum((links + np.append(slid[1:], 0.0))[::-1])[::-1]
        return np.where(self.hinge, behind, 1.0)[self._back]

    @property
    def _back(self) -> list[int]:
        """Where the joints of q stand in the chain."""
        return np.argsort(self.order).tolist()

    def forward(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the tool's position [..., 3] [m] and orientation wxyz [..., 4] at q [..., n]."""
        return _pose_of(self._frames(q)[-1])

    def position(self, q: np.ndarray) -> np.ndarray:
        """Return the tool's position [..., 3] [m] at q [..., n]."""
        return self._frames(q)[-1][..., :3, 3].copy()

    def points(self, q: np.ndarray) -> np.ndarray:
        """Return where each joint and, last, the tool stand [..., n + 1, 3] [m] at q [..., n]."""
        return np.moveaxis(self._frames(q)[..., :3, 3], 0, -2).copy()

    def jacobian(self, q: np.ndarray) -> np.ndarray:
        """Return the geometric Jacobian [..., 6, n] at q [..., n]: linear, then angular."""
        return self._jacobian_of(self._frames(q))

    def displaced(
        self, q: np.ndarray, displacement: np.ndarray, space: Box | None = None
    ) -> np.ndarray:
        """Return joint values [..., n] at which the tool is displaced against where it is at q.

        `displacement` [..., 6]: metres, then the rotation vector [rad], both in the base frame.
        The tool does not leave `space`, nor joints their limits. Damped least squares as in
        `inverse`, with a constant damping, which bounds the joints' steps near singular poses: the
        tool falls short there.
        """
        q, displacement = np.asarray(q, dtype=float), np.asarray(displacement, dtype=float)
        frames = self._frames(q)
        error = _within(space, frames[-1][..., :3, 3], displacement)
        goal = _moved(frames[-1], error)
        for step in range(_DIFFERENTIAL_STEPS):
            if step:
                frames = self._frames(q)
                error = _between(frames[-1], goal)
            jacobian = self._jacobian_of(frames)
            transposed = np.swapaxes(jacobian, -1, -2)
            gram = jacobian @ transposed + _DIFFERENTIAL_DAMPING * np.eye(6)
            q = q + (transposed @ np.linalg.solve(gram, error[..., None]))[..., 0]
            q = np.minimum(np.maximum(q, self.lower), self.upper)
        return q

    def displacement(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Return how the tool is displaced [..., 6] from joint values [..., n] to others."""
        return _between(self._frames(start)[-1], self._frames(end)[-1])

    def inverse(
        self,
        position: np.ndarray,
        quaternion: np.ndarray | None = None,
        start: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return joint values [..., n] within the limits whose tool stands at `position` [..., 3].

        With `quaternion` [..., 4] (wxyz) the orientation is met too. Damped least squares
        (Wampler, IEEE SMC 16(1), 1986) from `start` [..., n] (default: the middle of the limits),
        then from fixed random starts; each pose by itself, whatever stands beside it. Raises
        RobotRLError where none arrives: the pose is then most likely unreachable.
        """
        rng, position = np.random.default_rng(0), np.asarray(position, dtype=float)
        shape = (*position.shape[:-1], len(self.joints))
        lower, upper = np.clip(self.lower, -np.pi, np.pi), np.clip(self.upper, -np.pi, np.pi)
        q = np.broadcast_to((lower + upper) / 2 if start is None else start, shape)
        q, turned = q.reshape(-1, shape[-1]).copy(), quaternion is not None
        way = quaternion if turned else np.array([1.0, 0, 0, 0])
        goal = _transform(position, np.broadcast_to(way, (*shape[:-1], 4))).reshape(-1, 4, 4)
        missing = np.arange(len(q))
        for _ in range(_STARTS):
            q[missing], arrived = self._descend(q[missing], goal[missing], rows=6 if turned else 3)
            missing = missing[~arrived]
            if not missing.size:
                return q.reshape(shape)
            q[missing] = rng.uniform(lower, upper)
        pose = f'position {goal[missing[0], :3, 3].round(4).tolist()}'
        if turned:
            way = quaternions.from_matrix(goal[missing[0], :3, :3])
            pose += f' with orientation wxyz {way.round(4).tolist()}'
        raise RobotRLError(f'inverse kinematics: no joint positions within limits reach {pose}')

    def _descend(
        self, q: np.ndarray, goal: np.ndarray, rows: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Follow damped least-squares steps from q [M, n]; also tell which arrive -> bool [M].

        Of the error, which is the way to `goal` [M, 4, 4], the first `rows` count.
        """
        q, going = q.copy(), np.arange(len(q))
        for _ in range(_STEPS):
            frames = self._frames(q[going])
            error = _between(frames[-1], goal[going])[:, :rows]
            far = np.linalg.norm(error[:, :3], axis=1) >= _POSITION_TOLERANCE
            far |= np.linalg.norm(error[:, 3:], axis=1) >= _ROTATION_TOLERANCE
            going, error = going[far], error[far]
            if not going.size:
                break
            jacobian = self._jacobian_of(frames[:, far])[:, :rows]
            transposed = np.swapaxes(jacobian, -1, -2)
            damping = _DAMPING * np.square(error).sum(axis=1)[:, None, None]
            gram = jacobian @ transposed + damping * np.eye(rows)
            step = (transposed @ np.linalg.solve(gram, error[..., None]))[..., 0]
            largest = np.abs(step).max(axis=1, keepdims=True)
            step *= np.minimum(1.0, _LARGEST_STEP / np.maximum(largest, 1e-12))
            q[going] = np.clip(q[going] + step, self.lower, self.upper)
        return q, ~np.isin(np.arange(len(q)), going)

    def _frames(self, q: np.ndarray) -> np.ndarray:
        """Return each joint's frame, moved by the joint, and the tool's [n + 1, ..., 4, 4]."""
        q, n = np.asarray(q, dtype=float), len(self.joints)
        if q.shape[-1:] != (n,):
            raise ValueError(f'q has shape {q.shape}, expected [..., {n}]')
        value = q.reshape(-1, n).T[list(self.order)] - self.offset[:, None]
        terms = np.stack([np.ones_like(value), np.sin(value), 1 - np.cos(value), value], axis=-1)
        local = (terms @ self._terms).reshape(n, *q.shape[:-1], 4, 4)
        frames = np.empty((n + 1, *local.shape[1:]))
        frames[0] = local[0]
        for k in range(1, n):
            np.matmul(frames[k - 1], local[k], out=frames[k])
        np.matmul(frames[-2], self.fixed[-1], out=frames[-1])
        return frames

    def _jacobian_of(self, frames: np.ndarray) -> np.ndarray:
        joints, (n, *lead) = frames[:-1], frames[:-1].shape[:-2]
        directions = joints.reshape(n, -1, 4) @ self._directions
        axes = directions.reshape(n, *lead, 4)[..., :3]
        linear = np.cross(axes, frames[-1][..., :3, 3] - joints[..., :3, 3])
        slides = ~self.hinge
        linear[slides], axes[slides] = axes[slides], 0.0
        columns = np.empty((n, *lead, 6))
        columns[self.order, ..., :3], columns[self.order, ..., 3:] = linear, axes
        return np.moveaxis(columns, 0, -1)

    @functools.cached_property
    def _directions(self) -> np.ndarray:
        """The axes [n, 4, 1] in homogeneous coordinates: a direction, which no place moves."""
        return np.pad(self.axes, ((0, 0), (0, 1)))[..., None]

    @functools.cached_property
    def _terms(self) -> np.ndarray:
        """The constants [n, 4, 16] by which each joint's transform from the one before it is

            terms[0] + sin(v) terms[1] + (1 - cos(v)) terms[2] + v terms[3]

        at its value v: Rodrigues' formula for hinges; the last alone moves a slide.
        """
        hinge = self.hinge[:, None]
        x, y, z = np.where(hinge, self.axes, 0.0).T
        zero = np.zeros_like(x)
        terms = np.zeros((4, len(self.axes), 4, 4))
        terms[0] = np.eye(4)
        cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(-1, 3, 3)
        terms[1, :, :3, :3], terms[2, :, :3, :3] = cross, cross @ cross
        terms[3, :, :3, 3] = np.where(hinge, 0.0, self.axes)
        return np.swapaxes(self.fixed[:-1] @ terms, 0, 1).reshape(-1, 4, 16)


def _walk(model: mujoco.MjModel, tool: str, root: int) -> tuple[list[np.ndarray], list[int]]:
    """Follow the bodies from `tool` up to `root` -> constant transforms [n + 1], joint ids [n]."""
    fixed: list[np.ndarray] = []
    ids: list[int] = []
    body, since = _tool(model, tool)
    while body != root:
        if body == 0:
            raise SpecError(f'tool {tool!r} does not hang below {model.body(root).name!r}')
        first, count = model.body_jntadr[body], model.body_jntnum[body]
        for joint in reversed(range(first, first + count)):
            anchor = _transform(model.jnt_pos[joint], np.array([1.0, 0, 0, 0]))
            fixed.insert(0, np.linalg.inv(anchor) @ since)
            ids.insert(0, joint)
            since = anchor
        since = _transform(model.body_pos[body], model.body_quat[body]) @ since
        body = model.body_parentid[body]
    fixed.insert(0, since)
    return fixed, ids


def _tool(model: mujoco.MjModel, name: str) -> tuple[int, np.ndarray]:
    """Return the body that carries the tool, and the tool's constant transform [4, 4] in it."""
    body, site = find_tool(model, name)
    if site is None:
        return body, np.eye(4)
    return body, _transform(model.site_pos[site], model.site_quat[site])


def _transform(position: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    """Return the homogeneous transforms [..., 4, 4] of positions and wxyz quaternions."""
    transform = np.zeros((*np.shape(position)[:-1], 4, 4))
    transform[..., :3, :3] = quaternions.to_matrix(quaternion)
    transform[..., :3, 3], transform[..., 3, 3] = position, 1.0
    return transform


def _limits(model: mujoco.MjModel, joint: int) -> np.ndarray:
    """Return a joint's range [2], infinite where it has none. Raises SpecError for a ball."""
    if model.jnt_type[joint] not in (_HINGE, _SLIDE):
        raise SpecError(f'joint {model.joint(joint).name!r} is neither a hinge nor a slide')
    if model.jnt_limited[joint]:
        return model.jnt_range[joint].copy()
    return np.array([-np.inf, np.inf])


def _pose_of(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return position [..., 3] and orientation [..., 4] of a frame [..., 4, 4]."""
    return frame[..., :3, 3].copy(), quaternions.from_matrix(frame[..., :3, :3])


def _within(space: Box | None, here: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """Return what of a displacement [..., 6] from `here` [..., 3] does not leave `space`."""
    if space is None:
        return displacement
    # An arm that stands outside comes back as fast as it is moved.
    low, high = np.add(space.lower, _WALL_MARGIN), np.subtract(space.upper, _WALL_MARGIN)
    way = np.linalg.norm(displacement[..., :3], axis=-1, keepdims=True)
    place = np.maximum(here + displacement[..., :3], np.minimum(low, here + way))
    place = np.minimum(place, np.maximum(high, here - way))
    return np.concatenate([place - here, displacement[..., 3:]], axis=-1)


def _moved(frame: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """Return a frame [..., 4, 4] moved by a displacement [..., 6]."""
    moved = frame.copy()
    turn = quaternions.to_matrix(quaternions.from_rotation_vector(displacement[..., 3:]))
    moved[..., :3, 3] += displacement[..., :3]
    moved[..., :3, :3] = turn @ frame[..., :3, :3]
    return moved


def _between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the displacement [..., 6] that leads from one frame [..., 4, 4] to another."""
    turn = end[..., :3, :3] @ np.swapaxes(start[..., :3, :3], -1, -2)
    rotation = quaternions.to_rotation_vector(quaternions.from_matrix(turn))
    return np.concatenate([end[..., :3, 3] - start[..., :3, 3], rotation], axis=-1)
