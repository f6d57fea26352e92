"""Start the nodes of a graph as its launch file does, where there is no ros2 launch."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TextIO

import pydantic
import tyro

from robot_rl import resources
from robot_rl.cli import common
from robot_rl.errors import RobotRLError, UnknownName
from robot_rl.nodes.graphs import GRAPHS, RESPAWN_AFTER_S, WRONG_INPUT_CODE, Graph, Process
from robot_rl.nodes.supervisor import Supervisor, ros_domain, the_only_guard
from robot_rl.nodes.terminal import cursor_shown, given_back

EXAMPLE = 'robot-rl up deploy policy:=ur5e_reach episodes:=5'
_POLL_S = 0.05
_ENDED = 'has ended with code'


class Options(common.Options):
    """Which graph, and the arguments of its launch file."""

    graph: Annotated[str, tyro.conf.Positional] = pydantic.Field(description=', '.join(GRAPHS))
    arguments: Annotated[tuple[str, ...], tyro.conf.Positional] = pydantic.Field(
        (), description='name:=value, as for ros2 launch'
    )
    show_args: bool = pydantic.Field(False, description='list the arguments, and start nothing')
    log_dir: Path | None = pydantic.Field(
        None, description="folder of the nodes' logs; without it a new one in the temporary folder"
    )


def main(argv: list[str]) -> int:
    """Run the graph until a node ends or a signal comes; exit with the code of that node."""
    options = common.parse(Options, argv, 'up', __doc__, EXAMPLE)
    if options.graph not in GRAPHS:
        raise UnknownName('graph', options.graph, GRAPHS)
    graph = GRAPHS[options.graph]
    if options.show_args:
        common.emit(_described(graph), options.as_json, _show(graph))
        return 0
    arguments = pairs(options.arguments, 'up')
    return run(
        options.graph, arguments, options.log_dir, said(options.graph, arguments, sys.stdout)
    )


def said(graph: str, arguments: Mapping[str, str], file: TextIO) -> Callable[[str, str], None]:
    """Return what prints a line of a node; nothing, where the nodes draw a screen."""
    if GRAPHS[graph].values(arguments).has_screen:
        return lambda node, line: None
    return lambda node, line: print(f'[{node}] {line}', file=file, flush=True)


def ended(node: str, line: str) -> dict[str, Any] | None:
    """Return what session prints of an episode that has ended; None: a line is another."""
    return json.loads(line) if node == 'session' and line.startswith('{') else None


def run(
    name: str,
    arguments: Mapping[str, str],
    log_dir: Path | None,
    show: Callable[[str, str], None],
    meanwhile: Callable[[Supervisor], bool] = lambda supervisor: False,
) -> int:
    """Run a graph until a node ends or a signal comes; return the exit code of that node.

    `show(node, line)` is given what the nodes say; `meanwhile` is called again and again, and
    where it returns True that is the end. Where the end was an error, the last line on stderr
    says whose, and why.
    """
    graph = GRAPHS[name]
    if 'terminal' in graph.arguments and (terminal := _terminal()):
        arguments = {'terminal': terminal} | dict(arguments)  # nodes have no /dev/tty of their own
    values = graph.values(arguments)
    processes = graph.nodes(values)  # what is wrong shows before anything is started
    common.require_ros(name)
    file = values['params_file'] or str(resources.find('config/nodes', graph.default_file))
    ros_arguments = ['--params-file', file, '--log-level', values['log_level']]
    domain_id = ros_domain()
    discovery = os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    with contextlib.ExitStack() as stack:
        if values.read_terminal:
            stack.enter_context(given_back(values.read_terminal))
        if values.has_screen:
            stack.enter_context(cursor_shown(values['terminal']))
        if any(process.executable == 'command_guard' for process in processes):
            stack.enter_context(the_only_guard(domain_id, values['namespace']))
        stop = Stop()
        log_dir = log_dir or Path(tempfile.mkdtemp(prefix=f'robot-rl-{name}-'))
        print(f'robot-rl: domain {domain_id}, {discovery}; logs in {log_dir}', file=sys.stderr)
        supervisor = stack.enter_context(
            Supervisor(log_dir, domain_id, values['namespace'], discovery)
        )
        for process in processes:
            supervisor.start(process.executable, process.parameters, ros_arguments=ros_arguments)
        name, code = _watch(supervisor, processes, stop, show, meanwhile)
        supervisor.stop()
        _show_lines(supervisor, show)
    if code:
        print(f'robot-rl: {name} {_ENDED} {code}: {supervisor.last_words(name)}', file=sys.stderr)
    return code if code >= 0 else 1


class Stop:
    """Whether SIGINT or SIGTERM has come: a flag, as a lock may be held by what they interrupt."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True


def _watch(
    supervisor: Supervisor,
    processes: list[Process],
    stop: Stop,
    show: Callable[[str, str], None],
    meanwhile: Callable[[Supervisor], bool],
) -> tuple[str, int]:
    """Show what the nodes say until one ends for good, `stop` is asked or `meanwhile` is True.

    Returns which has ended, and its exit code; '' and 0 where none has.
    """
    respawned = {process.executable for process in processes if process.respawn}
    while not stop.asked:
        time.sleep(_POLL_S)
        _show_lines(supervisor, show)
        if meanwhile(supervisor):
            break
        for name, child in list(supervisor.children.items()):
            code = child.poll()
            if code is None:
                continue
            show(name, f'{_ENDED} {code}')
            if name not in respawned or code == WRONG_INPUT_CODE:
                return name, code
            time.sleep(RESPAWN_AFTER_S)
            supervisor.restart(name)
    return '', 0


def _terminal() -> str:
    """Return the path of the terminal that this runs on, '' where there is none."""
    for stream in (0, 1, 2):
        with contextlib.suppress(OSError):
            return os.ttyname(stream)
    return ''


def _show_lines(supervisor: Supervisor, show: Callable[[str, str], None]) -> None:
    for name, line in supervisor.new_lines():
        show(name, line)


def pairs(words: tuple[str, ...], command: str) -> dict[str, str]:
    """Return {name: value} of words name:=value. Raises RobotRLError."""
    found = {}
    for word in words:
        name, separator, value = word.partition(':=')
        if not separator:
            raise RobotRLError(f'{command}: {word!r}: <name>:=<value> is right')
        found[name] = value
    return found


def _described(graph: Graph) -> dict[str, dict[str, str]]:
    return {
        name: {'default': argument.default, 'description': argument.description}
        for name, argument in graph.arguments.items()
    }


def _show(graph: Graph) -> str:
    rows = [
        {'argument': name, 'default': argument.default or '-', 'description': argument.description}
        for name, argument in graph.arguments.items()
    ]
    return '\n'.join([graph.summary, '', *common.table(rows)])
