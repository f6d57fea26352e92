"""The one state machine that runs an episode, anywhere: simulation, twin or arm."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from robot_rl.errors import RobotRLError
from robot_rl.specs import Spec

State = Literal['idle', 'prepare', 'ready', 'running', 'ended']
Result = Literal['success', 'failure', 'truncated', 'estop', 'discarded']

# What each state may become. An episode that never ran has nothing to be judged by: from
# prepare and ready it can only be thrown away or stopped.
_NEXT: dict[State, tuple[State, ...]] = {
    'idle': ('prepare',),
    'prepare': ('ready', 'ended'),
    'ready': ('running', 'ended'),
    'running': ('ended',),
    'ended': ('prepare', 'idle'),
}
_WITHOUT_A_RUN = ('discarded', 'estop')


class IllegalTransition(RobotRLError, RuntimeError):
    """The session was asked for a state that the present one does not lead to."""


class SessionInfo(Spec):
    """What everybody obeys: the state and the identity of the episode in hand."""

    state: State = 'idle'
    # The episode's unique id, which also names its directory.
    episode: str = ''
    # Where the episode stands in the present run of episodes, from 0.
    index: pydantic.NonNegativeInt = 0
    # The id of the recorded episode in the place of which this one is run; that is set aside.
    instead_of: str = ''
    task: str = ''
    # Who commands: 'policy', 'teleop', ...
    source: str = ''
    # The policy's id or 'random', 'constant'.
    policy: str = ''
    # The policy's file, or 'random', 'constant': what the node policy is to run.
    policy_file: str = ''
    # The SHA-256 of the policy's file, in hex; '' where there is none.
    policy_sha256: str = ''
    # Fixes the initial condition; None: the arm starts as it stands.
    seed: pydantic.NonNegativeInt | None = None
    # Ticks after which the policy stops by itself; None: someone ends the episode.
    max_steps: pydantic.PositiveInt | None = None
    # Set in state 'ended', and only there.
    result: Result | None = None
    # Why it ended, in words.
    reason: str = ''
    operator: str = ''
    robot: str = ''
    # Contract.to_dict() of the source, so that a recording explains itself.
    contract: dict[str, Any] | None = None
    tags: tuple[str, ...] = ()

    @pydantic.model_validator(mode='after')
    def _result_belongs_to_the_end(self) -> SessionInfo:
        if (self.result is not None) != (self.state == 'ended'):
            raise ValueError(
                f'result {self.result!r} does not go with state {self.state!r}: '
                'an ended episode has a result, and no other has one'
            )
        return self


class Session:
    """Walks idle -> prepare -> ready -> running -> ended -> prepare ... and refuses the rest.

    Every method returns the new SessionInfo, or raises IllegalTransition and changes nothing.
    """

    def __init__(self) -> None:
        self.info = SessionInfo()

    def prepare(self, episode: str, **fields: Any) -> SessionInfo:
        """Begin the episode called `episode`; `fields` are further fields of SessionInfo."""
        self._require('prepare')
        self.info = SessionInfo.parse({**fields, 'state': 'prepare', 'episode': episode})
        return self.info

    def ready(self) -> SessionInfo:
        """Everybody has prepared."""
        return self._move('ready')

    def start(self) -> SessionInfo:
        """Let the episode run."""
        return self._move('running')

    def end(self, result: Result, reason: str = '') -> SessionInfo:
        """End the episode; before it ran it can only be discarded or stopped."""
        self._require('ended')
        if self.info.state != 'running' and result not in _WITHOUT_A_RUN:
            raise IllegalTransition(
                f'session: an episode in state {self.info.state!r} has not run; it can end as '
                f'{" or ".join(map(repr, _WITHOUT_A_RUN))}, not as {result!r}'
            )
        return self._move('ended', result=result, reason=reason)

    def reset(self) -> SessionInfo:
        """Go back to idle after an episode, forgetting it."""
        self._require('idle')
        self.info = SessionInfo()
        return self.info

    def _require(self, state: State) -> None:
        allowed = _NEXT[self.info.state]
        if state not in allowed:
            raise IllegalTransition(
                f'session: {self.info.state!r} cannot become {state!r}, '
                f'only {" or ".join(map(repr, allowed))}'
            )

    def _move(self, state: State, **changes: Any) -> SessionInfo:
        self._require(state)
        self.info = self.info.replace(state=state, **changes)
        return self.info
