"""Demonstrations: a person commands the arm through the guard and starts and ends the episodes.

`ros2 service call /session/start std_srvs/srv/Trigger`, then success, failure or discard.
"""

from launch import LaunchDescription

from robot_rl.nodes.launching import describe


def generate_launch_description() -> LaunchDescription:
    return describe('record')
