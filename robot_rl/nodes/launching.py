"""What the launch files share. launch_ros comes with ROS 2 only, so it is imported when used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from robot_rl import resources

if TYPE_CHECKING:
    from launch import LaunchContext, LaunchDescription
    from launch_ros.actions import Node

SWITCH = ['true', 'false']
MAYBE = ['', *SWITCH]
FROM_FILE = '(empty: as in params_file)'
REAL = '(empty: {} where sim is false, else as in params_file)'

_RESPAWN_AFTER_S = 0.5
# The exit code of a node that was given something that a person can mend.
WRONG_INPUT_CODE = 2

# name: (default, description, choices)
_ARGUMENTS: dict[str, tuple[str, str, list[str] | None]] = {
    'namespace': ('', 'namespace of all nodes and topics, one per arm', None),
    'params_file': ('', 'YAML file of node parameters (empty: {default_file})', None),
    'log_level': ('info', 'log level of the nodes', ['debug', 'info', 'warn', 'error', 'fatal']),
    'use_sim_time': ('false', 'take the time from /clock', SWITCH),
    'sim': ('true', "simulate the arm; 'false': its driver runs already", SWITCH),
    'robot': ('', f'robot in config/robots, or a YAML file {FROM_FILE}', None),
    'task': ('', f'task in config/tasks, or a YAML file {FROM_FILE}', None),
    'policy': ('', f"file, name in pretrained/, 'random', 'constant' {FROM_FILE}", None),
    'seed': ('', f'seed of the initial condition {FROM_FILE}', None),
    'first_seed': ('', f'seed of the first episode, -1: no seeds {REAL.format("-1")}', None),
    'manual': ('', f'a person starts each episode by /session/start {REAL.format("true")}', MAYBE),
    'episodes': ('', f'how many episodes to run, 0: until stopped {FROM_FILE}', None),
    'operator': ('', 'the person beside the arm, for the record', None),
    'record': ('true', 'record the episodes', SWITCH),
    'storage': ('', f'folder of the episodes {FROM_FILE}', None),
}


class Launch:
    """The values of the launch arguments, and the nodes made from them."""

    def __init__(self, context: LaunchContext, default_file: str):
        self._arguments, self._default_file = context.launch_configurations, default_file

    def __getitem__(self, name: str) -> str:
        return self._arguments[name]

    def number(self, name: str) -> int | None:
        """Return an argument as a whole number; None where it is empty."""
        return int(self[name]) if self[name] else None

    @property
    def first_seed(self) -> int | None:
        """The seed of the first episode, None: as in params_file. No seed places a real arm."""
        if self['sim'] == 'false' and not self['first_seed']:
            return -1
        return self.number('first_seed')

    @property
    def manual(self) -> bool | None:
        """Whether a person starts each episode, None: as in params_file. A real arm waits."""
        if not self['manual']:
            return True if self['sim'] == 'false' else None
        return self['manual'] == 'true'

    def node(self, executable: str, respawn: bool = False, **parameters: Any) -> Node:
        """Return a node whose end ends the launch; empty parameters are left to params_file.

        One that is to `respawn` is started anew, except after wrong input.
        """
        from launch.actions import Shutdown
        from launch_ros.actions import Node
        from launch_ros.parameter_descriptions import ParameterValue

        # Bare text would be read as YAML: an operator called 007 is no number.
        given = {
            name: ParameterValue(value, value_type=str) if isinstance(value, str) else value
            for name, value in parameters.items()
            if value not in ('', None)
        }
        given['use_sim_time'] = self['use_sim_time'] == 'true'

        def ended(event: Any, _: LaunchContext) -> Shutdown | None:
            if respawn and event.returncode != WRONG_INPUT_CODE:
                return None
            return Shutdown(reason=f'{executable} has ended')

        file = self['params_file'] or str(resources.find('config/nodes', self._default_file))
        return Node(
            package='robot_rl',
            executable=executable,
            namespace=self['namespace'],
            parameters=[file, given],
            ros_arguments=['--log-level', self['log_level']],
            output='screen',
            on_exit=ended,
            respawn=respawn,
            respawn_delay=_RESPAWN_AFTER_S,
        )


def describe(
    names: list[str], default_file: str, nodes: Callable[[Launch], list[Node]]
) -> LaunchDescription:
    """Return the description that declares the arguments `names` and starts `nodes(launch)`.

    `default_file` is the name in config/nodes that params_file stands for while it is empty.
    """
    from launch import LaunchDescription
    from launch.actions import DeclareLaunchArgument, OpaqueFunction

    arguments = []
    for name in [*names, 'namespace', 'params_file', 'log_level', 'use_sim_time']:
        default, description, choices = _ARGUMENTS[name]
        description = description.format(default_file=f'config/nodes/{default_file}.yaml')
        arguments.append(
            DeclareLaunchArgument(
                name, default_value=default, description=description, choices=choices
            )
        )
    start = OpaqueFunction(function=lambda context: nodes(Launch(context, default_file)))
    return LaunchDescription([*arguments, start])
