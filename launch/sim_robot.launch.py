"""The MuJoCo twin behind the topics of an arm's driver."""

from launch import LaunchDescription

from robot_rl.nodes.launching import describe


def generate_launch_description() -> LaunchDescription:
    return describe('sim_robot')
