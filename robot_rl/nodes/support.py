"""What every node needs: parameters, QoS, polled subscriptions, the work thread, a clean end."""

from __future__ import annotations

import array
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.callback_groups import CallbackGroup
from rclpy.duration import Duration
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from robot_rl.control.clocks import SteadyClock, ticks
from robot_rl.control.session import SessionInfo
from robot_rl.errors import RobotRLError, SpecError, did_you_mean
from robot_rl.nodes.main import End
from robot_rl.nodes.supervisor import report_ready
from robot_rl.specs import Spec

# Relative names: a namespace moves a whole arm.
SESSION_STATE = 'session/state'
TARGET_POSE = 'target_pose'
ESTOP = 'estop'
POLICY_COMMAND = 'policy/command'
POLICY_ACTION = 'policy/action'
APPLIED = 'command_guard/applied'
SOURCE = 'command_guard/source'
TELEOP_COMMAND = 'teleop/command'

# A command is never queued: the newest one counts.
COMMAND = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
# What is published for control and for the record: a recorder that is late loses nothing.
STREAM = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
# How control reads sensors (REP 2003): the newest sample, from any publisher.
SENSOR = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
# The newest two: a velocity that is a difference of positions is one of neighbours.
NEIGHBOURS = QoSProfile(depth=2, reliability=ReliabilityPolicy.BEST_EFFORT)
# DDS itself says for a process, from a thread of its own, that it is alive: no Python can be late.
_ALIVE_EVERY_S, _GONE_AFTER_S = 0.05, 0.06


def _latched(depth: int, lease_s: float | None = None) -> QoSProfile:
    """Return the QoS of a state that newcomers get as well; `lease_s`: of who is to be alive."""
    lease = {} if lease_s is None else {'liveliness_lease_duration': Duration(seconds=lease_s)}
    return QoSProfile(
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
        liveliness=LivelinessPolicy.AUTOMATIC,
        **lease,
    )


# The newest one only; who is there gets every one of them.
LATCHED = _latched(1, _ALIVE_EVERY_S)
LATCHED_READER = _latched(10)
# How to hear that whoever publishes such a state is gone.
_WATCHING = _latched(1, _GONE_AFTER_S)

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
        except RobotRLError as error:
            _print_error(None, error)
            self._end(2)
        except BaseException:
            traceback.print_exc()
            self._end(1)


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


def every(period_s: float, stop: threading.Event) -> Iterator[float]:
    """Yield the steady time [s] at absolute deadlines until `stop` is set."""
    for now in ticks(SteadyClock(), period_s):
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
        self.info = SessionInfo()
        self._status = node.create_publisher(String, f'{node.get_name()}/status', LATCHED)
        node.create_subscription(String, SESSION_STATE, self._hear, LATCHED_READER)

    def watch(self, node: str, on_change: Callable[[str, bool], None]) -> None:
        """Call `on_change(node, alive)` when another node's process dies, hangs or is back."""
        topic = SESSION_STATE if node == 'session' else f'{node}/status'
        events = SubscriptionEventCallbacks(
            liveliness=lambda change: on_change(node, change.alive_count > 0)
        )
        self._node.create_subscription(String, topic, _never, _WATCHING, event_callbacks=events)

    def report(self, state: str, detail: str = '') -> None:
        """Say how far this node is with the episode in hand."""
        answer = Answer(episode=self.info.episode, state=state, detail=detail)
        self._status.publish(String(data=answer.to_json()))
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


class Diagnostics:
    """Publishes one DiagnosticStatus of a node on /diagnostics."""

    def __init__(self, node: Node, hardware_id: str):
        self._clock = node.get_clock()
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 1)
        name = node.get_fully_qualified_name().lstrip('/')
        self._status = DiagnosticStatus(name=name, hardware_id=hardware_id)

    def publish(self, level: bytes, message: str, values: dict[str, Any]) -> None:
        """Publish `values` under a `level` of DiagnosticStatus and one line of text."""
        self._status.level, self._status.message = level, message
        self._status.values = [KeyValue(key=k, value=str(v)) for k, v in values.items()]
        array_ = DiagnosticArray(status=[self._status])
        array_.header.stamp = self._clock.now().to_msg()
        self._publisher.publish(array_)


def declare_parameters(node: Node, model: type[P], changeable: Collection[str] = ()) -> None:
    """Declare one ROS parameter per field of `model`, with its default and description.

    All but the `changeable` ones are read-only. Raises SpecError for an override that is no
    parameter, with the nearest that is one.
    """
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        default = list(default) if isinstance(default, tuple) else default
        # An int is a fine float: pydantic checks the types, ranges and choices.
        descriptor = ParameterDescriptor(
            description=field.description or '',
            read_only=name not in changeable,
            dynamic_typing=True,
        )
        node.declare_parameter(name, default, descriptor)
    for name in node._parameter_overrides:
        if not node.has_parameter(name) and not name.startswith('qos_overrides.'):
            raise SpecError(
                f'parameter {name}: {node.get_name()} has none of that name'
                + did_you_mean(name, model.model_fields)
            )


def read_parameters(node: Node, model: type[P]) -> P:
    """Return the declared parameters as `model`. Raises SpecError that names the wrong one."""
    values = {name: node.get_parameter(name).value for name in model.model_fields}
    return model.parse(values, origin=f'parameters of {node.get_name()}')


def command_topic(source: str) -> str:
    """Return where a source commands the guard."""
    return f'{source}/command'


def trajectory(joints: Sequence[str], duration_s: float = 0.0) -> JointTrajectory:
    """Return a message with one point, to be filled and published again and again."""
    point = JointTrajectoryPoint()
    point.time_from_start.sec = int(duration_s)
    point.time_from_start.nanosec = round(duration_s % 1 * 1e9)
    return JointTrajectory(joint_names=list(joints), points=[point])


def doubles(values: np.ndarray) -> array.array:
    """Return `values` [n] as what a float64[] field takes without looking at every element."""
    return array.array('d', np.asarray(values, np.float64).tobytes())


def seconds(stamp: Any) -> float:
    """Return a builtin_interfaces Time or Duration in seconds."""
    return stamp.sec + stamp.nanosec * 1e-9
