"""The MuJoCo twin behind the topics of an arm's driver."""

from launch import LaunchDescription

from robot_rl.nodes.launching import Launch, describe


def nodes(launch: Launch) -> list:
    return [launch.node('sim_robot', task=launch['task'], seed=launch.number('seed'))]


def generate_launch_description() -> LaunchDescription:
    return describe(['task', 'seed'], 'deploy', nodes)
