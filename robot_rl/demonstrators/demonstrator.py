"""What demonstrators have in common: from where the tool is to go to an action of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np

from robot_rl.control.actions import applied_action
from robot_rl.robots import quaternions
from robot_rl.sim.task import ArmTask
from robot_rl.specs import Contract, PolicyCard
from robot_rl.specs.contract import FROM_TOOL, TWIST

Arrays = dict[str, np.ndarray]

# The share of the way that is commanded in a decision.
SHARE = 0.25
UP = np.array([0.0, 0.0, 1.0])
# How long a disturbance of the action lasts [s].
NOISE_LASTS_S = 0.25
# Damping of the steps towards a point, as of KinematicChain.displaced.
_DAMPING = 2e-3


class View(NamedTuple):
    """What is seen at one moment, of B arms; in base_frame.

    An arm follows its commands late, by some 0.05 s, and swings. Who corrects by where it is
    measured makes that worse: ways begin where it has been commanded to.
    """

    tool: np.ndarray  # [B, 3] where the tool is commanded to be [m]
    yaw: np.ndarray  # [B] how it is to be turned about z [rad]
    measured: np.ndarray  # [B, 3] where the tool is [m]
    measured_yaw: np.ndarray  # [B]
    fields: Mapping[str, np.ndarray]  # the contract's

    def place(self, body: str) -> np.ndarray:
        """Return where an object or a goal is [B, 3] [m]."""
        return self.measured + self.from_tool(body)

    def from_tool(self, body: str) -> np.ndarray:
        """Return where an object or a goal is, from where the tool is [B, 3] [m]."""
        return self.fields[f'{body}_{FROM_TOOL}']

    def to(self, place: np.ndarray) -> np.ndarray:
        """Return the way of the tool to a place [B, 3]."""
        return place - self.tool

    def carrying(self, body: str, place: np.ndarray) -> np.ndarray:
        """Return the way by which a body that moves with the tool comes to a place [B, 3]."""
        return place - self.tool - self.from_tool(body)

    @property
    def lag(self) -> np.ndarray:
        """How far the tool is from where it is commanded to be [B] [m]."""
        return np.linalg.norm(self.tool - self.measured, axis=1)

    def yaw_of(self, body: str) -> np.ndarray:
        """Return how a body is turned about z [B] [rad]."""
        return _yaw(self.fields[f'{body}_orientation'])

    def turn_to(self, body: str) -> np.ndarray:
        """Return the shortest turn of the tool [B] [rad] that squares it with a body."""
        return _quarter(self.yaw_of(body) - self.yaw)

    def turn_carrying(self, body: str, other: str) -> np.ndarray:
        """Return the turn [B] [rad] that squares a body that moves with the tool with another."""
        held = self.yaw_of(body) - self.measured_yaw
        return _quarter(self.yaw_of(other) - held - self.yaw)


class Move(NamedTuple):
    """Where the tool is to go from where it is, and how far its gripper is to open."""

    way: np.ndarray  # [B, 3] [m]
    turn: np.ndarray | float = 0.0  # [B] about z [rad]
    width: np.ndarray | float = 0.0  # [B] [m]


class Demonstrator:
    """A policy written by hand; see control.runtime.Policy.

    A task's own class says where to go (`_move`), by what is seen and by what it remembers of the
    episode. `noise` makes it worse: disturbances of its actions, with this share of their bounds
    as standard deviation, each of which lasts for a while.
    """

    # Whether the tool keeps its orientation but for turns about z, or only comes to places.
    upright: ClassVar[bool] = True

    def __init__(self, task: ArmTask, noise: float = 0.0, seed: int = 0):
        self.task, self._noise = task, noise
        self.is_pure = not noise
        contract = task.seeing('poses').contract()
        self.card = PolicyCard(id='scripted', contract=contract, agent='scripted', task=task.name)
        self._rng = np.random.default_rng(seed)
        self._bounds = np.maximum(-contract.action_lower, contract.action_upper)
        grips = [field.kind == 'gripper' for field in contract.action for _ in field.names]
        self._of_arm = ~np.array(grips)

    @property
    def contract(self) -> Contract:
        """The task's, with poses: it sees no pictures."""
        return self.card.contract

    def initial_state(self, batch: int) -> Arrays:
        """Return what is remembered of an episode that begins: {name: [B, ...]}."""
        return {'noise': np.zeros((batch, self.contract.action_size))}

    def select(self, observation: Mapping[str, np.ndarray], state: Arrays) -> tuple:
        """Return the action [B, A] in contract units, float32, and what is remembered."""
        observation = {name: np.asarray(v, np.float64) for name, v in observation.items()}
        poses = [self.task.chain.forward(observation[n]) for n in ('command', 'joint_position')]
        (tool, way), (measured, measured_way) = poses
        view = View(tool, _yaw(way), measured, _yaw(measured_way), observation)
        move, state = self._move(view, state)
        action = self._action(observation['command'], move)
        if self._noise:
            keeps = np.exp(-self.contract.period_s / NOISE_LASTS_S)
            fresh = self._rng.normal(size=action.shape) * np.sqrt(1 - keeps**2)
            state = {**state, 'noise': keeps * state['noise'] + fresh}
            disturbance = self._noise * self._bounds * state['noise']
            action = action + np.where(self._of_arm, disturbance, 0.0)
        low, high = self.contract.action_lower, self.contract.action_upper
        return np.clip(action, low, high).astype(np.float32), state

    def _move(self, view: View, state: Arrays) -> tuple[Move, Arrays]:
        raise NotImplementedError

    def _action(self, command: np.ndarray, move: Move) -> np.ndarray:
        """Return the action [B, A] that takes the arm a period's part of the way.

        Where bounds are in the way it is slower, in the same direction.
        """
        task, contract, period_s = self.task, self.contract, self.contract.period_s
        batch = len(command)
        step = np.zeros((batch, 6))
        step[:, :3] = move.way
        step[:, 5] = move.turn
        step *= SHARE
        if self.upright:
            step *= self._slower(step / period_s)
            target = task.chain.displaced(command, step, task.robot.workspace)
        else:
            target = self._towards(command, step[:, :3])
        width = np.broadcast_to(move.width, batch)
        action = applied_action(contract, target, command, task.robot, task.chain, width)
        excess = np.abs(action / self._bounds)[:, self._of_arm].max(axis=1, keepdims=True)
        return np.where(self._of_arm, action / np.maximum(excess, 1.0), action)

    def _slower(self, twist: np.ndarray) -> np.ndarray:
        """Return by which factors [B, 1] twists [B, 6] fit the bounds of the task's."""
        bounds = np.array(list(self.task.config.max_twist.values()))
        axes = [TWIST.index(name) for name in self.task.config.max_twist]
        excess = np.abs(twist[:, axes] / bounds).max(axis=1, keepdims=True)
        return 1 / np.maximum(excess, 1.0)

    def _towards(self, command: np.ndarray, way: np.ndarray) -> np.ndarray:
        """Return joint positions [B, n] with the tool nearer by `way` [B, 3], turned anyhow."""
        chain = self.task.chain
        jacobian = chain.jacobian(command)[:, :3]
        transposed = np.swapaxes(jacobian, -1, -2)
        gram = jacobian @ transposed + _DAMPING * np.eye(3)
        step = (transposed @ np.linalg.solve(gram, way[..., None]))[..., 0]
        return np.clip(command + step, chain.lower, chain.upper)


def _quarter(turn: np.ndarray) -> np.ndarray:
    """Return a turn about z less whole quarters: in [-45 deg, 45 deg)."""
    return (turn + np.pi / 4) % (np.pi / 2) - np.pi / 4


def _yaw(orientation: np.ndarray) -> np.ndarray:
    """Return where the x axis of orientations [..., 4] points, seen from above [...] [rad]."""
    x = quaternions.to_matrix(orientation)[..., :, 0]
    return np.arctan2(x[..., 1], x[..., 0])
