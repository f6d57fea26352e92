"""From a camera to what a policy does: real cameras, image_feed and policies."""

from __future__ import annotations

import array
import itertools
import time
from collections import defaultdict

import cv2
import mujoco
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from robot_rl import registry
from robot_rl.control.observation import Observer, with_history
from robot_rl.control.runtime import load_policy
from robot_rl.control.shared_frame import FOLDER
from robot_rl.nodes.camera import State
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.sim import rendering
from robot_rl.sim.twin import Twin
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.episode import EpisodeReader

HEIGHT, WIDTH = 24, 32
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


def seeing(camera: str, encoding: str = 'jpeg', history: int = 1, **fields):
    """Return the contract of ur5e/reach with a camera's picture, which may be 1 s old."""
    contract = registry.make_task('ur5e/reach').contract()
    view = {'name': 'view', 'source': f'{camera}.image', 'shape': [HEIGHT, WIDTH, 3]}
    view |= {'dtype': 'uint8', 'encoding': encoding, 'history': history, 'max_age_s': 1.0}
    view |= fields
    return contract.replace(observation=[*(f.to_dict() for f in contract.observation), view])


@pytest.fixture
def blind(supervisor, observer, conductor, arm, policy_file):
    """An arm at home, a target, a policy that wants pictures, and image_feed; no camera."""

    class World:
        def __init__(self, contract, fed=True):
            self.contract = contract
            self.path = policy_file(contract, seed=6)
            supervisor.start('policy', {'policy': str(self.path)})
            if fed:
                supervisor.start('image_feed')
            supervisor.wait_ready()
            self.session = conductor('policy')
            self.feed = conductor('image_feed') if fed else self.session
            self.actions = observer.listen(JointTrajectory, 'policy/action')
            self.commands = observer.listen(JointTrajectory, 'policy/command')
            self.arm, self._pose = arm(), PoseStamped()
            self._targets = observer.node.create_publisher(PoseStamped, 'target_pose', 10)
            observer.node.create_timer(0.02, self._publish)
            self.prepare('e1')

        def _publish(self):
            self._pose.header.stamp = observer.stamp()
            self._targets.publish(self._pose)

        def prepare(self, episode, **fields):
            self.session.say(
                'prepare', episode=episode, contract=self.contract.to_dict(), **fields
            )
            self.feed.fields = self.session.fields

    return World


@pytest.fixture
def publishing(observer):
    """Return `start(make, topic, rate_hz)`, which publishes make(), stamped with now."""

    def start(make, topic, rate_hz=30):
        message = make()
        publisher = observer.node.create_publisher(type(message), topic, 10)

        def publish():
            message = make()
            message.header.stamp = observer.stamp()
            publisher.publish(message)

        return observer.node.create_timer(1 / rate_hz, publish)

    return start


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def compressed(pixels: np.ndarray) -> CompressedImage:
    """Return a message without losses, so that numbers can be compared."""
    data = cv2.imencode('.png', pixels[..., ::-1])[1]
    return CompressedImage(format='png', data=array.array('B', data.tobytes()))


def through_jpeg(pixels: np.ndarray) -> np.ndarray:
    """Return RGB pixels as a JPEG of quality 95 shows them that halves no colours."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
    return cv2.imdecode(cv2.imencode('.jpg', pixels[..., ::-1], options)[1], 1)[..., ::-1]


def raw(pixels: np.ndarray, encoding: str = 'rgb8') -> Image:
    height, width = pixels.shape[:2]
    data = array.array('B', pixels.tobytes())
    step = len(data) // height
    return Image(height=height, width=width, step=step, encoding=encoding, data=data)


def action_on(path, ur5e, view: np.ndarray, joints=None, command=None, target=(0, 0, 0)):
    """Return what the file says to a picture, computed without nodes."""
    joints = joints or {'position': ur5e.home_position, 'velocity': np.zeros(6)}
    streams = {
        'joint_states': joints,
        'command': {'position': ur5e.home_position if command is None else command},
        'target_pose': {'position': np.array(target, float)},
    }
    policy = load_policy(path)
    (*others, field) = policy.contract.observation
    rest = policy.contract.replace(observation=[f.to_dict() for f in others])
    seen = Observer(rest, KinematicChain.from_spec(ur5e)).observe(streams)
    batch = {name: values[None] for name, values in (seen | {field.name: view}).items()}
    return policy.select(batch, {})[0][0]


@pytest.mark.parametrize(
    ('encoding', 'lossless'), [('jpeg', False), ('rgb8', False), ('rgb8', True)]
)
def test_the_policy_acts_on_the_newest_picture_and_its_history(
    blind, publishing, ur5e, encoding, lossless, observer
):
    shown = [picture(0)]
    topic = 'wrist/image_raw' + ('/compressed' if encoding == 'jpeg' else '')
    publishing(lambda: (compressed if encoding == 'jpeg' else raw)(shown[-1]), topic)
    world = blind(seeing('wrist', encoding, history=2, lossless=lossless))
    assert world.feed.hears('ready') == f'/{topic}'
    world.session.hears('ready')
    world.session.say('running', max_steps=1000)
    observer.until(lambda: len(world.actions) > 3)
    shown.append(picture(1))
    observer.until(lambda: len(world.actions) > 30)
    seen = shown if encoding == 'jpeg' or lossless else [through_jpeg(one) for one in shown]
    first = action_on(world.path, ur5e, np.stack([seen[0], seen[0]]))
    np.testing.assert_allclose(world.actions[0].points[0].positions, first, atol=1e-6)
    command = np.array(world.commands[27].points[0].positions)
    last = action_on(world.path, ur5e, np.stack([seen[1], seen[1]]), command=command)
    np.testing.assert_allclose(world.actions[28].points[0].positions, last, atol=1e-6)
    other = action_on(world.path, ur5e, np.stack([seen[0], seen[1]]), command=command)
    assert np.abs(last - other).max() > 1e-3


@pytest.mark.slow
def test_when_pictures_stop_or_their_process_dies_the_episode_ends_and_the_next_one_runs(
    blind, publishing, observer, supervisor
):
    timer = publishing(lambda: compressed(picture(0)), 'wrist/image_raw/compressed')
    world = blind(seeing('wrist'))
    world.session.hears('ready')
    world.session.say('running', max_steps=1000)
    observer.until(lambda: len(world.actions) > 3)
    timer.cancel()
    old = r' s old, at most 1 s'
    told = world.session.hears('error')
    assert told.startswith('policy: observation: view: the newest of wrist is 1.0') and old in told
    world.session.say('ended', result='failure')

    publishing(lambda: compressed(picture(1)), 'wrist/image_raw/compressed')
    world.prepare('e2')
    world.session.hears('ready')
    world.session.say('running')
    count = len(world.actions)
    observer.until(lambda: len(world.actions) > count + 3)
    supervisor.children['image_feed'].kill()
    assert old in world.session.hears('error')
    world.session.say('ended', result='failure')

    supervisor.restart('image_feed')
    world.prepare('e3', max_steps=3)
    world.session.hears('ready')
    world.session.say('running')
    world.session.hears('done')


def test_a_clean_end_leaves_no_picture_behind(blind, publishing, supervisor, domain_id):
    mine = lambda: list(FOLDER.glob(f'robot_rl-frame-*-{domain_id}.wrist'))  # noqa: E731
    publishing(lambda: compressed(picture(0)), 'wrist/image_raw/compressed')
    blind(seeing('wrist')).feed.hears('ready')
    assert len(mine()) == 1
    assert supervisor.stop() == {'policy': 0, 'image_feed': 0}
    assert mine() == []


def test_a_missing_or_wrong_camera_is_told_with_what_would_be_right(
    blind, publishing, observer, supervisor
):
    world = blind(seeing('wrist', 'rgb8'))
    told = world.session.hears('preparing')
    assert (
        told == 'wrist: none has come; nobody publishes /wrist/image_raw (sensor_msgs/msg/Image)'
    )
    assert world.feed.hears('preparing') == '/wrist/image_raw: no picture has come'
    made = lambda: raw(picture(0)[..., 0].astype('<u2'), '16UC1')  # noqa: E731
    timer = publishing(made, 'wrist/image_raw')
    heard = lambda node: [m.data for m in node.answers]  # noqa: E731
    right = "/wrist/image_raw: encoding '16UC1', right is one of rgb8, bgr8, mono8"
    observer.until(lambda: any(right in text for text in heard(world.feed)))
    knows = '/wrist/image_raw is there: the node image_feed, which hands it over, knows more'
    observer.until(lambda: any(knows in text for text in heard(world.session)))
    timer.cancel()
    publishing(lambda: raw(picture(0, 16, 16)), 'wrist/image_raw')
    small = '/wrist/image_raw: 16 x 16 pixels, the policy needs 32 x 24 or more'
    observer.until(lambda: any(small in text for text in heard(world.feed)))
    assert 'Traceback' not in supervisor.log('image_feed')


def test_pictures_that_nobody_hands_over_are_told(blind, publishing, observer):
    publishing(lambda: compressed(picture(0)), 'wrist/image_raw/compressed')
    world = blind(seeing('wrist'), fed=False)
    told = '/wrist/image_raw/compressed is there: the node image_feed, which hands it over, does n'
    assert observer.until(lambda: any(told in message.data for message in world.session.answers))


@pytest.mark.parametrize('encoding', ['jpeg', 'rgb8'])
def test_recorded_columns_hold_the_pictures_that_the_policy_acted_on(
    publishing, supervisor, conductor, policy_file, tmp_path, encoding
):
    """Every decision again, offline, from what the recorder wrote of the real nodes."""
    contract = seeing('wrist', encoding, history=2)
    policy = load_policy(path := policy_file(contract, seed=6))
    supervisor.start('sim_robot', {'seed': 3})
    supervisor.start('policy', {'policy': str(path)})
    supervisor.start('command_guard')
    supervisor.start('image_feed')
    supervisor.start('episode_recorder', {'root': str(tmp_path)})
    seeds = itertools.count()
    made = compressed if encoding == 'jpeg' else raw
    topic = 'wrist/image_raw' + ('/compressed' if encoding == 'jpeg' else '')
    publishing(lambda: made(picture(next(seeds), 2 * HEIGHT, 2 * WIDTH)), topic, rate_hz=3)
    supervisor.wait_ready()
    session, guard, recorder = map(conductor, ('policy', 'command_guard', 'episode_recorder'))
    given = {'episode': 'e1', 'source': 'policy', 'task': 'ur5e/reach', 'seed': 3}
    session.say('prepare', contract=contract.to_dict(), max_steps=20, **given)
    for node in (session, guard, recorder):
        node.hears('ready')
    session.say('running')
    session.hears('done')
    session.say('ended', result='truncated')
    recorder.hears('done')

    columns, task = (
        aligned_columns(EpisodeReader(tmp_path / 'e1')),
        registry.make_task('ur5e/reach'),
    )
    assert columns['wrist.image'].shape == (21, HEIGHT, WIDTH, 3)
    magic = b'\xff\xd8' if encoding == 'rgb8' else b'\x89PNG'  # made of what came, or as it came
    assert columns['wrist.image'].file(0).startswith(magic)
    streams = defaultdict(dict)
    for name, values in columns.items():
        stream, _, quantity = name.partition('.')
        streams[stream][quantity] = values
    observed = with_history(contract, Observer(contract, task.chain).observe(streams))
    actions = policy.select({name: values[:-1] for name, values in observed.items()}, {})[0]
    same = np.abs(actions - columns['action/requested']).max(axis=1) < 1e-5
    # A picture that came within the milliseconds before a tick may not have been decoded yet, and
    # is seen by two ticks with this history: of four pictures at the most, in one second.
    assert same.sum() >= 12, same
    assert len(np.unique(columns['wrist.image'][:], axis=0)) >= 3


@pytest.fixture
def cameras(supervisor, observer, offscreen):
    """Return `start(**parameters)`, which starts the twin and its cameras."""

    def start(clock=False, **parameters):
        twin = {'seed': 3, 'publish_state': True, 'publish_clock': clock}
        supervisor.start('sim_robot', twin)
        supervisor.start('camera', {'width': 4 * WIDTH, 'height': 4 * HEIGHT, **parameters})
        supervisor.wait_ready()

    return start


def test_a_camera_of_the_twin_shows_its_state_as_a_driver_would(cameras, observer):
    cameras()
    infos = observer.listen(CameraInfo, 'overview/camera_info')
    raws = observer.listen(Image, 'overview/image_raw', BEST_EFFORT)
    jpegs = observer.listen(CompressedImage, 'overview/image_raw/compressed', BEST_EFFORT)
    joints = observer.listen(JointState, 'joint_states')
    observer.until(lambda: raws and jpegs and len(infos) > 30 and joints)
    now = time.time()
    task = registry.make_task('ur5e/reach')
    info, sent = infos[-1], raws[-1]
    k = rendering.intrinsics(task.model(), 'overview', 4 * WIDTH, 4 * HEIGHT)
    np.testing.assert_allclose(np.reshape(info.k, (3, 3)), k)
    np.testing.assert_allclose(np.reshape(info.p, (3, 4))[:, :3], k)
    assert (info.distortion_model, list(info.d)) == ('plumb_bob', [0.0] * 5)
    assert (sent.encoding, sent.step, sent.height) == ('rgb8', 12 * WIDTH, 4 * HEIGHT)
    for message in (info, sent, jpegs[-1]):
        assert message.header.frame_id == 'overview_optical_frame'
        assert abs(message.header.stamp.sec + message.header.stamp.nanosec * 1e-9 - now) < 2.0
    # Drawn anew here, from what the twin's driver says of the same episode.
    model = task.model()
    data = mujoco.MjData(model)
    data.qpos[:] = joints[-1].position
    data.mocap_pos[0] = task.initial(3).target
    mujoco.mj_forward(model, data)
    renderer = rendering.Renderer(4 * WIDTH, 4 * HEIGHT)
    expected = renderer.frame(model, data, 'overview').astype(int)
    renderer.close()
    seen = np.frombuffer(sent.data, np.uint8).reshape(expected.shape)
    assert np.abs(seen - expected).mean() < 1
    read = cv2.imdecode(np.frombuffer(jpegs[-1].data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert jpegs[-1].format == 'rgb8; jpeg compressed bgr8'
    assert np.abs(read - expected).mean() < 4


def test_where_time_is_simulated_pictures_have_that_time(cameras, observer):
    cameras(clock=True, use_sim_time=True)
    clock = observer.listen(Clock, '/clock', BEST_EFFORT)
    raws = observer.listen(Image, 'overview/image_raw', BEST_EFFORT)
    observer.until(lambda: len(raws) > 5 and clock)
    stamps = [message.header.stamp for message in raws]
    seconds = [stamp.sec + stamp.nanosec * 1e-9 for stamp in stamps]
    now = clock[-1].clock.sec + clock[-1].clock.nanosec * 1e-9
    assert seconds == sorted(seconds) and now - 2.0 < seconds[-1] <= now + 0.1 < 60.0


def test_a_camera_draws_what_somebody_listens_to_and_says_how_often(cameras, observer):
    cameras(rate_hz=15.0)
    statuses = observer.listen(DiagnosticArray, '/diagnostics')

    def of_camera():
        own = [s for array in statuses for s in array.status if s.name == 'camera']
        return {v.key: float(v.value) for v in own[-1].values} if own else {}

    observer.until(lambda: of_camera().get('states_hz', 0) > 30)
    assert of_camera()['overview.rate_hz'] == 0
    raws = observer.listen(Image, 'overview/image_raw', BEST_EFFORT)
    observer.until(lambda: of_camera().get('overview.rate_hz', 0) > 5)
    assert len(raws) > 0 and of_camera()['overview.rate_hz'] < 25


@pytest.mark.parametrize(
    ('parameters', 'told'),
    [
        ({'cameras': ['overwiew']}, "the model has no camera 'overwiew'; it has ['overview']"),
        ({'robot': 'maker'}, "unknown robot 'maker'"),
        ({'jpeg_quality': 101}, 'jpeg_quality: must be less than or equal to 100'),
    ],
)
def test_a_camera_that_cannot_be_is_one_line(supervisor, parameters, told):
    assert supervisor.start('camera', parameters).wait(30) == 2
    log = supervisor.log('camera')
    assert told in log and log.count('\n') == 1


def test_the_state_of_another_model_ends_the_camera_with_one_line(supervisor, observer):
    child = supervisor.start('camera')
    supervisor.wait_ready()
    observer.listen(Image, 'overview/image_raw')
    states = observer.publisher(Float64MultiArray, 'sim_robot/state')
    observer.node.create_timer(0.02, lambda: states.publish(Float64MultiArray(data=[0.0] * 9)))
    observer.until(lambda: child.poll() is not None)
    assert child.poll() == 2
    told = 'sim_robot/state: 9 numbers, this model has 21: is sim_robot of the same task and robot'
    assert told in supervisor.log('camera')


@pytest.mark.slow
def test_from_the_twin_s_camera_to_the_command(
    cameras, supervisor, observer, conductor, policy_file, ur5e
):
    """Each action is that of the file on the joints of its stamp and on one of the pictures."""
    path = policy_file(seeing('overview'), seed=8)
    supervisor.start('image_feed')
    supervisor.start('policy', {'policy': str(path)})
    supervisor.start('command_guard')  # the arm moves, and with it what is seen
    cameras()
    jpegs = observer.listen(CompressedImage, 'overview/image_raw/compressed')
    joints = observer.listen(JointState, 'joint_states')
    actions = observer.listen(JointTrajectory, 'policy/action')
    commands = observer.listen(JointTrajectory, 'policy/command')
    session, guard = map(conductor, ('policy', 'command_guard'))
    session.say('prepare', contract=seeing('overview').to_dict(), max_steps=20, seed=3)
    session.hears('ready')
    guard.hears('ready')
    session.say('running')
    session.hears('done')
    observer.until(lambda: len(actions) == len(commands) == 20)
    measured = {(m.header.stamp.sec, m.header.stamp.nanosec): m for m in joints}
    views = [
        cv2.resize(
            cv2.imdecode(np.frombuffer(jpeg.data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1],
            (WIDTH, HEIGHT),
            interpolation=cv2.INTER_AREA,
        )
        for jpeg in jpegs
    ]
    target, compared = registry.make_task('ur5e/reach').initial(3).target, 0
    for action, command in zip(actions[1:], commands[:-1], strict=True):
        state = measured.get((action.header.stamp.sec, action.header.stamp.nanosec))
        if state is None:
            continue  # the observer has lost it
        values = {'position': np.array(state.position), 'velocity': np.array(state.velocity)}
        last = np.array(command.points[0].positions)
        found = np.array(action.points[0].positions)
        errors = [
            np.abs(action_on(path, ur5e, view, values, last, target) - found).max()
            for view in views
        ]
        assert min(errors) < 1e-5 and max(errors) > 1e-4  # and not on all of them
        compared += 1
    assert compared > 10


def test_the_scene_of_an_episode_looks_as_its_world_does():
    task = registry.make_task('ur5e/lift', [
        'randomisation.colour={cube: 1}', 'randomisation.camera_shift=0.1',
        'randomisation.light_brightness=[0.2, 0.5]',
    ])  # fmt: skip
    twin, state = Twin(task), State(task)
    for seed in (3, 4):
        twin.reset(seed)
        state.take(twin.state)
        for field in ('geom_rgba', 'cam_pos', 'light_diffuse'):
            seen, nominal = getattr(state.model, field), getattr(task.model(), field)
            np.testing.assert_array_equal(seen, getattr(twin.model, field))
            assert (seen != nominal).any()
        np.testing.assert_array_equal(state.data.qpos, twin.data.qpos)


@pytest.mark.slow
def test_what_was_trained_from_cameras_runs_on_the_twin_as_it_is(
    cameras, supervisor, observer, conductor, policy_file
):
    """The twin's camera sends what training draws of the same state, bit by bit."""
    contract = registry.make_task('ur5e/reach_vision').contract()
    path = policy_file(contract, seed=8)
    supervisor.start('image_feed')
    supervisor.start('policy', {'policy': str(path)})
    supervisor.start('command_guard')
    cameras(task='ur5e/reach_vision')
    raws = observer.listen(Image, 'overview/image_raw')
    states = observer.listen(Float64MultiArray, 'sim_robot/state')
    actions = observer.listen(JointTrajectory, 'policy/action')
    session, guard = map(conductor, ('policy', 'command_guard'))
    session.say('prepare', contract=contract.to_dict(), max_steps=20, seed=3)
    session.hears('ready')
    guard.hears('ready')
    session.say('running')
    session.hears('done')
    observer.until(lambda: len(actions) == 20)
    # As they are now: more come while they are drawn, and on a slow machine faster than that.
    sent, states = [bytes(message.data) for message in raws], list(states)
    environment = registry.make_environment('ur5e/reach_vision')
    model, data = environment.scene()
    sizes = np.cumsum([1, model.nq, model.nv, 3 * model.nmocap, 4 * model.nmocap])
    drawing = rendering.Renderer(84, 84, fast=True)

    def drawn(state):
        _, data.qpos[:], _, place, way, _ = np.split(np.array(state.data), sizes)
        data.mocap_pos[:], data.mocap_quat[:] = place.reshape(-1, 3), way.reshape(-1, 4)
        mujoco.mj_forward(model, data)
        return drawing.frame(model, data, 'overview').tobytes()

    expected = {drawn(state) for state in states}
    drawing.close()
    environment.close()
    assert len(expected) > 5  # the arm moved
    known = sum(picture in expected for picture in sent)
    assert known > 0.8 * len(sent) > 5  # the observer may have lost a state
