"""ControlLoop: observation, policy, limiter and session state in one object without ROS."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from robot_rl.control.actions import (
    applied_action,
    gripper_width,
    joint_target,
    require_supported,
)
from robot_rl.control.clocks import LONGEST_LEAD
from robot_rl.control.limiter import Limits, limit, require_finite
from robot_rl.control.observation import Chain, Observation, ObservationAssembler
from robot_rl.control.runtime import Policy
from robot_rl.errors import ContractMismatch, RobotRLError
from robot_rl.specs import Contract, RobotSpec, require_fit
from robot_rl.specs.contract import QUANTITIES


@dataclasses.dataclass(frozen=True, eq=False)
class Command:
    """What one tick decided.

    `target` [n]: joint positions within the limits, to be reached one control period later.
    `requested` and `applied` [A]: the policy's action, and what the limits left of it, both in
    contract units. `stamp_s`: that of the joint_states it was computed from. `observation`: what
    the policy saw. `width`: how far the gripper is to open [m]; None: the policy has no say in it.
    """

    target: np.ndarray
    requested: np.ndarray
    applied: np.ndarray
    stamp_s: float
    observation: Observation
    width: float | None = None


class _Decision(NamedTuple):
    """What a tick decides, the policy's next state, and how many samples had come by then."""

    command: Command
    state: dict[str, np.ndarray]
    version: int
    at_s: float = 0.0  # when it was there


class ControlLoop:
    """Runs a policy on streams, one tick a control period, on any clock.

    When an episode is prepared call observations.reset() and feed it (put) until nothing is
    missing; when it starts call begin(), then tick(), shortly before which prepare() may do its
    work. The stream command.position is the loop's own last target, at first the pose given to
    begin(), or where rebase() has put it. Raises ContractMismatch at once for a contract that
    does not fit the robot.
    """

    def __init__(
        self,
        contract: Contract,
        robot: RobotSpec,
        chain: Chain,
        policy: Policy,
        limits: Limits | None = None,
        joint_states_max_age_s: float = np.inf,
    ):
        require_served(contract, robot)
        self.contract, self.robot, self.policy = contract, robot, policy
        self.chain = chain
        self.limits = limits or Limits.from_spec(robot)
        self.observations = ObservationAssembler(contract, robot, chain, joint_states_max_age_s)
        self.steps = 0
        self._command: np.ndarray | None = None
        self._state: dict[str, np.ndarray] = {}
        self._prepared: _Decision | None = None

    def begin(self, measured: ArrayLike) -> None:
        """Start an episode at the measured joint positions [n]: step 0, initial state, no history.

        Samples stay: observations.reset() forgets those of the last episode.
        """
        command = self._pose('measured joint positions', measured)
        self.observations.reset_history()
        self._command, self._prepared = command, None
        self._state = self.policy.initial_state(1)
        self.steps = 0

    def rebase(self, command: ArrayLike) -> None:
        """Go on from joint positions [n] that somebody else has commanded the arm meanwhile.

        Otherwise a policy whose actions are relative would lead it back. State and history stay.
        """
        self._command, self._prepared = self._pose('applied command', command), None

    def prepare(self, now: Callable[[], float]) -> None:
        """Decide beforehand, on what has come by `now()` [s]: the next tick() has it at once.

        Without any effect until then, and not at all where the policy is not pure.
        """
        if self._command is not None and self.policy.is_pure:
            with contextlib.suppress(RobotRLError):  # the tick will say it, if it is still so
                self._prepared = self._decide(now())._replace(at_s=now())

    def is_prepared(self, now_s: float) -> bool:
        """Tell whether tick() has its decision already.

        It has not where another sample has come since, where one that it was made of has grown too
        old, or where it has waited for longer than for a tick that is on time.
        """
        prepared = self._prepared
        return (
            prepared is not None
            and prepared.version == self.observations.version
            and now_s - prepared.at_s < LONGEST_LEAD * self.contract.period_s
            and not self.observations.expired(now_s)
        )

    def tick(self, now_s: float) -> Command:
        """Decide once. Raises a RobotRLError, and commands nothing, where anything is amiss."""
        if self._command is None:
            raise ContractMismatch('control loop: tick before begin; it has no pose to start from')
        decision = self._prepared if self.is_prepared(now_s) else self._decide(now_s)
        self._prepared = None
        self.observations.keep(decision.command.observation)
        self._command, self._state = decision.command.target, decision.state
        self.steps += 1
        return decision.command

    def _decide(self, now_s: float) -> _Decision:
        """Return what the newest samples lead to."""
        version = self.observations.version
        observation, stamp_s = self.observations.assemble(now_s, self._command)
        batch = {name: values[None] for name, values in observation.items()}
        actions, state = self.policy.select(batch, self._state)
        requested = actions[0]
        target, applied, width = self._led(requested)
        command = Command(target, requested, applied, stamp_s, observation, width)
        return _Decision(command, state, version)

    def _pose(self, what: str, positions: ArrayLike) -> np.ndarray:
        positions = require_finite(what, positions)
        if positions.shape != (len(self.robot.joints),):
            raise ContractMismatch(
                f'{what}: shape {list(positions.shape)}, right is [{len(self.robot.joints)}]'
            )
        return self.limits.clip(positions)

    def _led(self, requested: np.ndarray) -> tuple[np.ndarray, np.ndarray, float | None]:
        """Return where an action leads within the limits, what these left of it, and the width."""
        contract, robot, chain = self.contract, self.robot, self.chain
        wanted = joint_target(contract, requested, self._command, robot, chain)
        target = limit(wanted, self._command, contract.period_s, self.limits)
        width = gripper_width(contract, requested, robot)
        applied = applied_action(contract, target, self._command, robot, chain, width)
        return target, applied, None if width is None else float(width)


def require_served(contract: Contract, robot: RobotSpec) -> None:
    """Raise ContractMismatch where an arm cannot serve a policy's contract."""
    require_fit(contract, _streams(contract, robot), where=f'robot {robot.name}')
    for field in contract.observation:
        if field.kind and field.quantity not in QUANTITIES[field.kind]:
            raise ContractMismatch(
                f'robot {robot.name}: observation {field.name}: no message brings '
                f'{field.source!r}; those of kind {field.kind!r} bring '
                + ', '.join(QUANTITIES[field.kind])
            )
    require_supported(contract, robot)


def _streams(contract: Contract, robot: RobotSpec) -> dict[str, tuple[str, ...]]:
    """Return the streams that an arm can have: its own, and whatever messages may bring."""
    brought = {
        field.stream: robot.joints if field.kind == 'joints' else ()
        for field in contract.observation
        if field.stream not in ('env', 'gripper')
    }
    own = {'joint_states': robot.joints, 'command': robot.joints, 'tool': ()}
    return brought | own | ({'gripper': ()} if robot.gripper else {})
