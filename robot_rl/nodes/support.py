"""What every node needs: parameters, QoS, polled subscriptions, the work thread, a clean end."""

from __future__ import annotations

import array
import contextlib
import gc
import math
import os
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args, get_origin

import numpy as np
import pydantic
import rclpy
from builtin_interfaces.msg import Duration as DurationMessage
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    Log,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from robot_rl.control.clocks import SteadyClock, ticks
from robot_rl.control.session import SessionInfo
from robot_rl.errors import RobotRLError, SpecError, did_you_mean
from robot_rl.nodes import wiring
from robot_rl.nodes.main import End, leave_within
from robot_rl.nodes.supervisor import report_ready
from robot_rl.specs import RobotSpec, Spec

# Relative names: a namespace moves a whole arm.
SESSION_STATE = 'session/state'
TARGET_POSE = 'target_pose'
ESTOP = 'estop'
POLICY_COMMAND = 'policy/command'
POLICY_ACTION = 'policy/action'
APPLIED = 'command_guard/applied'
SOURCE = 'command_guard/source'
TELEOP_COMMAND = 'teleop/command'
WORLD = 'sim_robot/world'

# A command is never queued: the newest one counts.
COMMAND = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
# What is published for control and for the record: a recorder that is late loses nothing.
STREAM = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
# How control reads sensors (REP 2003): the newest sample, from any publisher.
SENSOR = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
# All since the last tick, of a 20 Hz policy and messages at 1 kHz: those of an arm are among the
# newest whoever else publishes, and a velocity that is a difference of positions is one of
# neighbours. What waits costs 12 us each to take.
JOINT_STATES = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
# How often a process says that it is alive, and for how long it is believed [s].
_ALIVE_EVERY_S, _GONE_AFTER_S = 0.015, 0.06

# How long DDS may take to say goodbye [s].
_GOODBYE_WITHIN_S = 2


def _latched(depth: int, **liveliness: Any) -> QoSProfile:
    """Return the QoS of a state that newcomers get as well."""
    return QoSProfile(
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
        **liveliness,
    )


# The newest one only; who is there gets every one of them.
LATCHED = _latched(1)
LATCHED_READER = _latched(10)
# How a process is heard to be gone. Automatic liveliness would do it without a thread of ours, but
# its timer waits in Fast DDS for a lock, and whoever holds that lock may wait for the timer: of
# processes that ended together, one in some hundred hung (Fast DDS issue 6502).
_ALIVE = _latched(
    1,
    liveliness=LivelinessPolicy.MANUAL_BY_TOPIC,
    liveliness_lease_duration=Duration(seconds=_GONE_AFTER_S),
)

# What a person can mend: one line, no traceback.
WRONG_INPUT = (
    RobotRLError,
    ParameterException,
    rclpy_implementation.RCLError,
    rclpy_implementation.UnknownROSArgsError,
)

M = TypeVar('M')
P = TypeVar('P', bound=Spec)


class WorkNode(Protocol):
    """What `run` runs: an rclpy node whose work is done by a Worker."""

    def start(self, end: End) -> None:
        """Begin the work; `end` asks for the end of the process, with an exit code."""

    def close(self) -> None:
        """Stop the work, the loop first."""


def run(node_class: Callable[[], WorkNode], args: list[str] | None, end: End) -> int:
    """Run a node until it, or a signal, asks for the end; return the exit code.

    Callbacks run in one thread beside the node's own work; the main thread only waits, so that
    signals are heard at once and never interrupt anything.
    """
    node = spinning = None
    try:
        rclpy.init(args=args, signal_handler_options=rclpy.SignalHandlerOptions.NO)
        node = node_class()
        spinning = Spinning(node, end)
        # What is loaded stays: a full collection that goes through it, at any moment, halts every
        # thread for 50 to 100 ms, and with them the arm.
        gc.collect()
        gc.freeze()
        node.start(end)
        spinning.start()
        if not end.asked:
            report_ready()
    except WRONG_INPUT as error:
        _print_error(node, error)
        end(2)
    end.wait()
    if node is not None:
        node.close()
    if spinning is not None:
        spinning.stop()
    # All of ours is closed. Where several nodes end at once, DDS may hang in saying goodbye.
    leave_within(_GOODBYE_WITHIN_S, end.code)
    rclpy.try_shutdown()
    return end.code


def _print_error(node: Node | None, error: Exception) -> None:
    line = ' '.join(str(error).split())
    if isinstance(error, rclpy_implementation.UnknownROSArgsError):
        line = f'unknown ROS arguments: {line}'
    if node is not None:
        node.get_logger().fatal(line)
    else:
        print(f'robot_rl.nodes: {line}', file=sys.stderr)


class Worker:
    """A thread that does `work(stop)` until `stop` is set; what it raises ends the process.

    A RobotRLError is one line and exit code 2; anything else is a mistake in the code.
    """

    def __init__(self, work: Callable[[threading.Event], None], end: End):
        self._work, self._end = work, end
        self.stop_event = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin the work."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the work to stop and wait until it has."""
        self.stop_event.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._work(self.stop_event)
        except BaseException as error:
            meant = isinstance(error, RobotRLError)
            try:
                _print_error(None, error) if meant else traceback.print_exc()
            finally:  # whoever reads what is printed may be gone
                self._end(2 if meant else 1)


class WorkingNode(Node):
    """A node whose work a thread of its own does: `_work(stop)`, until `stop` is set."""

    _worker: Worker | None = None

    def start(self, end: End) -> None:
        """Begin the work; `end` asks for the end of the process, with an exit code."""
        self._worker = Worker(self._work, end)
        self._worker.start()

    def close(self) -> None:
        """Stop the work, if it was begun."""
        if self._worker:
            self._worker.stop()

    def _work(self, stop: threading.Event) -> None:
        raise NotImplementedError


class Spinning:
    """Runs the callbacks of a node in a thread."""

    def __init__(self, node: Node, end: End):
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        self._worker = Worker(self._spin, end)
        self.start = self._worker.start

    def stop(self) -> None:
        """Return once the last callback has."""
        self._worker.stop_event.set()
        self._executor.create_task(lambda: None)  # wake() alone would not make spin_once return
        self._worker.stop()
        self._executor.shutdown()

    def _spin(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._executor.spin_once()


def realtime_priority(default: int) -> Any:
    """Return the field of a node's parameter for schedule_in_real_time()."""
    return pydantic.Field(
        default,
        ge=0,
        le=99,
        description='of all its threads under SCHED_FIFO, where the system lets it; 0: ordinary',
    )


def schedule_in_real_time(node: Node, priority: int) -> bool:
    """Let the threads of this process, and those that they start, go before all ordinary ones.

    By SCHED_FIFO, as the controller_manager of ros2_control does: on a busy machine a tick else
    waits for whoever has the processor. `priority`: 1 to 99; 0: as ever. Returns whether the
    system lets it.
    """
    if not priority or not hasattr(os, 'sched_setscheduler'):
        return False
    try:
        for thread in os.listdir('/proc/self/task'):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.sched_setscheduler(int(thread), os.SCHED_FIFO, os.sched_param(priority))
    except OSError as error:
        node.get_logger().info(
            f'real-time scheduling: {error.strerror}; ticks may be late while the machine is busy '
            '(docs/deploy_to_an_arm.md: rtprio)'
        )
        return False
    return True


def every(
    period_s: float, stop: threading.Event, clock: SteadyClock | None = None
) -> Iterator[float]:
    """Yield the steady time [s] at absolute deadlines until `stop` is set."""
    for now in ticks(clock or SteadyClock(), period_s):
        if stop.is_set():
            return
        yield now


class Polled(Generic[M]):
    """A subscription that is read when its reader wants to.

    A message that wakes the executor costs some 0.4 ms of Python each, at 100 Hz several per
    cent of a core for every topic; one that waits in DDS until a control tick takes it costs a
    sixth of that, and the control loop shares its data with no other thread.
    """

    def __init__(self, node: Node, kind: type[M], topic: str, qos: QoSProfile, raw: bool = False):
        # The handlers of QoS events share a condition with the data: the executor would wake
        # for every message, find nothing to do and start anew.
        events = SubscriptionEventCallbacks(use_default_callbacks=False)
        self._subscription = node.create_subscription(
            kind, topic, _never, qos, raw=raw, callback_group=_NEVER, event_callbacks=events
        )

    def take(self) -> tuple[M, dict[str, Any]] | None:
        """Return the oldest message that waits, with what DDS knows of it; None: none waits."""
        handle = self._subscription.handle
        with handle:
            return handle.take_message(self._subscription.msg_type, self._subscription.raw)

    def drain(self) -> Iterator[tuple[M, dict[str, Any]]]:
        """Yield every message that waits."""
        while (taken := self.take()) is not None:
            yield taken

    def newest(self) -> M | None:
        """Return the newest message, dropping older ones; None: none has come since."""
        newest = None
        for message, _ in self.drain():
            newest = message
        return newest

    def destroy(self, node: Node) -> None:
        """Unsubscribe."""
        node.destroy_subscription(self._subscription)


class JointStates(Polled[JointState]):
    """The joint states of an arm, on a topic on which others may publish theirs.

    A gripper's driver does so: messages with none of the arm's joints are passed over. Whoever
    publishes for ros2_control (joint_state_broadcaster, joint_state_publisher) has all joints of
    an arm in one message; parts of an arm are not put together, and are wrong.
    """

    def __init__(self, node: Node, robot: RobotSpec):
        super().__init__(node, JointState, robot.joint_states_topic, JOINT_STATES)
        self._robot = robot
        self.others: list[str] = []  # the joints of the newest message that was passed over

    def drain(self) -> Iterator[tuple[JointState, dict[str, Any]]]:
        """Yield every message about the arm that waits."""
        for message, about in super().drain():
            if self._robot.is_among(message.name):
                yield message, about
            else:
                self.others = message.name


class _Never(CallbackGroup):
    """Keeps the executor from ever waiting for an entity."""

    def can_execute(self, entity: Any) -> bool:
        return False

    def beginning_execution(self, entity: Any) -> bool:
        return False

    def ending_execution(self, entity: Any) -> None:
        pass


_NEVER = _Never()


def _never(message: Any) -> None:
    """Be the callback of a subscription that has none."""


def alive_publisher(node: Node, topic: str) -> Publisher:
    """Create the publisher of a latched state, by which others hear that this process is alive."""
    publisher = node.create_publisher(String, topic, _ALIVE)

    def say() -> None:
        try:
            for _ in ticks(SteadyClock(), _ALIVE_EVERY_S):
                publisher.assert_liveliness()
        except (rclpy_implementation.InvalidHandle, rclpy_implementation.RCLError):
            pass  # the publisher has been destroyed

    threading.Thread(target=say, name='alive', daemon=True).start()
    return publisher


def watch(node: Node, other: str, on_change: Callable[[str, bool], None]) -> None:
    """Call `on_change(other, alive)` when another node's process dies, hangs or is back."""
    topic = SESSION_STATE if other == 'session' else f'{other}/status'
    events = SubscriptionEventCallbacks(
        liveliness=lambda change: on_change(other, change.alive_count > 0)
    )
    node.create_subscription(String, topic, _never, _ALIVE, event_callbacks=events)


class Answer(Spec):
    """What is said on <node>/status."""

    # The episode that it is about.
    episode: str = ''
    state: Literal['silent', 'preparing', 'ready', 'running', 'done', 'error'] = 'silent'
    # What it waits for, has done, or what is wrong.
    detail: str = ''


class Participant:
    """A node's part in the episodes: it hears session/state and answers on <node>/status."""

    def __init__(self, node: Node, on_session: Callable[[SessionInfo], None]):
        self._node, self._on_session = node, on_session
        self.info, self.answer = SessionInfo(), Answer()  # as heard, and as said
        self._status = alive_publisher(node, f'{node.get_name()}/status')
        node.create_subscription(String, SESSION_STATE, self._hear, LATCHED_READER)

    def report(self, state: str, detail: str = '') -> None:
        """Say how far this node is with the episode in hand."""
        self.answer = Answer(episode=self.info.episode, state=state, detail=detail)
        self._status.publish(String(data=self.answer.to_json()))
        if state == 'error':
            self._node.get_logger().error(detail)

    def _hear(self, message: String) -> None:
        try:
            info = SessionInfo.from_json(message.data, origin=SESSION_STATE)
        except SpecError as error:
            self._node.get_logger().error(str(error))
            return
        self.info = info
        self._on_session(info)


def speaker(node: Node, message: Log) -> str:
    """Return which node of the namespace of `node`, that is, of its arm, says a line of /rosout.

    '': one of another arm.
    """
    *space, name = message.name.split('.')
    return name if '/'.join(space) == node.get_namespace().strip('/') else ''


class Latched(Generic[M]):
    """A topic that says a value once, whenever it changes; newcomers get it as well."""

    def __init__(self, node: Node, kind: type[M], topic: str):
        self._kind, self._value = kind, None
        self._publisher = node.create_publisher(kind, topic, LATCHED)

    def say(self, value: Any) -> None:
        """Publish `value` where it is another than before."""
        if value != self._value:
            self._value = value
            self._publisher.publish(self._kind(data=value))


# It takes milliseconds, in which no other thread of the process runs.
_LOOK_EVERY_S = 5.0
# How /diagnostics orders levels: what is known is taken for better than what is not.
_WORSE = (DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.STALE,
          DiagnosticStatus.ERROR)  # fmt: skip


class Diagnostics:
    """Publishes one DiagnosticStatus of a node on /diagnostics.

    It looks now and then for whom the node cannot talk to, whatever the node does meanwhile:
    DDS says nothing where types differ, and QoS events would wake the executor (see Polled).
    """

    def __init__(self, node: Node, hardware_id: str):
        self._node = node
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        name = node.get_fully_qualified_name().lstrip('/')
        self._status = DiagnosticStatus(name=name, hardware_id=hardware_id)
        self._unheard: list[str] = []
        self.repeat(self._look, _LOOK_EVERY_S)

    def repeat(self, work: Callable[[], None], period_s: float = 1.0) -> None:
        """Call `work` again and again from now on, also where no time comes on /clock."""
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._node.create_timer(period_s, work, clock=clock)

    def publish(self, level: bytes, message: str, values: dict[str, Any]) -> None:
        """Publish `values` under a `level` of DiagnosticStatus and one line of text."""
        unheard = self._unheard
        if unheard:
            level = max(level, DiagnosticStatus.WARN, key=_WORSE.index)
            message = '; '.join([message, *unheard])
        values = values | {'incompatible_endpoints': len(unheard)}
        self._status.level, self._status.message = level, message
        self._status.values = [KeyValue(key=k, value=str(v)) for k, v in values.items()]
        array_ = DiagnosticArray(status=[self._status])
        array_.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array_)

    def _look(self) -> None:
        found = list(wiring.problems(self._node))
        for problem in found:
            if problem not in self._unheard:
                self._node.get_logger().warning(problem)
        self._unheard = found


class Tally:
    """Counts, and keeps the mean and the greatest of, what is measured between two reports."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count, self._sum, self._max = 0, 0.0, 0.0

    def add(self, value: float) -> None:
        """Take one measured value."""
        with self._lock:
            self._count, self._sum = self._count + 1, self._sum + value
            self._max = value if self._count == 1 else max(self._max, value)

    def take(self) -> tuple[int, float, float]:
        """Return number, mean and greatest since the last call; without any, zeros."""
        with self._lock:
            count, mean, greatest = self._count, self._sum / max(self._count, 1), self._max
            self._count, self._sum, self._max = 0, 0.0, 0.0
        return count, mean, greatest


def declare_parameters(node: Node, model: type[P], changeable: Collection[str] = ()) -> None:
    """Declare one ROS parameter per field of `model`: its default, description, range and choices.

    All but the `changeable` ones are read-only; these are set only to what `model` takes. Raises
    SpecError for an override that is wrong, or no parameter, with the nearest that is one.
    """
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in model.model_fields.items()
    }
    given = {name: parameter.value for name, parameter in node._parameter_overrides.items()}
    # Before rclpy looks at the ranges: these words name what is wrong, and what would be right.
    model.parse(
        defaults | {name: given[name] for name in defaults.keys() & given.keys()},
        origin=f'parameters of {node.get_name()}',
    )
    for name, default in defaults.items():
        default = list(default) if isinstance(default, tuple) else default
        descriptor = _descriptor(model.model_fields[name], name not in changeable)
        node.declare_parameter(name, default, descriptor)
    for name in given:
        if not node.has_parameter(name) and not name.startswith('qos_overrides.'):
            raise SpecError(
                f'parameter {name}: {node.get_name()} has none of that name'
                + did_you_mean(name, defaults)
            )
    if changeable:
        _check_changes(node, model)


def _descriptor(field: pydantic.fields.FieldInfo, read_only: bool) -> ParameterDescriptor:
    """Return what `ros2 param describe` shows of a field, and rclpy holds numbers to."""
    # An int is a fine float: of those, and of what is no number, _check_changes sees the rest.
    descriptor = ParameterDescriptor(
        description=field.description or '', read_only=read_only, dynamic_typing=True
    )
    if get_origin(field.annotation) is Literal:
        choices = ', '.join(map(repr, get_args(field.annotation)))
        descriptor.additional_constraints = f'one of {choices}'
    limits, words = _limits(field.metadata)
    if limits and field.annotation is float:
        lower, upper = _float_bounds(limits)
        descriptor.floating_point_range = [FloatingPointRange(from_value=lower, to_value=upper)]
        descriptor.additional_constraints = words
    elif limits and field.annotation is int:
        lower = limits.get('ge', limits.get('gt', -(2**63) - 1) + 1)
        upper = limits.get('le', limits.get('lt', 2**63) - 1)
        descriptor.integer_range = [IntegerRange(from_value=lower, to_value=upper)]
        descriptor.additional_constraints = words
    return descriptor


def _limits(metadata: Sequence[Any]) -> tuple[dict[str, Any], str]:
    """Return {ge, gt, le, lt: bound} as pydantic has them, and the same in words."""
    signs = {'ge': 'at least', 'gt': 'above', 'le': 'at most', 'lt': 'below'}
    limits = {
        sign: bound
        for item in metadata
        for sign in signs
        if (bound := getattr(item, sign, None)) is not None
    }
    return limits, ', '.join(f'{signs[sign]} {bound}' for sign, bound in limits.items())


def _float_bounds(limits: dict[str, Any]) -> tuple[float, float]:
    """Return the least and the greatest number within; a range of ROS includes its ends."""
    lower = limits.get('ge', -sys.float_info.max)
    upper = limits.get('le', sys.float_info.max)
    if 'gt' in limits:
        lower = max(lower, math.nextafter(limits['gt'], math.inf))
    if 'lt' in limits:
        upper = min(upper, math.nextafter(limits['lt'], -math.inf))
    return float(lower), float(upper)


def _check_changes(node: Node, model: type[P]) -> None:
    """Let nobody set what `model` would not take: wrong types and choices, ints out of range."""

    def check(changes: list[Parameter]) -> SetParametersResult:
        values = {name: node.get_parameter(name).value for name in model.model_fields}
        values |= {c.name: c.value for c in changes if c.name in model.model_fields}
        try:
            model.parse(values, origin=f'parameters of {node.get_name()}')
        except SpecError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(check)


def read_parameters(node: Node, model: type[P]) -> P:
    """Return the declared parameters as `model`. Raises SpecError that names the wrong one."""
    values = {name: node.get_parameter(name).value for name in model.model_fields}
    return model.parse(values, origin=f'parameters of {node.get_name()}')


def command_topic(source: str) -> str:
    """Return where a source commands the guard."""
    return f'{source}/command'


def gripper_topic(source: str) -> str:
    """Return where a source says how far the gripper is to open."""
    return f'{source}/gripper'


def trajectory(joints: Sequence[str], duration_s: float = 0.0) -> JointTrajectory:
    """Return a message with one point, to be filled and published again and again."""
    point = JointTrajectoryPoint(time_from_start=duration(duration_s))
    return JointTrajectory(joint_names=list(joints), points=[point])


def duration(seconds: float) -> DurationMessage:
    """Return a length of time [s] as a message."""
    return DurationMessage(sec=int(seconds), nanosec=round(seconds % 1 * 1e9))


def doubles(values: np.ndarray) -> array.array:
    """Return `values` [n] as what a float64[] field takes without looking at every element."""
    return array.array('d', np.asarray(values, np.float64).tobytes())


def nanoseconds(stamp: Any) -> int:
    """Return a builtin_interfaces Time or Duration in nanoseconds."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def seconds(stamp: Any) -> float:
    """Return a builtin_interfaces Time or Duration in seconds."""
    return stamp.sec + stamp.nanosec * 1e-9
