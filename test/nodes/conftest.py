"""Real nodes in real processes on loopback, each test in a ROS domain of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy (extra `ros`, or a ROS installation)')

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from robot_rl.nodes.supervisor import Supervisor, loopback, reserved_domain_id
from robot_rl.specs import RobotSpec
from robot_rl.storage.episode import EpisodeHeader
from robot_rl.storage.foreign import ForeignEpisode, write

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
READER = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
DEADLINE_S = 20.0
RETRY_S = 6.0
ESCAPES = re.compile(r'\x1b\[[0-9;?]*[A-Za-z]')


class Observer:
    """A node of the test: it listens, publishes and calls; every wait has a deadline."""

    def __init__(self, domain_id: int):
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain_id)
        self.node = Node('observer', context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._executor.create_task(lambda: None)
        self._thread.join(DEADLINE_S)
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    def listen(self, kind: type, topic: str, qos: QoSProfile | int = 100) -> list:
        """Return a list that grows with every message."""
        heard: list = []
        self.node.create_subscription(kind, topic, heard.append, qos)
        return heard

    def listen_timed(self, kind: type, topic: str, qos: QoSProfile | int = 100) -> list:
        """Return a list that grows with (when it was sent, by its sender's clock [s], message)."""
        heard: list = []

        def hear(message: Any, about: dict[str, Any]) -> None:
            heard.append((about['source_timestamp'] * 1e-9, message))

        self.node.create_subscription(kind, topic, hear, qos)
        return heard

    def publisher(self, kind: type, topic: str, qos: QoSProfile | int = 10) -> Any:
        """Return a publisher once somebody listens to it."""
        publisher = self.node.create_publisher(kind, topic, qos)
        self.until(publisher.get_subscription_count, f'nobody listens to {topic}')
        return publisher

    def call(self, name: str, kind: type = Trigger, request: Any = None) -> Any:
        """Call a service and return its response.

        It is asked again where nothing comes: DDS drops a response to somebody whom the server
        has not discovered yet.
        """
        client = self.node.create_client(kind, name)
        self.until(client.service_is_ready, f'no service {name}')
        futures: list = []

        def answered() -> list:
            if time.monotonic() > asked + RETRY_S * len(futures):
                futures.append(client.call_async(request or kind.Request()))
            return [future for future in futures if future.done()]

        asked = time.monotonic() - 1e-3
        return self.until(answered, f'no response of {name}')[0].result()

    def until(
        self, condition: Callable[[], Any], what: str = '', deadline_s: float = DEADLINE_S
    ) -> Any:
        """Wait for something true and return it."""
        end = time.monotonic() + deadline_s
        while not (found := condition()):
            assert time.monotonic() < end, f'{what or condition} within {deadline_s} s'
            time.sleep(0.01)
        return found

    def stamp(self) -> Any:
        return self.node.get_clock().now().to_msg()

    def _spin(self) -> None:
        while not self._stop.is_set():
            self._executor.spin_once()


class Conductor:
    """Plays the node session towards one other node."""

    def __init__(self, observer: Observer, node: str):
        self.observer, self.node = observer, node
        self.fields = {'episode': 'e1', 'task': 'ur5e/reach', 'source': 'policy', 'robot': 'ur5e'}
        self.answers = observer.listen(String, f'{node}/status', READER)
        self._publisher = observer.publisher(String, 'session/state', LATCHED)

    def say(self, state: str, result: str | None = None, **fields: Any) -> None:
        self.fields |= fields
        text = json.dumps(self.fields | {'state': state, 'result': result})
        self._publisher.publish(String(data=text))

    def hears(self, state: str, episode: str | None = None) -> str:
        """Wait for an answer in `state` about the episode in hand; return its detail."""
        episode = episode or self.fields['episode']

        def answer() -> list[dict]:
            answers = [json.loads(message.data) for message in self.answers]
            return [a for a in answers if (a['episode'], a['state']) == (episode, state)]

        told = lambda: [message.data for message in self.answers[-3:]]  # noqa: E731
        try:
            return self.observer.until(answer)[-1]['detail']
        except AssertionError:
            raise AssertionError(
                f'{self.node} never was {state!r} for {episode}: {told()}'
            ) from None


class Arm:
    """Publishes joint states from a thread, as a driver would."""

    def __init__(
        self, observer: Observer, names: list[str], positions: list[float], rate_hz: float
    ):
        self.message = JointState(name=names, position=positions, velocity=[0.0] * len(names))
        self.stamps: list[tuple[int, int]] = []
        self.heard = 0  # samples since somebody listens
        self._observer = observer
        self._publisher = observer.node.create_publisher(JointState, 'joint_states', 10)
        self._timer = observer.node.create_timer(1.0 / rate_hz, self._publish)

    def stop(self) -> None:
        self._timer.cancel()

    def _publish(self) -> None:
        self.message.header.stamp = self._observer.stamp()
        self.stamps.append((self.message.header.stamp.sec, self.message.header.stamp.nanosec))
        self.heard += bool(self._publisher.get_subscription_count())
        self._publisher.publish(self.message)


class Terminal:
    """What is drawn on a pseudo-terminal."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        self.path = os.ttyname(self.theirs)
        self.drawn = b''
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def text(self) -> str:
        """Return all that was drawn, without colours."""
        return ESCAPES.sub('', self.drawn.decode())

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._ours, keys)

    def hang_up(self) -> None:
        """Close it, as a window is closed; once is enough."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        os.close(self.theirs)
        os.close(self._ours)

    def _read(self) -> None:
        while not self._stop.is_set():
            if select.select([self._ours], [], [], 0.05)[0]:
                self.drawn += os.read(self._ours, 65536)


@pytest.fixture
def domain_id(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    for name, value in loopback().items():  # as the supervisor's nodes
        monkeypatch.setenv(name, value)
    with reserved_domain_id() as domain_id:
        yield domain_id


@pytest.fixture
def supervisor(tmp_path, domain_id) -> Iterator[Supervisor]:
    """Start nodes with it; whatever happens, none is left, and none has raised."""
    with Supervisor(tmp_path / 'logs', domain_id) as supervisor:
        yield supervisor
        names = list(supervisor.children)
    for name in names:
        assert 'Traceback' not in supervisor.log(name), supervisor.log(name)


@pytest.fixture
def observer(domain_id) -> Iterator[Observer]:
    observer = Observer(domain_id)
    yield observer
    observer.close()


@pytest.fixture
def conductor(observer) -> Callable[[str], Conductor]:
    return lambda node: Conductor(observer, node)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.hang_up()


@pytest.fixture
def ur5e() -> RobotSpec:
    return RobotSpec.load('ur5e')


@pytest.fixture
def arm(observer, ur5e) -> Callable[..., Arm]:
    """Return `make(names, positions)`; without arguments the UR5e at home."""

    def make(
        names: list[str] | None = None,
        positions: list[float] | None = None,
        rate_hz: float = 100.0,
    ) -> Arm:
        home = [ur5e.home[name] for name in ur5e.joints]
        return Arm(observer, list(names or ur5e.joints), list(positions or home), rate_hz)

    return make


@pytest.fixture
def still_episode(tmp_path, ur5e) -> Callable[..., Path]:
    """Return `make(root, pose)`: an episode with columns only, from home or `pose` a little on."""

    def make(root: Path = tmp_path, pose: np.ndarray | None = None) -> Path:
        pose = np.array([ur5e.home[name] for name in ur5e.joints]) if pose is None else pose
        path = pose + np.linspace(0, 0.1, 41)[:, None]
        columns = {
            'time': 1_700_000_000 + np.arange(41) / 20,
            'joint_states.position': path,
            'action/requested': np.diff(path, axis=0),
            'action/applied': np.diff(path, axis=0),
        }
        root.mkdir(exist_ok=True)
        header = EpisodeHeader(id='still', robot='ur5e', robot_spec=ur5e)
        return write(root, ForeignEpisode(header, columns))

    return make


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show what the nodes of a failed test have written."""
    report = yield
    supervisor = item.funcargs.get('supervisor')
    if report.failed and supervisor:
        for name in supervisor.children:
            report.sections.append((f'log of {name}', supervisor.log(name)))
    return report


@pytest.fixture
def command(tmp_path: Path, domain_id: int) -> Iterator[Callable[..., subprocess.Popen]]:
    """Return `start(*words)`, which starts `robot-rl <words>` in an empty folder, in this domain.

    What still runs at the end is ended, with the nodes that it has started.
    """
    started = []

    def start(*words: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, '-m', 'robot_rl.cli.main', *words],
            cwd=tmp_path,
            env=os.environ | {'ROS_DOMAIN_ID': str(domain_id)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
