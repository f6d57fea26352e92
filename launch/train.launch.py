"""Training in simulation: `robot-rl train` with the arguments of a launch file."""

from launch import LaunchDescription

from robot_rl.nodes.launching import describe_command

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


def with_agent(values: dict[str, str]) -> dict[str, str]:
    """Take the agent that is made for the task where none is named."""
    if values['task'] == 'ur5e/reach' and not values['agent']:
        return values | {'agent': 'd4pg_reach'}
    return values


def generate_launch_description() -> LaunchDescription:
    return describe_command('train', ARGUMENTS, with_agent)
