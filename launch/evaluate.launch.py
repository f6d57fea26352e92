"""Trials of a policy on an arm, simulated or real: `robot-rl evaluate --robot`."""

from launch import LaunchDescription

from robot_rl.nodes.launching import describe_command

ARGUMENTS = {
    'robot': ('ur5e', 'robot in config/robots or a YAML file; @<tf_prefix> may follow'),
    'policy': ('ur5e_reach', "file, promoted name, one in pretrained/, 'random' or 'scripted'"),
    'task': ('', "task in config/tasks, or a YAML file (empty: the policy file's own)"),
    'episodes': ('20', 'how many trials'),
    'real': ('false', "'true': on the arm, whose driver runs already"),
    'perturb': ('', 'perturbations of the twin, by commas: target, knock, camera'),
    'judge': ('task', "'task' or 'human': /session/success and failure say it"),
    'reset': ('', "'seeds' or 'ask': each trial waits for /session/start (empty: as sim or real)"),
    'operator': ('', 'the person beside the arm, for the record'),
    'tag': ('', 'a further tag of the episodes'),
    'store': ('', 'folder of the episodes (empty: $ROBOT_RL_STORE, or ./episodes)'),
    'out': ('', 'folder of the report (empty: runs/evaluations/<run>)'),
}


def generate_launch_description() -> LaunchDescription:
    return describe_command('evaluate', ARGUMENTS)
