"""Starts nodes as child processes, watches them, and leaves none behind.

It imports neither rclpy nor torch, so a process that trains can also run a robot's nodes.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import yaml

from robot_rl import resources
from robot_rl.errors import RobotRLError

# docs.ros.org, The ROS_DOMAIN_ID: the last one that has ports, and the last one whose ports no
# system gives to others.
LAST_DOMAIN, LAST_FREE_DOMAIN = 232, 101
PARENT = 'ROBOT_RL_PARENT'  # the pid without which a node does not go on
READY_FILE = 'ROBOT_RL_READY_FILE'  # a node creates this file once it works
_PROFILES = 'FASTDDS_DEFAULT_PROFILES_FILE'
# What ends a node in good order.
ENDING = signal.SIGINT, signal.SIGTERM
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_POLL_S = 0.02
# What stands before a line: [FATAL] [<seconds>] [<node>]: of rclpy, or ours without it.
_LOGGED = re.compile(r'^(\[\w+\] \[[\d.]+\] \[\S+\]|robot_rl\.nodes): ')


class NodeFailure(RobotRLError, RuntimeError):
    """A node ended by itself or did not do in time what it was asked."""


class Supervisor:
    """Runs nodes in process groups of their own; use it as a context manager.

    Each node writes <log_dir>/<name>.log (standard error), <name>.out (standard output) and
    <name>.yaml (its parameters). Use it from a thread that lives as long as the nodes: Linux
    takes the end of the thread that started them for the end of their parent.
    """

    def __init__(
        self,
        log_dir: str | Path,
        domain_id: int | None = None,
        namespace: str = '',
        discovery: str = 'LOCALHOST',
    ):
        self.log_dir = Path(log_dir)
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self._reservation = contextlib.ExitStack()
        if domain_id is None:
            domain_id = self._reservation.enter_context(reserved_domain_id())
        self.domain_id = domain_id
        self.namespace, self.discovery = namespace, discovery
        self._commands: dict[str, list[str]] = {}
        self._read: dict[Path, int] = {}  # how far each file has been read by new_lines
        self.children: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._reservation.close()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the nodes: this domain and discovery range, logs in log_dir.

        Messages go over UDP unless the environment says otherwise: a killed process leaves its
        shared memory behind, half a megabyte a node, until the machine has none.
        """
        reach = {'ROS_AUTOMATIC_DISCOVERY_RANGE': self.discovery}
        return (
            {'FASTDDS_BUILTIN_TRANSPORTS': 'UDPv4'}
            | os.environ
            | (loopback() if self.discovery == 'LOCALHOST' else reach)
            | {
                'ROS_DOMAIN_ID': str(self.domain_id),
                'ROS_LOG_DIR': str(self.log_dir / 'ros'),
                'RCUTILS_COLORIZED_OUTPUT': '0',
                'OPENBLAS_NUM_THREADS': '1',
                'OMP_NUM_THREADS': '1',
                'PYTHONUNBUFFERED': '1',
                PARENT: str(os.getpid()),
            }
        )

    def start(
        self,
        node: str,
        parameters: Mapping[str, Any] | None = None,
        name: str = '',
        ros_arguments: Sequence[str] = (),
    ) -> subprocess.Popen:
        """Start `node` (sim_robot, policy, ...) with its ROS parameters, called `name` here.

        `ros_arguments` stand before them: what a file of parameters among these says is less.
        """
        file = self._file(name or node, 'yaml')
        file.write_text(yaml.safe_dump({'/**': {'ros__parameters': dict(parameters or {})}}))
        command = [sys.executable, '-m', 'robot_rl.nodes', node, '--ros-args', *ros_arguments]
        command += ['--params-file', str(file)] if parameters else []
        command += ['-r', f'__ns:=/{self.namespace.strip("/")}'] if self.namespace else []
        return self.start_command(name or node, command)

    def start_command(self, name: str, command: list[str]) -> subprocess.Popen:
        """Start any command that keeps the conventions of this module (see `begin`)."""
        if name in self.children:
            raise NodeFailure(f'supervisor: {name} has been started already')
        mode = 'ab' if name in self._commands else 'wb'  # of one started anew, what was said stays
        self._commands[name] = command
        ready = self._file(name, 'ready')
        ready.unlink(missing_ok=True)
        with (
            self._file(name, 'log').open(mode) as log,
            self._file(name, 'out').open(mode) as out,
            _kept_waiting(ENDING),
        ):
            self.children[name] = subprocess.Popen(
                command,
                env=self.environment | {READY_FILE: str(ready)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C reaches the supervisor only
            )
        return self.children[name]

    def restart(self, name: str) -> subprocess.Popen:
        """Start a node anew that has ended."""
        self.children.pop(name).wait()
        return self.start_command(name, self._commands[name])

    def new_lines(self) -> Iterator[tuple[str, str]]:
        """Yield (node, line) for every line that nodes have written since the last call."""
        for name in self._commands:
            for suffix in ('log', 'out'):
                path = self._file(name, suffix)
                with path.open(encoding='utf-8', errors='replace') as file:
                    file.seek(self._read.get(path, 0))
                    for line in _whole_lines(file):
                        yield name, line.rstrip('\n')
                    self._read[path] = file.tell()

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until every node works. Raises NodeFailure that says which one does not."""
        deadline = time.monotonic() + timeout_s
        while waiting := [n for n in self.children if not self._file(n, 'ready').exists()]:
            self.check()
            if time.monotonic() > deadline:
                raise NodeFailure(
                    f'not ready within {timeout_s:g} s: '
                    + '; '.join(f'{name}: {self.last_words(name, 3)}' for name in waiting)
                )
            time.sleep(_POLL_S)
        self.check()

    def check(self) -> None:
        """Raise NodeFailure, with its last words, where a node has ended with an error."""
        for name, child in self.children.items():
            if child.poll():
                words = self.last_words(name, 3)
                raise NodeFailure(f'ended with code {child.returncode}: {name}: {words}')

    def follow(self, node: str, timeout_s: float) -> Iterator[dict[str, Any]]:
        """Yield each JSON line that `node` prints, as it comes, until it ends.

        Raises NodeFailure where any node dies, or where `timeout_s` pass without a line.
        """
        deadline = time.monotonic() + timeout_s
        with self._file(node, 'out').open(encoding='utf-8') as out:
            while True:
                ended = self.children[node].poll() is not None
                for line in _whole_lines(out):
                    yield json.loads(line)
                    deadline = time.monotonic() + timeout_s
                self.check()
                if ended:
                    return
                if time.monotonic() > deadline:
                    raise NodeFailure(
                        f'nothing within {timeout_s:g} s from {node}: {self.last_words(node, 3)}'
                    )
                time.sleep(_POLL_S)

    def stop(self, timeout_s: float = 5.0) -> dict[str, int]:
        """End every node: SIGINT, then SIGTERM, then SIGKILL; return their exit codes."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            for child in self.children.values():
                if child.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.pid, number)
            deadline = time.monotonic() + timeout_s
            for child in self.children.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.0, deadline - time.monotonic()))
        codes = {name: child.returncode for name, child in self.children.items()}
        self.children.clear()
        return codes

    def log(self, node: str) -> str:
        """Return what `node` has written to standard error so far."""
        return self._file(node, 'log').read_text(errors='replace')

    def last_words(self, node: str, lines: int = 1) -> str:
        """Return the last lines that `node` has written to standard error, and where more are."""
        last = [line for line in self.log(node).splitlines() if line.strip()][-lines:]
        words = ' | '.join(_LOGGED.sub('', line) for line in last)
        return f'{words or "it wrote nothing"} (log: {self._file(node, "log")})'

    def _file(self, name: str, suffix: str) -> Path:
        return self.log_dir / f'{name}.{suffix}'


@contextlib.contextmanager
def _kept_waiting(numbers: Collection[signal.Signals]) -> Iterator[None]:
    """Have signals wait; a child that is started meanwhile gets them once it wants to.

    Python would end with a traceback where SIGINT comes before its first line is read.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _whole_lines(file) -> Iterator[str]:
    """Yield the lines that have been written to their end; the next call goes on from there."""
    while True:
        start = file.tell()
        line = file.readline()
        if not line.endswith('\n'):
            file.seek(start)
            return
        if line.strip():
            yield line


def loopback() -> dict[str, str]:
    """Return the environment in which no socket of a node can be reached from another machine.

    With an RMW other than that of Fast DDS, or a profile of the user's, ROS sees to it.
    """
    ours = str(resources.find('config/dds', 'loopback', '.xml'))
    fast_dds = os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp').startswith('rmw_fastrtps')
    if not fast_dds or os.environ.get(_PROFILES, ours) != ours:
        return {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
    return {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'SYSTEM_DEFAULT', _PROFILES: ours}


@contextlib.contextmanager
def reserved_domain_id() -> Iterator[int]:
    """Hold a ROS domain id from 1 to 100 that nobody else holds who asks here.

    Two graphs in one domain hear each other: arms would obey the wrong policy. Raises
    NodeFailure where all are taken.
    """
    for number in range(100):
        domain = 1 + (os.getpid() + number) % 100
        path = Path(tempfile.gettempdir()) / f'robot_rl-domain-{domain}.lock'
        lock = _locked(path)
        if lock is not None:
            with lock:
                yield domain
            return
    raise NodeFailure('ROS domain ids 1 to 100 are all in use; end what runs there first')


def ros_domain() -> int:
    """Return the ROS domain of this environment. Raises RobotRLError where it is none."""
    domain = os.environ.get('ROS_DOMAIN_ID') or '0'
    if not domain.isdecimal() or int(domain) > LAST_DOMAIN:
        raise RobotRLError(f'ROS_DOMAIN_ID={domain}: right is a number from 0 to {LAST_DOMAIN}')
    return int(domain)


@contextlib.contextmanager
def the_only_guard(domain_id: int, namespace: str) -> Iterator[None]:
    """Hold the right to run a command_guard in a domain and namespace, as far as we start them.

    Two of them would command one arm. Raises NodeFailure where another process of this user has
    it; of other users nothing is known.
    """
    words = 'robot_rl-guard', str(os.getuid()), str(domain_id), *namespace.strip('/').split('/')
    lock = _locked(Path(tempfile.gettempdir()) / ('-'.join(filter(None, words)) + '.lock'))
    if lock is None:
        where = f' and namespace {namespace}' if namespace else ''
        raise NodeFailure(
            f'another robot-rl commands the arm in ROS domain {domain_id}{where}; end it first, '
            'or set another ROS_DOMAIN_ID'
        )
    with lock:
        yield


def _locked(path: Path) -> IO[str] | None:
    """Open and lock a file, which gives the lock back however we end; None: somebody has it."""
    try:
        file = path.open('a')
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def begin() -> None:
    """Child's side: die with the supervisor, however it dies. Without one, do nothing.

    Signals that have waited come now.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it died before prctl
        raise SystemExit(1)


def report_ready() -> None:
    """Child's side: tell the supervisor, if there is one, that the node works."""
    if READY_FILE in os.environ:
        Path(os.environ[READY_FILE]).touch()
