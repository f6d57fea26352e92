"""command_guard: the only publisher to the arm; see robot_rl.control.guard for what it does."""

from __future__ import annotations

import threading
import time
from typing import Any

import pydantic
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node
from std_msgs.msg import Bool, Empty, Float64MultiArray, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from robot_rl.control.clocks import PreparingClock
from robot_rl.control.guard import Applied, CommandGuard, GuardConfig, GuardState
from robot_rl.control.session import SessionInfo
from robot_rl.errors import SpecError
from robot_rl.nodes import support, wiring
from robot_rl.nodes.main import End
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.specs import Contract, RobotSpec

# Those without whom an episode is not to go on.
WATCHED = ('session', 'policy', 'episode_recorder')


STARTING = 'command_guard has just started, and listens whether an episode is under way'
# For so long, where no session is there to say it: what discovery takes on a busy machine [s].
LISTEN_S = 3.0
RESTARTED = 'command_guard was restarted in an episode; it goes on with the next one'
PREPARING = 'an episode is being prepared'
ENDING = 'command_guard is ending'
# How long the arm may take to come to rest when the guard is ended [s].
RESTS_WITHIN_S = 2.0


class Parameters(GuardConfig):
    """The ROS parameters of command_guard: GuardConfig's, which arm it guards, and how."""

    robot: str = pydantic.Field(
        'ur5e', description='robot in config/robots or a YAML file; @<tf_prefix> may follow'
    )
    realtime_priority: int = support.realtime_priority(50)


class ToArm:
    """The publisher to the arm, in whatever its controller takes."""

    def __init__(self, node: Node, guard: CommandGuard):
        self._node, self._guard, robot = node, guard, guard.robot
        self._kind = robot.controller.kind
        self.is_silent = True  # nothing is said, and nothing is left to say
        self._message = Float64MultiArray()
        if self._kind == 'joint_trajectory':
            # Stamped 0: it starts when it comes.
            self._message = support.trajectory(
                robot.driver_joints, robot.controller.point_duration_s
            )
        self._publisher = node.create_publisher(
            type(self._message), robot.controller.topic, support.COMMAND
        )

    def is_heard(self) -> bool:
        """Tell whether anybody subscribes who may be an arm."""
        readers = self._node.get_subscriptions_info_by_topic(self._publisher.topic_name)
        return any(map(wiring.may_be_an_arm, readers))

    def prepare(self, applied: Applied | None) -> bool:
        """Make the message for `applied`; tell whether there is one to publish.

        Where the guard says nothing any more, the last velocity that an arm hears is 0.
        """
        was_silent, self.is_silent = self.is_silent, applied is None
        if self._kind == 'forward_velocity':
            velocities = self._guard.velocities(applied)
            self._message.data = support.doubles(velocities)
            self.is_silent = applied is None and not velocities.any()
            return not (was_silent and self.is_silent)
        if applied is None:
            return False
        if self._kind == 'joint_trajectory':
            self._message.points[0].positions = support.doubles(applied.positions)
        else:
            self._message.data = support.doubles(applied.positions)
        return True

    def publish(self) -> None:
        """Tell the arm what was prepared."""
        self._publisher.publish(self._message)


class CommandGuardNode(support.WorkingNode):
    """Publishes to the arm at its controller's rate, from a thread that does nothing else.

    That thread also reads joint states and commands, so that no callback can delay it.
    """

    def __init__(self) -> None:
        super().__init__('command_guard')
        support.declare_parameters(self, Parameters)
        parameters = support.read_parameters(self, Parameters)
        self._robot = RobotSpec.load(parameters.robot)
        config = GuardConfig.parse(parameters.model_dump(include=set(GuardConfig.model_fields)))
        chain = KinematicChain.from_spec(self._robot)
        self._guard = CommandGuard(self._robot, chain, config)
        self._guard.block('start', STARTING, time.monotonic())
        self._lock = threading.Lock()
        self._preparing = self._arm_heard = False  # an episode; and the arm, since then
        self._create_topics()
        self._listening = True  # whether an episode is under way
        self._prepared = ''  # the episode that this guard has been prepared for
        self._participant = support.Participant(self, self._on_session)
        for node in WATCHED:
            support.watch(self, node, self._on_life)
        for name in ('estop', 'estop_reset', 'reset'):
            self.create_service(Trigger, f'~/{name}', getattr(self, f'_on_{name}'))
        self._diagnostics = support.Diagnostics(self, self._robot.name)
        self._overruns = 0
        self._heard_at = {'joint_states': -float('inf')}  # steady time of the newest message [s]
        self._published, self._latencies_s = 0, support.Tally()
        self._refusals: list[str] = []
        self._in_real_time = False
        self._realtime_priority = parameters.realtime_priority

    def start(self, end: End) -> None:
        """Begin to guard."""
        self._in_real_time = support.schedule_in_real_time(self, self._realtime_priority)
        super().start(end)

    def close(self) -> None:
        """Bring the arm to rest, then say nothing: its controller holds its position, or 0."""
        if self._worker:
            with self._lock:
                self._guard.block('end', ENDING, time.monotonic())
                self._guard.reset()
            until = time.monotonic() + RESTS_WITHIN_S
            while not self._to_arm.is_silent and time.monotonic() < until:
                time.sleep(self._robot.controller.period_s)
            super().close()

    def _create_topics(self) -> None:
        robot, period_s = self._robot, self._robot.controller.period_s
        self._joint_states = support.JointStates(self, robot)
        self._commands = {
            source: support.Polled(
                self, JointTrajectory, support.command_topic(source), support.COMMAND
            )
            for source in self._guard.config.sources
        }
        self._gripper, self._widths = None, {}
        if robot.gripper:
            self._gripper = self.create_publisher(
                Float64MultiArray, robot.gripper.topic, support.COMMAND
            )
            self._widths = {
                source: support.Polled(
                    self, Float64MultiArray, support.gripper_topic(source), support.COMMAND
                )
                for source in self._guard.config.sources
            }
        # The reliable reader loses none of a reliable publisher's; the other hears whoever is not.
        for qos in (support.COMMAND, support.SENSOR):
            self.create_subscription(Empty, support.ESTOP, self._on_estop_topic, qos)
        self._to_arm = ToArm(self, self._guard)
        self._applied = self.create_publisher(JointTrajectory, support.APPLIED, support.STREAM)
        self._applied_message = support.trajectory(robot.joints, period_s)
        self._source = support.Latched(self, String, '~/source')
        self._stopped = support.Latched(self, Bool, '~/estop_active')

    def _work(self, stop: threading.Event) -> None:
        period_s = self._robot.controller.period_s
        began = last = reported = time.monotonic()
        clock = PreparingClock(self._prepare_tick, period_s)
        for now in support.every(period_s, stop, clock):
            if self._listening and now - began > LISTEN_S:
                self._stop_listening()
            self._tick(now)
            self._overruns += now - last > 1.5 * period_s
            last = now
            if now - reported >= 1.0:
                reported = now
                self._report()

    def _prepare_tick(self, due_s: float) -> None:
        """Shortly before a tick: hear what has come, and do beforehand what can be."""
        with self._lock:
            self._hear_sources(time.monotonic())
            self._guard.prepare(due_s)

    def _tick(self, now: float) -> None:
        with self._lock:
            self._hear_sources(now)
            applied = self._guard.tick(now)
            source, stopped = self._guard.source, self._guard.state is GuardState.ESTOP
            source = 'starting' if self._listening else source or 'idle'
            told = self._to_arm.prepare(applied)
        if told:
            self._to_arm.publish()
        if applied is not None:
            self._publish(applied)
            self._published += 1
        # Only now, for the next tick: no command waits for what the arm has to say.
        with self._lock:
            self._hear_arm(now)
            if self._preparing:
                self._answer_when_ready()
        for reason in self._refusals:
            self.get_logger().error(f'refused: {reason}', throttle_duration_sec=1.0)
        self._refusals.clear()
        self._source.say(source)
        self._stopped.say(stopped)

    def _hear_sources(self, now: float) -> None:
        """Give the newest commands to the guard."""
        for source, commands in self._commands.items():
            if (message := commands.newest()) is not None:
                self._heard_at[source] = now
                if stamp_s := support.seconds(message.header.stamp):  # teleop may leave it out
                    self._latencies_s.add(self.get_clock().now().nanoseconds * 1e-9 - stamp_s)
                self._note(self._command(source, message, now))
        for source, widths in self._widths.items():
            if (message := widths.newest()) is not None:
                self._note(self._grip(source, message, now))

    def _note(self, refusal: str | None) -> None:
        """Keep why a message is refused, to be told when there is time for it."""
        if refusal is not None:
            self._refusals.append(refusal)

    def _hear_arm(self, now: float) -> None:
        """Tell the guard where the arm stands."""
        measured = self._joint_states.newest()
        if measured is None:
            return
        self._heard_at['joint_states'] = now
        astray = self._guard.astray
        stamp = support.nanoseconds(measured.header.stamp)
        refusal = self._guard.measured(measured.name, measured.position, now, stamp)
        self._arm_heard |= refusal is None
        if self._guard.astray and not astray:
            self._participant.report('error', self._guard.astray)
        self._note(refusal)

    def _answer_when_ready(self) -> None:
        """Say so once nothing is left of the commands before: they are not for where it begins."""
        waits = {
            'the arm is still being braked': self._guard.published is not None,
            self._no_joint_states(): not self._arm_heard,
            'no arm that listens': not self._to_arm.is_heard(),
        }
        words = '; '.join(what for what, lacks in waits.items() if lacks)
        answer = self._participant.answer
        if not words:
            self._preparing = False
            self._guard.unblock('prepare')
            self._participant.report('ready')
        elif (self._participant.info.episode, words) != (answer.episode, answer.detail):
            self._participant.report('preparing', words)

    def _command(self, source: str, message: JointTrajectory, now: float) -> str | None:
        if len(message.points) != 1:
            found = len(message.points)
            return self._guard.refuse(f'{source}: {found} trajectory points, expected one')
        point = message.points[0]
        return self._guard.command(
            message.joint_names,
            point.positions,
            support.seconds(point.time_from_start),
            message.header.stamp,
            source,
            now,
        )

    def _grip(self, source: str, message: Float64MultiArray, now: float) -> str | None:
        refusal = self._guard.grip(message.data, source, now)
        if refusal is None and self._guard.width is not None:
            told = self._robot.gripper.command(self._guard.width)
            self._gripper.publish(Float64MultiArray(data=[told]))
        return refusal

    def _publish(self, applied: Applied) -> None:
        message = self._applied_message
        message.header.stamp = applied.stamp or Time()
        message.header.frame_id = applied.source
        message.points[0].positions = support.doubles(applied.positions)
        message.points[0].velocities = support.doubles(applied.velocities)
        self._applied.publish(message)

    def _stop_listening(self) -> None:
        """Hear commands, unless there is a session whose word has yet to come."""
        if not self.count_publishers(support.SESSION_STATE):
            self._listening = False
            self._guard.unblock('start')

    def _on_session(self, info: SessionInfo) -> None:
        if info.state == 'prepare':
            self._prepare(info)
        elif info.state in ('ready', 'running') and info.episode != self._prepared:
            # Restarted on the way: where the arm is led, and why it was not, is not known here.
            with self._lock:
                self._guard.block('restart', RESTARTED, time.monotonic())
            self._participant.report('error', RESTARTED)
        elif info.state == 'ended':
            with self._lock:
                self._preparing = False
                self._guard.unblock(*WATCHED, 'restart', 'prepare')
        with self._lock:
            self._listening = False
            self._guard.unblock('start')

    def _prepare(self, info: SessionInfo) -> None:
        with self._lock:
            stopped = self._guard.state is GuardState.ESTOP
            slow = self._too_slow(info)
            self._preparing = not (stopped or slow)
            if self._preparing:
                self._prepared = info.episode
                self._guard.unblock(*WATCHED, 'restart')
                self._guard.reset()
                self._guard.block('prepare', PREPARING, time.monotonic())
                self._arm_heard = False
        if stopped:
            self._participant.report('error', 'estop: latched; call ~/estop_reset first')
        elif slow:
            self._participant.report('error', slow)

    def _too_slow(self, info: SessionInfo) -> str:
        """Say why the policy of an episode would be held between its commands, if so."""
        by_policy = info.source == 'policy' or info.policy  # which may stand in for a person
        if not by_policy or info.contract is None:
            return ''
        try:
            rate_hz = Contract.parse(info.contract, origin=support.SESSION_STATE).rate_hz
        except SpecError as error:
            return str(error)
        return self._guard.config.too_slow(rate_hz)

    def _on_life(self, node: str, alive: bool) -> None:
        """Hold while a process that takes part in the episode is dead or hangs."""
        if alive:
            with self._lock:
                self._guard.unblock(node)
        elif self._participant.info.state in ('prepare', 'ready', 'running'):
            with self._lock:
                self._guard.block(node, f'{node} is gone, in an episode', time.monotonic())

    def _on_estop_topic(self, _: Empty) -> None:
        with self._lock:
            latched = self._guard.state is GuardState.ESTOP
            self._guard.estop(time.monotonic())
            self._preparing = False
        if not latched:
            self._participant.report('error', 'estop: the emergency stop was called')

    def _on_estop(self, _: Any, response: Trigger.Response) -> Trigger.Response:
        self._on_estop_topic(Empty())
        response.success, response.message = True, 'stopped; ~/estop_reset releases it'
        return response

    def _on_estop_reset(self, _: Any, response: Trigger.Response) -> Trigger.Response:
        with self._lock:
            refusal = self._guard.estop_reset(time.monotonic())
        response.success, response.message = refusal is None, refusal or 'released'
        return response

    def _on_reset(self, _: Any, response: Trigger.Response) -> Trigger.Response:
        with self._lock:
            self._guard.unblock('restart')  # but nobody who is gone is back by this
            self._guard.reset()
        response.success, response.message = True, 'the last command is forgotten'
        return response

    def _no_joint_states(self) -> str:
        """Say what is missing, and what comes in its place."""
        topic, found = self._robot.joint_states_topic, self._joint_states.others
        words = f'no joint states of {self._robot.name} on {self.resolve_topic_name(topic)}'
        return f'{words}, only {found}' if found else words

    def _report(self) -> None:
        """Once a second: the state, how often the guard stepped in, how old what it hears is."""
        now = time.monotonic()
        _, latency_s, oldest_s = self._latencies_s.take()
        with self._lock:
            values = self._guard.diagnostics() | {'overruns': self._overruns}
            astray = self._guard.astray
        published, self._published = self._published, 0
        values |= {
            'rate_hz': published,
            'wanted_rate_hz': self._robot.controller.rate_hz,
            'in_real_time': self._in_real_time,
            'command_latency_mean_ms': round(latency_s * 1e3, 2),
            'command_latency_max_ms': round(oldest_s * 1e3, 2),
        }
        values |= {
            f'{name}.age_ms': round((now - at) * 1e3, 1) for name, at in self._heard_at.items()
        }
        level, words = DiagnosticStatus.OK, str(values['state'])
        if values['state'] == GuardState.ESTOP:
            level = DiagnosticStatus.ERROR
        elif astray:
            level, words = DiagnosticStatus.ERROR, astray
        elif now - self._heard_at['joint_states'] > 1.0:
            level = DiagnosticStatus.STALE
            words += f': {self._no_joint_states()}'
        elif values['state'] == GuardState.HOLDING:
            level = DiagnosticStatus.WARN
        self._diagnostics.publish(level, words, values)
