"""Training in simulation: `robot-rl train` with the arguments of a launch file."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.substitutions import ExecutableInPackage

ARGUMENTS = {
    'task': ('ur5e/reach', 'what to learn: see `ros2 run robot_rl robot-rl tasks`'),
    'agent': (
        '',
        'agent in config/agents, or a YAML file (empty: d4pg_reach for ur5e/reach, else d4pg)',
    ),
    'steps': ('', "environment steps in all (empty: the agent's own number)"),
    'seed': ('0', 'of networks, exploration, sampling and episodes'),
    'out': ('', 'folder of the run (empty: runs/<task>-<agent>-seed<seed>)'),
}
# Time to save on Ctrl-C before launch becomes insistent [s].
SAVE_WITHIN_S = '60'


def train(context) -> list:
    values = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    if values['task'] == 'ur5e/reach':
        values['agent'] = values['agent'] or 'd4pg_reach'
    options = [part for name, value in values.items() if value for part in (f'--{name}', value)]
    executable = ExecutableInPackage(package='robot_rl', executable='robot-rl')
    command = [executable, 'train', *options]
    return [ExecuteProcess(cmd=command, output='screen', sigterm_timeout=SAVE_WITHIN_S)]


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=train)])
