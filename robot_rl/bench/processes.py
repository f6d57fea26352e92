"""What is asked of the nodes that a benchmark runs: what they say at their end, and their CPU."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from robot_rl.nodes.supervisor import Supervisor


def last_words(supervisor: Supervisor, name: str) -> dict[str, Any]:
    """End a node and return what it prints."""
    supervisor.children[name].terminate()
    (words,) = supervisor.follow(name, 10)
    return words


@contextlib.contextmanager
def cpu_shares(supervisor: Supervisor, links: Mapping[str, str]) -> Iterator[dict[str, float]]:
    """Give the share of a core that each node takes meanwhile, by what it is called here."""
    shares: dict[str, float] = {}
    pids = {link: supervisor.children[name].pid for name, link in links.items()}
    before, start = {link: _cpu_seconds(pid) for link, pid in pids.items()}, time.monotonic()
    yield shares
    elapsed = time.monotonic() - start
    for link, pid in pids.items():
        shares[link] = (_cpu_seconds(pid) - before[link]) / elapsed


def _cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has had (user and system; proc(5))."""
    fields = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
