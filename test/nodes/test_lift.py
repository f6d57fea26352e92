"""A task with an object and a gripper through ROS: what is seen, and how the gripper is told."""

from __future__ import annotations

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from robot_rl import registry
from robot_rl.storage.episode import EpisodeReader

SEED, TICKS = 2**31 + 5, 30


def stamp(message) -> tuple[int, int]:
    return message.header.stamp.sec, message.header.stamp.nanosec


@pytest.mark.slow
def test_a_policy_for_lift_runs_through_ros(supervisor, observer, policy_file, tmp_path):
    task = registry.make_task('ur5e/lift')
    contract, start = task.contract(), task.initial(SEED)
    file = policy_file(contract, seed=2)
    robot = {'robot': 'ur5e_gripper'}
    poses = observer.listen(PoseStamped, 'cube_pose')
    states = observer.listen(JointState, 'joint_states')
    actions = observer.listen(JointTrajectory, 'policy/action')
    widths = observer.listen(Float64MultiArray, 'policy/gripper')
    fingers = observer.listen(Float64MultiArray, 'gripper_controller/commands')
    supervisor.start('sim_robot', {'task': 'ur5e/lift', 'seed': 1})
    supervisor.start('policy', {'policy': str(file)} | robot)
    supervisor.start('command_guard', robot)
    supervisor.start('episode_recorder', {'root': str(tmp_path / 'episodes')} | robot)
    supervisor.wait_ready()
    given = {'task': 'ur5e/lift', 'policy': str(file), 'first_seed': SEED}
    supervisor.start('session', given | {'episodes': 1, 'max_steps': TICKS})
    (line,) = supervisor.follow('session', 40)
    header = EpisodeReader(line['path']).header
    assert (header.result, header.contract) == ('truncated', contract)
    assert header.topics['/cube_pose'].count > 10

    def starts(pose) -> bool:
        place = pose.pose.position
        return np.allclose(
            [place.x, place.y, place.z], start.poses['cube_pose'].position, atol=2e-3
        )

    assert any(starts(pose) for pose in poses)
    turned = start.poses['cube_pose'].orientation
    way = next(pose for pose in poses if starts(pose)).pose.orientation
    np.testing.assert_allclose([way.w, way.x, way.y, way.z], turned, atol=5e-3)
    # What the policy asked for is what the gripper was told, within its range.
    place = list(contract.action_names).index('width')
    asked = np.clip([m.points[0].positions[place] for m in actions], 0.0, 0.085)
    observer.until(lambda: fingers and abs(2 * fingers[-1].data[0] - asked[-1]) < 1e-7)
    told = [2 * message.data[0] for message in fingers]  # a finger goes half of the way
    # Some may be passed over on a busy machine: the newest counts.
    for heard in ([message.data[0] for message in widths], told):
        left = iter(asked)
        assert all(any(abs(width - one) < 1e-7 for one in left) for width in heard)
        assert len(heard) > 0.8 * TICKS
    assert len(actions) == TICKS and np.ptp(asked) > 1e-4
    assert np.abs(asked - start.width).min() > 5e-3
    # It was told before the episode began how far it is open, and moved as the policy said.
    measured = [2 * m.position[m.name.index('left_finger')] for m in states]
    assert np.isclose(measured, start.width, atol=2e-3).any()
    observer.until(lambda: abs(2 * states[-1].position[-2] - asked[-1]) < 5e-3)
