"""Nodes that keep the time of every tick and message: what bench deploy runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from robot_rl.nodes import support
from robot_rl.nodes.command_guard import CommandGuardNode
from robot_rl.nodes.policy import PolicyNode
from robot_rl.nodes.sim_robot import SimRobot


def _watch(polled: support.Polled, note: Callable[[Any, dict[str, Any]], None]) -> None:
    """Call `note` with every message that is taken, and what DDS knows of it."""
    take = polled.take

    def noted() -> tuple[Any, dict[str, Any]] | None:
        if (taken := take()) is not None:
            note(*taken)
        return taken

    polled.take = noted


class Trace:
    """When messages came, and when the tick that took each of them began [ns since the epoch].

    Of the first message of each stamp; what came while the tick was under way came at its start.
    What was taken beforehand, to prepare a tick, waits for it; a preparation that takes too long
    is a tick that has begun.
    """

    def __init__(self) -> None:
        self.ticks: list[int] = []
        self.taken: dict[int, tuple[int, int]] = {}
        self._before: list[tuple[int, int]] = []  # stamp and arrival of what waits for a tick
        self._due_ns: int | None = None  # when the tick begins that is being prepared

    def clear(self) -> None:
        """Forget all."""
        self.ticks.clear()
        self.taken.clear()
        self._before.clear()

    def prepare(self, due_s: float) -> None:
        """The tick is being prepared that is due at a steady time."""
        self._due_ns = time.time_ns() + round((due_s - time.monotonic()) * 1e9)

    def begin(self) -> None:
        """A tick begins."""
        began = time.time_ns()
        if self._due_ns is not None:
            began, self._due_ns = min(began, self._due_ns), None
        self.ticks.append(began)
        for stamp, came in self._before:
            self._note(stamp, came)
        self._before.clear()

    def watch(self, polled: support.Polled) -> None:
        """Note the messages of a subscription."""

        def note(message: Any, about: dict[str, Any]) -> None:
            stamp = support.nanoseconds(message.header.stamp)
            if self._due_ns is not None:
                self._before.append((stamp, about['received_timestamp']))
            elif self.ticks:
                self._note(stamp, about['received_timestamp'])

        _watch(polled, note)

    def _note(self, stamp: int, came: int) -> None:
        began = self.ticks[-1]
        self.taken.setdefault(stamp, (min(came, began), began))

    def tell(self) -> None:
        """Print {"ticks_ns": [...], "taken": [[stamp_ns, came_ns, began_ns], ...]}."""
        taken = [[stamp, *times] for stamp, times in self.taken.items()]
        print(json.dumps({'ticks_ns': self.ticks, 'taken': taken}), flush=True)


class Traced:
    """A node that says, when it ends, when its messages came and its ticks began."""

    def __init__(self) -> None:
        self._trace = Trace()
        super().__init__()

    def close(self) -> None:
        """Stop the work and say what was noted."""
        super().close()
        self._trace.tell()


class TracedPolicy(Traced, PolicyNode):
    """Of a policy: the samples of joint states."""

    def _create_topics(self, *args: Any) -> None:
        super()._create_topics(*args)
        self._trace.watch(self._streams._joint_states)

    def _prepare(self, due_s: float) -> None:
        self._trace.prepare(due_s)
        super()._prepare(due_s)

    def _tick(self) -> None:
        self._trace.begin()
        super()._tick()

    def _run(self, *args: Any) -> None:
        self._trace.clear()  # of the waiting before the episode
        super()._run(*args)


class TracedGuard(Traced, CommandGuardNode):
    """Of a guard: the commands of all sources."""

    def _create_topics(self) -> None:
        super()._create_topics()
        for commands in self._commands.values():
            self._trace.watch(commands)

    def _prepare_tick(self, due_s: float) -> None:
        self._trace.prepare(due_s)
        super()._prepare_tick(due_s)

    def _tick(self, now: float) -> None:
        self._trace.begin()
        super()._tick(now)


class TracedTwin(SimRobot):
    """A twin that says, when it ends, when each command came that the driver takes.

    {"commands": [[published_ns, came_ns], ...]}, since the epoch.
    """

    def _create_topics(self) -> None:
        super()._create_topics()
        self._came: list[tuple[int, int]] = []
        kind = self._commands._subscription.msg_type
        self._commands.destroy(self)
        # A driver takes the newest; here none of them is to be missed.
        topic = self._robot.controller.topic
        self._commands = support.Polled(self, kind, topic, support.STREAM)

        def note(_: Any, about: dict[str, Any]) -> None:
            self._came.append((about['source_timestamp'], about['received_timestamp']))

        _watch(self._commands, note)

    def close(self) -> None:
        """Stop the work and say what was noted."""
        super().close()
        print(json.dumps({'commands': self._came}), flush=True)
