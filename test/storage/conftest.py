"""Episodes of a made-up two-joint arm, written with the bytes that real ROS publishers send."""

import array
import types

import numpy as np
import pytest

from robot_rl.specs import ActionField, Box, Contract, JointLimits, ObservationField, RobotSpec
from robot_rl.storage.episode import EpisodeHeader, EpisodeWriter
from robot_rl.storage.schemas import message_definition

JOINTS = ('shoulder', 'elbow')
START_NS = 1_700_000_000_000_000_000


@pytest.fixture(scope='session')
def ros():
    """Builders of ROS messages and `serialize`, all from the installed ROS packages."""
    pytest.importorskip('rclpy', reason='needs rclpy (extra `ros`) for real CDR bytes')
    from builtin_interfaces.msg import Time
    from geometry_msgs.msg import PoseStamped
    from rclpy.serialization import serialize_message
    from sensor_msgs.msg import CompressedImage, Image, JointState
    from std_msgs.msg import Float64MultiArray, String
    from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

    def stamped(message, stamp_ns, frame_id=''):
        message.header.stamp = Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
        message.header.frame_id = frame_id
        return message

    def joint_state(stamp_ns, names, position, velocity=()):
        message = JointState(name=list(names), position=list(position), velocity=list(velocity))
        return stamped(message, stamp_ns)

    def trajectory(stamp_ns, names, positions, frame_id=''):
        point = JointTrajectoryPoint(positions=list(positions))
        message = JointTrajectory(joint_names=list(names), points=[point])
        return stamped(message, stamp_ns, frame_id)

    def pose(stamp_ns, position, orientation_xyzw):
        message = stamped(PoseStamped(), stamp_ns)
        place, turn = message.pose.position, message.pose.orientation
        place.x, place.y, place.z = map(float, position)
        turn.x, turn.y, turn.z, turn.w = map(float, orientation_xyzw)
        return message

    def compressed(stamp_ns, data):
        return stamped(CompressedImage(format='jpeg', data=array.array('B', data)), stamp_ns)

    def raw(stamp_ns, pixels):
        height, width = pixels.shape[:2]
        data = array.array('B', pixels.tobytes())
        message = Image(height=height, width=width, encoding='rgb8', step=3 * width, data=data)
        return stamped(message, stamp_ns)

    def type_name(message):
        package = type(message).__module__.split('.')[0]
        return f'{package}/msg/{type(message).__name__}'

    def write(writer, topic, message, time_ns, sequence=0, publisher=b''):
        name = type_name(message)
        definition = message_definition(name)
        data = serialize_message(message)
        writer.write(topic, name, definition, data, time_ns, None, sequence, publisher)

    return types.SimpleNamespace(
        joint_state=joint_state,
        trajectory=trajectory,
        pose=pose,
        compressed=compressed,
        raw=raw,
        string=lambda text: String(data=text),
        numbers=lambda *values: Float64MultiArray(data=list(values)),
        serialize=serialize_message,
        type_name=type_name,
        write=write,
    )


@pytest.fixture
def robot():
    limits = JointLimits(min_position=-3, max_position=3, max_velocity=2)
    return RobotSpec(
        name='made_up',
        joints=JOINTS,
        joint_limits=dict.fromkeys(JOINTS, limits),
        home=dict.fromkeys(JOINTS, 0.0),
        workspace=Box(lower=(-1, -1, -1), upper=(1, 1, 1)),
        mjcf='made_up.xml',
        tool_site='tool',
    )


@pytest.fixture
def contract():
    def field(name, source, names=JOINTS, **options):
        return ObservationField(
            name=name, source=source, names=names, shape=(len(names),), **options
        )

    return Contract(
        rate_hz=20,
        observation=(
            field('q', 'joint_states.position'),
            field('qd', 'joint_states.velocity', fill='difference'),
            field('command', 'command.position'),
            field('target', 'target_pose.position', ('x', 'y', 'z'), goal=True),
            field('tool', 'tool.position', ('x', 'y', 'z')),
        ),
        action=(
            ActionField(
                # Not the order of the robot's joints: names decide.
                name='delta',
                kind='joint_delta',
                names=('elbow', 'shoulder'),
                lower=(-0.1, -0.1),
                upper=(0.1, 0.1),
                unit='rad',
            ),
        ),
    )


@pytest.fixture
def header(robot, contract):
    """Return a function that makes headers of episodes of the made-up arm."""

    def make(**fields):
        known = {
            'task': 'made_up/reach',
            'source': 'policy',
            'policy': 'made-up-1',
            'robot': robot.name,
            'robot_spec': robot,
            'contract': contract,
            'start_time_ns': START_NS,
        }
        return EpisodeHeader(**(known | fields))

    return make


@pytest.fixture
def record_short(ros, header):
    """Return a function that records a short episode of strings and returns its directory."""

    def record(root, messages=5, commit=None, **fields):
        with EpisodeWriter(root, header(**fields)) as writer:
            for i in range(messages):
                ros.write(writer, '/note', ros.string(f'note {i}'), START_NS + i * 10**8, i + 1)
            return writer.commit(**(commit or {}))

    return record


@pytest.fixture
def rng():
    return np.random.default_rng(7)
