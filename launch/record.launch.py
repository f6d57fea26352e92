"""Demonstrations: a person commands the arm through the guard and starts and ends the episodes.

`ros2 service call /session/start std_srvs/srv/Trigger`, then success, failure or discard.
"""

from launch import LaunchDescription

from robot_rl.nodes.launching import Launch, describe

ARGUMENTS = ['sim', 'robot', 'task', 'episodes', 'first_seed', 'operator', 'storage']


def nodes(launch: Launch) -> list:
    sim = launch['sim'] == 'true'
    robot, task = launch['robot'], launch['task']
    started = [
        launch.node('command_guard', respawn=True, robot=robot),
        launch.node(
            'episode_recorder',
            robot=robot,
            root=launch['storage'],
            world='sim' if sim else 'real',
        ),
    ]
    if sim:
        started.append(launch.node('sim_robot', task=task))
    session = launch.node(
        'session',
        task=task,
        episodes=launch.number('episodes'),
        first_seed=launch.first_seed,
        operator=launch['operator'],
        participants=[node.node_executable for node in started],
    )
    return [*started, session]


def generate_launch_description() -> LaunchDescription:
    return describe(ARGUMENTS, 'record', nodes)
