"""The commands of a recorded episode again, through the guard: robot-rl episodes replay."""

from launch import LaunchDescription

from robot_rl.nodes.launching import describe


def generate_launch_description() -> LaunchDescription:
    return describe('replay')
