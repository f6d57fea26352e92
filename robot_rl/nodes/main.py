"""Entry points of the nodes: `ros2 run robot_rl <node>` and `python -m robot_rl.nodes <node>`.

Signals are heard from the first line on, before the slow imports, so that SIGINT and SIGTERM end
a node with exit code 0 at any time, also where it was started with SIGINT ignored. They only set
a flag: an exception inside the import of a C extension would look like a broken installation.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable

from robot_rl.errors import RobotRLError, UnknownName

NODES = {
    'sim_robot': 'robot_rl.nodes.sim_robot:SimRobot',
    'policy': 'robot_rl.nodes.policy:PolicyNode',
    'command_guard': 'robot_rl.nodes.command_guard:CommandGuardNode',
    'episode_recorder': 'robot_rl.nodes.episode_recorder:EpisodeRecorder',
    'session': 'robot_rl.nodes.session:SessionNode',
    'camera': 'robot_rl.nodes.camera:CameraNode',
    'image_feed': 'robot_rl.nodes.image_feed:ImageFeed',
    'replay': 'robot_rl.nodes.replay:Replay',
    'screen': 'robot_rl.nodes.screen:Screen',
    'teleop': 'robot_rl.nodes.teleop:Teleop',
    'echo': 'robot_rl.nodes.echo:Echo',
    'generator': 'robot_rl.nodes.generator:Generator',
    'traced_policy': 'robot_rl.nodes.traced:TracedPolicy',
    'traced_guard': 'robot_rl.nodes.traced:TracedGuard',
    'traced_twin': 'robot_rl.nodes.traced:TracedTwin',
}
# For robot-rl bench deploy and bench record only.
FOR_BENCHES = {'echo', 'generator', 'traced_policy', 'traced_guard', 'traced_twin'}
_CLOSE_WITHIN_S = 8.0
_SIGEV_THREAD = 2  # <signal.h>


class End:
    """The wish to end: set by a signal or by the node itself; wait() returns once it is there.

    A pipe, because a lock of threading may be held by what a signal interrupts.
    """

    def __init__(self) -> None:
        self.asked, self.code = False, 0
        self._reader, self._writer = os.pipe()
        # By Python's C handler: ours would wait for the main thread, which may have just gone to
        # sleep in wait(), or sleep on while another thread gets the signal.
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        _handle(lambda *_: self())

    def __call__(self, code: int = 0) -> None:
        """Ask for the end of the node with an exit code; the first one counts."""
        if not self.asked:
            self.asked, self.code = True, code
            os.write(self._writer, b'.')

    def wait(self) -> None:
        """Wait (once) until the node is to end, then make sure that it does, whatever hangs."""
        os.read(self._reader, 1)
        # Python hands SIGINT back to the system before the process is gone: a second Ctrl-C
        # would turn a clean end into a death by signal.
        _handle(signal.SIG_IGN)
        # Of the system, not of Python: what hangs inside an extension may hold Python's own lock.
        faulthandler.dump_traceback_later(_CLOSE_WITHIN_S, exit=True)


class _Event(ctypes.Structure):
    """struct sigevent of <signal.h>: call `function(value)` in a thread of its own."""

    _fields_ = (
        ('value', ctypes.c_void_p),
        ('number', ctypes.c_int),
        ('notify', ctypes.c_int),
        ('function', ctypes.c_void_p),
        ('rest', ctypes.c_byte * 40),
    )


def leave_within(seconds: int, code: int) -> None:
    """End the process with `code` after some seconds, unless it has ended before.

    A timer of the C library calls its _exit: what hangs inside an extension may hold Python's
    lock, without which no thread and no signal handler of Python's runs.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # who reads it may be gone
            stream.flush()
    libc = ctypes.CDLL(None, use_errno=True)
    leave = ctypes.cast(libc._exit, ctypes.c_void_p)
    event = _Event(value=code, notify=_SIGEV_THREAD, function=leave)
    timer, when = ctypes.c_void_p(), (ctypes.c_long * 4)(0, 0, seconds, 0)
    libc.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer))
    libc.timer_settime(timer, 0, when, None)


def _handle(handler: Callable[..., None] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def run(node: str, args: list[str] | None = None) -> int:
    """Run one node until it ends; return its exit code. Raises UnknownName."""
    end = End()
    from robot_rl.nodes import supervisor

    supervisor.begin()
    if node not in NODES:
        raise UnknownName('node', node, NODES)
    from robot_rl.nodes import support

    module, name = NODES[node].split(':')
    node_class = getattr(importlib.import_module(module), name)
    if end.asked:
        end.wait()
        return end.code
    code = support.run(node_class, args, end)  # which has flushed what was said
    os._exit(code)  # what DDS does while a process is taken apart hangs now and then


def sim_robot() -> int:
    """The simulated arm."""
    return run('sim_robot')


def policy() -> int:
    """The policy, a lifecycle node."""
    return run('policy')


def command_guard() -> int:
    """The only publisher to the arm."""
    return run('command_guard')


def episode_recorder() -> int:
    """The recorder of episodes."""
    return run('episode_recorder')


def session() -> int:
    """The conductor of episodes."""
    return run('session')


def camera() -> int:
    """The simulated arm's cameras."""
    return run('camera')


def image_feed() -> int:
    """What decodes pictures for the policy."""
    return run('image_feed')


def replay() -> int:
    """What gives the commands of an episode again."""
    return run('replay')


def screen() -> int:
    """What shows on a terminal how a recording goes."""
    return run('screen')


def teleop() -> int:
    """What a person commands the arm by."""
    return run('teleop')


def main() -> int:
    """Run the node named by the first argument."""
    if len(sys.argv) < 2:
        print(f'usage: python -m robot_rl.nodes {{{",".join(NODES)}}} [--ros-args ...]')
        return 2
    try:
        return run(sys.argv[1], sys.argv[1:])
    except RobotRLError as error:
        print(f'robot_rl.nodes: {error}', file=sys.stderr)
        return 2
