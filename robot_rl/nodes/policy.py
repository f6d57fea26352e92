"""policy: a lifecycle node that runs a policy, tick by tick, while an episode runs."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from typing import Literal, NamedTuple, Self

import pydantic
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from robot_rl import registry
from robot_rl.control.clocks import PreparingClock
from robot_rl.control.loop import Command, ControlLoop
from robot_rl.control.runtime import BUILT_IN, Policy, identify, load_policy
from robot_rl.control.session import SessionInfo
from robot_rl.errors import ContractMismatch, RobotRLError
from robot_rl.nodes import support
from robot_rl.nodes.main import End
from robot_rl.nodes.streams import Streams
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.specs import Contract, RobotSpec, Spec
from robot_rl.specs.contract import HEARD_WITHIN

# How often samples are looked for while an episode waits for them [s].
POLL_S = 0.002
# How long an episode that was told to run waits for fresh samples of every stream [s].
FRESH_WITHIN_S = 2.0
# How often it is said what an episode waits for [s].
SAY_AFTER_S = 1.0
# As Loaded.identity.
NO_POLICY = '', ''


class Parameters(Spec):
    """The ROS parameters of policy."""

    policy: str = pydantic.Field(
        'constant',
        description="an .onnx file, a promoted name, one in pretrained/, 'random', 'constant' or "
        "'scripted'; another one is loaded when the session prepares an episode with it",
    )
    source: Literal['policy', 'teleop'] = pydantic.Field(
        'policy',
        description="as whom it commands: 'teleop' stands in for a person, in episodes that are "
        "demonstrations, and publishes what a person's device does",
    )
    robot: str = pydantic.Field(
        'ur5e', description='robot in config/robots or a YAML file; @<tf_prefix> may follow'
    )
    task: str = pydantic.Field(
        'ur5e/reach', description="whose contract 'random', 'constant' and 'scripted' serve"
    )
    seed: pydantic.NonNegativeInt = pydantic.Field(
        0, description="of the policy 'random', and of noise"
    )
    noise: pydantic.NonNegativeFloat = pydantic.Field(
        0.0,
        le=10,
        description="makes 'scripted' worse: disturbances of its actions, as a share of bounds",
    )
    max_age_s: pydantic.PositiveFloat = pydantic.Field(
        0.25,
        le=1.0,
        description='joint states older than this, or stamped farther in the future, break the '
        "episode off, whatever the policy's contract allows [s]",
    )
    realtime_priority: int = support.realtime_priority(40)
    autostart: bool = pydantic.Field(
        True, description='configure and activate without a lifecycle manager'
    )


def open_policy(name: str, task: str, seed: int = 0, noise: float = 0.0) -> Policy:
    """Return what has no file for a task, or the policy that control.runtime finds.

    Raises UnknownName, PolicyFileError.
    """
    if name == registry.SCRIPTED:
        return registry.make_demonstrator(task, noise, seed)
    if name in BUILT_IN:
        return load_policy(name, registry.make_task(task).contract(), seed)
    return load_policy(name)


class Loaded(NamedTuple):
    """A policy that has run once or twice and that fits the robot."""

    identity: tuple[str, str]  # its file and SHA-256
    loop: ControlLoop

    @classmethod
    def of(cls, parameters: Parameters) -> Self:
        """Load it. Raises a RobotRLError where it cannot be run, or not on this robot."""
        # In this order: what is opened is what was identified, whatever a name stands for by then.
        identity = identify(parameters.policy)
        policy = open_policy(identity[0], parameters.task, parameters.seed, parameters.noise)
        robot = RobotSpec.load(parameters.robot)
        chain = KinematicChain.from_spec(robot)
        age_s = parameters.max_age_s
        loop = ControlLoop(policy.contract, robot, chain, policy, joint_states_max_age_s=age_s)
        return cls(identity, loop)


class PolicyNode(LifecycleNode):
    """configure loads and warms the policy, activate starts its thread, deactivate stops it first.

    The thread walks through one episode after another with the session: it forgets and gathers
    samples, reports ready, runs exactly max_steps ticks, reports done. When anything is amiss it
    reports the error and commands nothing: the guard holds.
    """

    def __init__(self) -> None:
        super().__init__('policy')
        support.declare_parameters(self, Parameters, changeable=Parameters.model_fields)
        self._participant = support.Participant(self, self._on_session)
        self._changed = threading.Event()
        self._diagnostics = support.Diagnostics(self, 'policy')
        self._diagnostics.repeat(self._report)
        self._ticks_s, self._latencies_s = support.Tally(), support.Tally()
        self._late = self._late_reported = 0
        self._end: End | None = None
        self._loop: ControlLoop | None = None
        self._streams: Streams | None = None
        self._loaded, self._source = NO_POLICY, 'policy'
        self._next: Loaded | None = None  # what the next configure takes
        self._worker: support.Worker | None = None
        self._heard_at = 0.0  # steady time of the last look at all streams [s]
        self._in_real_time = False

    def start(self, end: End) -> None:
        """Configure and activate where no lifecycle manager will."""
        self._end = end
        if support.read_parameters(self, Parameters).autostart:
            for transition in (self.trigger_configure, self.trigger_activate):
                if transition() != TransitionCallbackReturn.SUCCESS:
                    end(2)  # the transition has said why
                    return

    def close(self) -> None:
        """Stop the loop."""
        self._stop_loop()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the policy, run it once or twice, and see whether it fits the robot."""
        del state
        return self._transition(self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to take part in episodes."""
        super().on_activate(state)
        priority = support.read_parameters(self, Parameters).realtime_priority
        self._in_real_time = support.schedule_in_real_time(self, priority)
        self._worker = support.Worker(self._work, self._end)
        self._worker.start()
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the loop, then everything else."""
        self._stop_loop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Forget the policy."""
        del state
        self._stop_loop()
        self._destroy_topics()
        self._loop, self._loaded = None, NO_POLICY
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the loop."""
        del state
        self._stop_loop()
        return TransitionCallbackReturn.SUCCESS

    def _transition(self, work: Callable[[], None]) -> TransitionCallbackReturn:
        """Do the work of a transition; rclpy would drop what it raises without a word."""
        try:
            work()
        except RobotRLError as error:
            self.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        except Exception:
            self.get_logger().error(traceback.format_exc())
            return TransitionCallbackReturn.ERROR
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        parameters = support.read_parameters(self, Parameters)
        if self._next is None:
            self._next = Loaded.of(parameters)
        self._source = parameters.source
        (self._loaded, self._loop), self._next = self._next, None
        contract, policy = self._loop.contract, self._loop.policy
        self._create_topics(self._loop.robot, contract)
        self.get_logger().info(f'policy {policy.card.id} at {contract.rate_hz:g} Hz')

    def _create_topics(self, robot: RobotSpec, contract: Contract) -> None:
        self._streams = Streams(self, self._loop.observations)
        self._commands = self.create_lifecycle_publisher(
            JointTrajectory, support.command_topic(self._source), support.COMMAND
        )
        self._actions = self._widths = None
        if self._source == 'policy':  # nobody says what a person had in mind
            self._actions = self.create_lifecycle_publisher(
                JointTrajectory, support.POLICY_ACTION, support.STREAM
            )
        if any(field.kind == 'gripper' for field in contract.action):
            self._widths = self.create_lifecycle_publisher(
                Float64MultiArray, support.gripper_topic(self._source), support.COMMAND
            )
        self._command_message = support.trajectory(robot.joints, contract.period_s)
        self._command_message.header.frame_id = self._source
        self._action_message = support.trajectory(contract.action_names, contract.period_s)
        self._applied = support.Polled(self, JointTrajectory, support.APPLIED, support.COMMAND)

    def _destroy_topics(self) -> None:
        self._streams.close()
        self._applied.destroy(self)
        for publisher in filter(None, (self._commands, self._actions, self._widths)):
            self.destroy_lifecycle_publisher(publisher)

    def _stop_loop(self) -> None:
        if self._worker is not None:
            self._worker.stop_event.set()
            self._changed.set()
            self._worker.stop()
            self._worker = None

    def _on_session(self, info: SessionInfo) -> None:
        if info.state == 'prepare' and self._is_another(info) and self._takes_another():
            self._reload(info)
        self._changed.set()  # the loop's thread reads it

    def _is_another(self, info: SessionInfo) -> bool:
        """Tell whether an episode is to be run by another policy than the one that is loaded."""
        wanted = info.policy_file, info.policy_sha256
        return bool(info.policy_file) and wanted != self._loaded

    def _takes_another(self) -> bool:
        """Tell whether this node may load one: it is active, or without one and on its own.

        Else it is up to a lifecycle manager, or to the person who has deactivated it.
        """
        parameters = support.read_parameters(self, Parameters)
        return self._worker is not None or (self._loop is None and parameters.autostart)

    def _reload(self, info: SessionInfo) -> None:
        """Run another policy from the episode on that is being prepared; the guard holds.

        It is loaded and looked at first: where it cannot be run, the former one stays.
        """
        try:
            parameters = support.read_parameters(self, Parameters)
            found = Loaded.of(parameters.replace(policy=info.policy_file))
            if found.identity != (info.policy_file, info.policy_sha256):
                raise ContractMismatch(f'{info.policy_file} is another file by now')
        except RobotRLError as error:
            self._participant.report('error', f'policy: {error}')
            return
        self.set_parameters([Parameter('policy', value=info.policy_file)])
        steps = [self.trigger_configure, self.trigger_activate]
        if self._worker is not None:
            steps = [self.trigger_deactivate, self.trigger_cleanup, *steps]
        self._next = found
        if any(step() != TransitionCallbackReturn.SUCCESS for step in steps):
            self._next = None
            words = f'policy: {info.policy_file} cannot be run; see the log of policy'
            self._participant.report('error', words)

    def _work(self, stop: threading.Event) -> None:
        """Take part in one episode after another until told to stop."""
        taken = ''
        while not stop.is_set():
            info = self._participant.info
            if info.state != 'prepare' or info.episode == taken:
                self._changed.wait()
                self._changed.clear()
                continue
            taken = info.episode
            try:
                self._episode(info, stop)
            except RobotRLError as error:
                words = '; '.join([str(error), *self._streams.refusals()])
                self._participant.report('error', f'policy: {words}')

    def _episode(self, info: SessionInfo, stop: threading.Event) -> None:
        """Walk through the episode of `info`; return early where the session leaves it."""
        if self._is_another(info):
            return  # it is being loaded
        if (info.source or 'policy') != self._source:
            self._participant.report('ready', f'idle: the source is {info.source}')
            return
        if not self._gather(info, ('prepare',), stop):
            return
        self._participant.report('ready', self._loop.policy.card.id)
        while self._stays(info, ('prepare', 'ready'), stop):
            self._changed.wait()
            self._changed.clear()
        # What was measured before the start may be from before the arm was placed.
        if self._gather(info, ('running',), stop, FRESH_WITHIN_S):
            self._participant.report('running')
            self._run(info, stop)

    def _stays(self, info: SessionInfo, states: tuple[str, ...], stop: threading.Event) -> bool:
        """Tell whether the session is still with the episode of `info`, in one of `states`."""
        now = self._participant.info
        return not stop.is_set() and now.episode == info.episode and now.state in states

    def _gather(
        self,
        info: SessionInfo,
        states: tuple[str, ...],
        stop: threading.Event,
        within_s: float = float('inf'),
    ) -> bool:
        """Forget all samples and wait until every stream has brought a new one.

        Returns False where the session goes elsewhere. Raises ContractMismatch after `within_s`.
        """
        self._streams.forget()
        start, said, next_s = time.monotonic(), '', SAY_AFTER_S
        while self._stays(info, states, stop):
            missing = self._missing()
            if not missing:
                return True
            waited = time.monotonic() - start
            if waited > min(within_s, next_s):
                words = '; '.join([*missing, *self._streams.reasons()])
                if waited > within_s:
                    raise ContractMismatch(f'no fresh observation within {within_s:g} s: {words}')
                if words != said:
                    self._participant.report('preparing', words)
                said, next_s = words, waited + SAY_AFTER_S
            time.sleep(POLL_S)
        return False

    def _missing(self) -> list[str]:
        """Say what keeps an episode from being run."""
        problems = self._streams.missing(self._now())
        if not problems and not self._commands.get_subscription_count():
            problems = [f'{support.command_topic(self._source)}: no command_guard listens']
        return problems

    def _run(self, info: SessionInfo, stop: threading.Event) -> None:
        loop, before = self._loop, self._late
        period_s, last = loop.contract.period_s, None
        self._applied.newest()  # of before
        self._begin()
        stop.wait(self._streams.until_prepared(self._takes_s()))
        self._streams.poll()
        self._begin()  # with what the first tick sees
        for now in support.every(period_s, stop, PreparingClock(self._prepare, period_s)):
            if not self._stays(info, ('running',), stop):
                break
            if loop.steps == info.max_steps:  # the last command has had its period
                late = self._late - before
                self._participant.report('done', f'{loop.steps} ticks, {late} late')
                break
            self._tick()
            self._late += last is not None and now - last > 1.5 * period_s
            last = now
        now = self._participant.info
        if stop.is_set() and (now.episode, now.state) == (info.episode, 'running'):
            self._participant.report('error', 'policy: stopped while the episode ran')

    def _begin(self) -> None:
        self._loop.begin(self._loop.observations.latest('joint_states')['position'])

    def _takes_s(self) -> float:
        """Return how long it takes to prepare a tick, at best [s]."""
        took_s = []
        for _ in range(3):
            began = time.monotonic()
            self._prepare(began + 1.0)
            took_s.append(time.monotonic() - began)
        return min(took_s)

    def _prepare(self, due_s: float) -> None:
        """Shortly before a tick: hear what has come, and decide on it if there is time."""
        self._hear()
        if time.monotonic() < due_s:
            self._loop.prepare(self._now)

    def _tick(self) -> None:
        start = time.monotonic()
        # Else what is newer is for the next tick: to decide once more would make this one late.
        if not self._loop.is_prepared(self._now()):
            self._hear()
        self._publish(self._loop.tick(self._now()))
        self._latencies_s.add(self._now() - support.seconds(self._streams.stamp))
        self._ticks_s.add(time.monotonic() - start)

    def _hear(self) -> None:
        self._streams.poll()
        self._heard_at = time.monotonic()
        self._go_on_from_others()

    def _go_on_from_others(self) -> None:
        """While the guard hears somebody else, or holds: go on from where it has led the arm."""
        applied = self._applied.newest()
        if applied is not None and applied.header.frame_id != self._source:
            self._loop.rebase(applied.points[0].positions)

    def _now(self) -> float:
        return self.get_clock().now().nanoseconds * 1e-9

    def _publish(self, command: Command) -> None:
        """Publish the target, the gripper's width, and the action as requested."""
        self._command_message.header.stamp = self._streams.stamp
        self._command_message.points[0].positions = support.doubles(command.target)
        self._commands.publish(self._command_message)
        if command.width is not None:
            self._widths.publish(Float64MultiArray(data=[command.width]))
        if self._actions is None:
            return
        self._action_message.header.stamp = self._streams.stamp
        # For the record: how long ago that was heard of which it is made.
        longest_s = HEARD_WITHIN * self._loop.contract.period_s
        heard_s = min(time.monotonic() - self._heard_at, longest_s)
        self._action_message.points[0].time_from_start = support.duration(heard_s)
        self._action_message.points[0].positions = support.doubles(command.requested)
        self._actions.publish(self._action_message)

    def _report(self) -> None:
        """Once a second: how the loop keeps its time, and how old commands are when they leave."""
        loop, active = self._loop, self._worker is not None
        ticks, tick_s, longest_s = self._ticks_s.take()
        _, latency_s, oldest_s = self._latencies_s.take()
        late, self._late_reported = self._late - self._late_reported, self._late
        answer = self._participant.answer
        state = answer.state if active else 'inactive' if loop else 'unconfigured'
        values = {
            'state': state,
            'episode': answer.episode,
            'policy': loop.policy.card.id if loop else '',
            'rate_hz': ticks,
            'wanted_rate_hz': loop.contract.rate_hz if loop else 0.0,
            'late': self._late,
            'in_real_time': self._in_real_time,
            'tick_mean_ms': round(tick_s * 1e3, 2),
            'tick_max_ms': round(longest_s * 1e3, 2),
            'latency_mean_ms': round(latency_s * 1e3, 2),
            'latency_max_ms': round(oldest_s * 1e3, 2),
        }
        level, words = DiagnosticStatus.OK, f'{state}, {ticks} ticks in the last second'
        if late:
            level, words = DiagnosticStatus.WARN, f'{words}, {late} late'
        if active and state == 'error':
            level, words = DiagnosticStatus.ERROR, answer.detail
        self._diagnostics.publish(level, words, values)
