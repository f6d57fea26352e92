"""replay: gives the commands of a recorded episode again, at the times at which they were given.

They go through the guard, as those of any source. It ends when the last one is reached; with code
2, and a line, where the arm does not stand where the episode began, or somebody else takes it.
"""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pydantic
from diagnostic_msgs.msg import DiagnosticStatus
from std_msgs.msg import Bool, Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

from robot_rl.errors import RobotRLError, SpecError
from robot_rl.nodes import support
from robot_rl.nodes.main import End
from robot_rl.specs import RobotSpec, Spec
from robot_rl.storage.commands import RecordedCommands, recorded_commands
from robot_rl.storage.episode import EpisodeReader
from robot_rl.storage.samples import joint_state

# What the guard calls it: one of its `sources`.
SOURCE_NAME = 'replay'
# How often it looks whether the guard and the arm are there [s].
_POLL_S = 0.02
# Until the guard has said that it follows, after the first command [s].
_TAKEN_WITHIN_S = 0.5
# What the guard says while nobody else commands.
_OURS = (SOURCE_NAME, 'hold')
# So many commands in a row, none of which the guard follows, are refused, not late.
_REFUSED = 10


class Parameters(Spec):
    """The ROS parameters of replay."""

    episode: str = pydantic.Field('', description="the recorded episode's directory")
    robot: str = pydantic.Field(
        '', description="robot in config/robots or a YAML file; empty: the episode's"
    )
    start_gate: pydantic.PositiveFloat = pydantic.Field(
        0.1,
        le=1.0,
        description='nothing is replayed where a joint is farther than this from where the '
        'episode began [rad or m]',
    )
    ready_timeout_s: pydantic.PositiveFloat = pydantic.Field(
        30.0, le=3600, description='how long it waits for the guard and for joint states [s]'
    )


class Replay(support.WorkingNode):
    """Publishes on replay/command from a thread that does nothing else."""

    def __init__(self) -> None:
        super().__init__('replay')
        support.declare_parameters(self, Parameters)
        self._given = support.read_parameters(self, Parameters)
        if not self._given.episode:
            raise SpecError('parameter episode: the directory of a recorded episode is needed')
        episode = EpisodeReader(self._given.episode)
        self._commands, self._id = recorded_commands(episode), episode.header.id
        recorded = episode.header.robot_spec
        self._robot = RobotSpec.load(self._given.robot) if self._given.robot else recorded
        if self._robot.joints != recorded.joints:
            raise SpecError(
                f'{self._robot.name} has joints {list(self._robot.joints)}, the episode is of '
                f'{recorded.name} with {list(recorded.joints)}'
            )
        self._joint_states = support.JointStates(self, self._robot)
        self._publisher = self.create_publisher(
            JointTrajectory, support.command_topic(SOURCE_NAME), support.COMMAND
        )
        self._gripper = self.create_publisher(
            Float64MultiArray, support.gripper_topic(SOURCE_NAME), support.COMMAND
        )
        self._source, self._stopped = '', False  # as the guard says
        self._unheard = 0  # commands since the guard followed one
        self._given_yet, self._latest_s = 0, 0.0  # commands to the arm, and how late one was
        self._diagnostics = support.Diagnostics(self, self._robot.name)
        self._diagnostics.repeat(self._report)
        reader = support.LATCHED_READER
        self.create_subscription(String, support.SOURCE, self._on_source, reader)
        self.create_subscription(Bool, 'command_guard/estop_active', self._on_estop, reader)

    def start(self, end: End) -> None:
        """Begin to wait for the guard and the arm."""
        self._end = end
        super().start(end)

    @property
    def _latest_ms(self) -> float:
        return round(self._latest_s * 1e3, 1)

    def _report(self) -> None:
        """Once a second: how far it is, and how late the latest command was."""
        words = 'replaying' if self._given_yet else 'waiting for the guard and the arm'
        values = {'episode': self._id, 'given': self._given_yet, 'latest_ms': self._latest_ms}
        values |= {'commands': len(self._commands.time), 'source': self._source}
        self._diagnostics.publish(DiagnosticStatus.OK, words, values)

    def _on_source(self, message: String) -> None:
        self._source = message.data
        if self._source == SOURCE_NAME:
            self._unheard = 0

    def _on_estop(self, message: Bool) -> None:
        self._stopped = message.data

    def _work(self, stop: threading.Event) -> None:
        measured = self._when_ready(stop)
        if measured is None:
            return
        _require_near(self._robot, measured, self._commands.start, self._given.start_gate)
        self._play(stop)
        if stop.is_set():
            return
        told = {'episode': self._id, 'commands': len(self._commands.time)}
        print(json.dumps(told | {'latest_ms': self._latest_ms}), flush=True)
        self._end(0)

    def _when_ready(self, stop: threading.Event) -> np.ndarray | None:
        """Return where the arm stands [n] once the guard hears commands; None: stopped before."""
        until = time.monotonic() + self._given.ready_timeout_s
        while not stop.wait(_POLL_S):
            state = self._joint_states.newest()
            guarded = self._publisher.get_subscription_count() > 0
            if state is not None and guarded and self._source == 'idle':
                try:
                    return joint_state(state, self._robot.driver_joints)['position']
                except ValueError as error:
                    raise RobotRLError(f'replay: joint states: {error}') from None
            if time.monotonic() > until:
                missing = 'no joint states' if state is None else 'the guard is not free'
                said = f'the guard says {self._source!r}' if guarded else 'no guard listens'
                raise RobotRLError(f'replay: {missing}; {said}')
        return None

    def _play(self, stop: threading.Event) -> None:
        """Give every command at its time."""
        commands: RecordedCommands = self._commands
        began = time.monotonic()
        for at, message in self._messages():
            if stop.wait(max(0.0, began + at - time.monotonic())):
                return
            self._latest_s = max(self._latest_s, time.monotonic() - began - at)
            if isinstance(message, Float64MultiArray):
                self._gripper.publish(message)
                continue
            self._require_ours(at)
            message.header.stamp = self.get_clock().now().to_msg()
            self._publisher.publish(message)
            self._given_yet += 1
        stop.wait(commands.duration[-1] + _TAKEN_WITHIN_S)  # until it is reached
        self._require_ours(commands.time[-1] + _TAKEN_WITHIN_S)

    def _messages(self) -> list[tuple[float, JointTrajectory | Float64MultiArray]]:
        """Return what is to be said, and when, in that order."""
        commands, found = self._commands, []
        for at, target, duration in zip(
            commands.time, commands.target, commands.duration, strict=True
        ):
            message = support.trajectory(self._robot.joints, duration)
            message.points[0].positions = support.doubles(target)
            found.append((float(at), message))
        if self._robot.gripper:
            for at, width in zip(commands.width_time, commands.width, strict=True):
                found.append((max(0.0, float(at)), Float64MultiArray(data=[float(width)])))
        return sorted(found, key=lambda item: item[0])

    def _require_ours(self, at: float) -> None:
        """Raise RobotRLError where somebody else commands the arm, or nobody may."""
        if self._stopped:
            raise RobotRLError(f'replay: the emergency stop was called, {at:.1f} s in')
        self._unheard = 0 if self._source == SOURCE_NAME else self._unheard + 1
        if self._unheard > _REFUSED:
            raise RobotRLError(
                f'replay: the guard has refused what came, {at:.1f} s in; its log says why'
            )
        if at > _TAKEN_WITHIN_S and self._source not in _OURS:
            raise RobotRLError(
                f'replay: the guard follows {self._source!r}, {at:.1f} s in; is replay among its '
                'sources?'
            )


def _require_near(robot: RobotSpec, measured: np.ndarray, start: np.ndarray, gate: float) -> None:
    """Raise RobotRLError where the arm stands far from where the episode began."""
    far = np.abs(measured - start)
    joint = int(far.argmax())
    if far[joint] > gate:
        raise RobotRLError(
            f'replay: {robot.joints[joint]} stands at {measured[joint]:.3f}, and the episode '
            f'began at {start[joint]:.3f}: more than {gate:g} away; bring the arm there first'
        )
