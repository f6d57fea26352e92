"""A policy on an arm, simulated or real: policy, command guard, recorder and session."""

from launch import LaunchDescription

from robot_rl.nodes.launching import Launch, describe

ARGUMENTS = [
    'sim', 'robot', 'task', 'policy', 'episodes', 'first_seed', 'manual', 'operator', 'record',
    'storage',
]  # fmt: skip


def nodes(launch: Launch) -> list:
    sim, record = launch['sim'] == 'true', launch['record'] == 'true'
    robot, task, policy = launch['robot'], launch['task'], launch['policy']
    started = [
        launch.node('policy', robot=robot, task=task, policy=policy),
        launch.node('command_guard', respawn=True, robot=robot),
    ]
    if sim:
        started.append(launch.node('sim_robot', task=task))
    if record:
        world = 'sim' if sim else 'real'
        root = launch['storage']
        started.append(launch.node('episode_recorder', robot=robot, root=root, world=world))
    session = launch.node(
        'session',
        task=task,
        policy=policy,
        episodes=launch.number('episodes'),
        first_seed=launch.first_seed,
        manual=launch.manual,
        operator=launch['operator'],
        participants=[node.node_executable for node in started],
    )
    return [*started, session]


def generate_launch_description() -> LaunchDescription:
    return describe(ARGUMENTS, 'deploy', nodes)
