"""A policy on an arm, simulated or real: policy, command guard, recorder and session."""

from launch import LaunchDescription

from robot_rl.nodes.launching import describe


def generate_launch_description() -> LaunchDescription:
    return describe('deploy')
