"""policy and command_guard that keep the time of every tick: what bench deploy runs."""

from __future__ import annotations

import json
import time
from typing import Any

from robot_rl.nodes import support
from robot_rl.nodes.command_guard import CommandGuardNode
from robot_rl.nodes.policy import PolicyNode


class Trace:
    """When messages came, and when the tick that took each of them began [ns since the epoch].

    Of the newest message of each stamp; what came while the tick was under way came at its start.
    """

    def __init__(self) -> None:
        self.ticks: list[int] = []
        self.taken: dict[int, tuple[int, int]] = {}

    def clear(self) -> None:
        """Forget all."""
        self.ticks.clear()
        self.taken.clear()

    def begin(self) -> None:
        """A tick begins."""
        self.ticks.append(time.time_ns())

    def watch(self, polled: support.Polled) -> None:
        """Note the messages of a subscription."""
        take = polled.take

        def noted() -> tuple[Any, dict[str, Any]] | None:
            if (taken := take()) is not None and self.ticks:
                message, about = taken
                began = self.ticks[-1]
                came = min(about['received_timestamp'], began)
                stamp = support.nanoseconds(message.header.stamp)
                self.taken.setdefault(stamp, (came, began))
            return taken

        polled.take = noted

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
        streams = self._streams
        self._trace.watch(streams._joint_states)
        poll = streams.poll

        def traced_poll() -> None:
            self._trace.begin()
            poll()

        streams.poll = traced_poll

    def _run(self, *args: Any) -> None:
        self._trace.clear()  # of the waiting before the episode
        super()._run(*args)


class TracedGuard(Traced, CommandGuardNode):
    """Of a guard: the commands of all sources."""

    def _create_topics(self) -> None:
        super()._create_topics()
        for commands in self._commands.values():
            self._trace.watch(commands)

    def _hear_sources(self, now: float) -> list[str | None]:
        self._trace.begin()
        return super()._hear_sources(now)
