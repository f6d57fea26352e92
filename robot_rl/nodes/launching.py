"""Graphs as launch descriptions. launch_ros comes with ROS 2 only: it is imported when used."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from robot_rl import resources
from robot_rl.nodes.graphs import (
    GRAPHS,
    RESPAWN_AFTER_S,
    WRONG_INPUT_CODE,
    Graph,
    Process,
    Values,
)
from robot_rl.nodes.supervisor import PARENT

# Time to save on Ctrl-C before launch becomes insistent [s].
SAVE_WITHIN_S = '60'

if TYPE_CHECKING:
    from launch import LaunchContext, LaunchDescription
    from launch.actions import ExecuteProcess, Shutdown
    from launch_ros.actions import Node


def describe(name: str) -> LaunchDescription:
    """Return the description that declares a graph's arguments and starts its nodes."""
    from launch import LaunchDescription
    from launch.actions import DeclareLaunchArgument, OpaqueFunction

    graph = GRAPHS[name]
    arguments = [
        DeclareLaunchArgument(
            name,
            default_value=argument.default,
            description=argument.description,
            choices=argument.choices,
        )
        for name, argument in graph.arguments.items()
    ]

    def nodes(context: LaunchContext) -> list[Node]:
        given = context.launch_configurations
        values = graph.values({name: given[name] for name in graph.arguments})
        processes = graph.nodes(values)
        drawn = any(process.executable == 'screen' for process in processes)
        return [_node(process, values, graph, drawn) for process in processes]

    return LaunchDescription([*arguments, OpaqueFunction(function=nodes)])


def describe_command(
    command: str,
    arguments: Mapping[str, tuple[str, str]],
    complete: Callable[[dict[str, str]], dict[str, str]] = dict,
) -> LaunchDescription:
    """Return the description that runs `robot-rl <command>` with launch arguments as its flags.

    `arguments` are {name: (default, what it is)}; `complete` may set what is empty.
    """
    from launch import LaunchDescription
    from launch.actions import DeclareLaunchArgument, OpaqueFunction

    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in arguments.items()
    ]

    def run(context: LaunchContext) -> list[ExecuteProcess]:
        given = {name: context.launch_configurations[name] for name in arguments}
        return [_execute(command, flags(complete(given)))]

    return LaunchDescription([*declared, OpaqueFunction(function=run)])


def flags(values: Mapping[str, str]) -> list[str]:
    """Spell launch arguments as flags: what is empty or 'false' is none, 'true' has no value."""
    words = []
    for name, value in values.items():
        if value not in ('', 'false'):
            words += [f'--{name}'] if value == 'true' else [f'--{name}', value]
    return words


def _execute(command: str, words: list[str]) -> ExecuteProcess:
    from launch.actions import ExecuteProcess
    from launch_ros.substitutions import ExecutableInPackage

    executable = ExecutableInPackage(package='robot_rl', executable='robot-rl')
    cmd = [executable, command, *words]
    return ExecuteProcess(cmd=cmd, output='screen', sigterm_timeout=SAVE_WITHIN_S)


def _node(process: Process, values: Values, graph: Graph, drawn: bool) -> Node:
    """Return the action that starts a node; where a screen is `drawn`, it alone is heard there."""
    from launch.actions import Shutdown
    from launch_ros.actions import Node
    from launch_ros.parameter_descriptions import ParameterValue

    def ended(event: Any, _: LaunchContext) -> Shutdown | None:
        if process.respawn and event.returncode != WRONG_INPUT_CODE:
            return None
        return Shutdown(reason=f'{process.executable} has ended')

    # Bare text would be read as YAML: an operator called 007 is no number.
    given = {
        name: ParameterValue(value, value_type=str) if isinstance(value, str) else value
        for name, value in process.parameters.items()
    }
    file = values['params_file'] or str(resources.find('config/nodes', graph.default_file))
    return Node(
        package='robot_rl',
        executable=process.executable,
        namespace=values['namespace'],
        parameters=[file, given],
        ros_arguments=['--log-level', values['log_level']],
        # Launch that is ended by SIGTERM leaves its nodes behind (ros2/launch issue 666).
        additional_env={PARENT: str(os.getpid())},
        output='log' if drawn and process.executable != 'screen' else 'screen',
        on_exit=ended,
        respawn=process.respawn,
        respawn_delay=RESPAWN_AFTER_S,
    )
