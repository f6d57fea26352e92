"""What offline columns say an observation was is what the live assembly made of the messages."""

import dataclasses
import tempfile
from collections import defaultdict
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_rl import registry
from robot_rl.control.loop import ControlLoop
from robot_rl.control.observation import ObservationAssembler, Observer, with_history
from robot_rl.errors import ContractMismatch, RobotRLError
from robot_rl.images import decoded, unpacked
from robot_rl.robots.kinematics import KinematicChain
from robot_rl.robots.quaternions import xyzw_to_wxyz
from robot_rl.sim.arm import ArmEnvironment
from robot_rl.sim.recorded import steps_of, with_tool
from robot_rl.specs import Contract
from robot_rl.storage.columns import CACHE_FILE, aligned_columns
from robot_rl.storage.episode import EpisodeHeader, EpisodeReader, EpisodeWriter

JOINTS = ('shoulder', 'elbow')
# Stamps by a simulated clock, which begins at 0; arrivals by the recorder's.
SIMULATED_NS, ARRIVAL_NS, MS = 1_000 * 10**9, 1_700_000_000 * 10**9, 10**6
SIZE = (6, 8)


class Chain:
    joints = JOINTS

    def forward(self, positions):
        zero = np.zeros_like(positions[..., 0])
        place = np.stack([np.cos(positions[..., 0]), np.sin(positions[..., 1]), zero], -1)
        return place, np.stack([zero + 1, zero, zero, zero], -1)

    def position(self, positions):
        return self.forward(positions)[0]


def contract(fill='difference', lossless=False) -> Contract:
    joints = {'names': JOINTS, 'shape': (2,)}
    view = {'shape': (*SIZE, 3), 'dtype': 'uint8', 'max_age_s': 0.08}
    xyz = {'names': tuple('xyz'), 'shape': (3,)}
    fields = [
        {'name': 'q', 'source': 'joint_states.position', 'history': 3, **joints},
        {'name': 'qd', 'source': 'joint_states.velocity', 'fill': fill, **joints},
        {'name': 'command', 'source': 'command.position', **joints},
        {'name': 'tool', 'source': 'tool.position', **xyz},
        {'name': 'goal', 'source': 'target_pose.position', 'goal': True, **xyz},
        {'name': 'posture', 'source': 'posture.position', 'goal': True, **joints},
        {'name': 'cube', 'source': 'cube.from_tool', 'max_age_s': 0.06, **xyz},
        {'name': 'turn', 'source': 'cube.orientation', 'max_age_s': 0.09, 'shape': (4,)},
        {'name': 'wrist', 'source': 'wrist.image', 'encoding': 'jpeg', 'history': 2, **view},
        {'name': 'scene', 'source': 'scene.image', 'encoding': 'rgb8', **view},
    ]
    fields[9]['lossless'] = lossless
    action = {'name': 'delta', 'kind': 'joint_delta', 'names': JOINTS}
    action |= {'lower': (-0.1, -0.1), 'upper': (0.1, 0.1)}
    return Contract.parse({'rate_hz': 20, 'observation': fields, 'action': [action]})


@dataclasses.dataclass
class Event:
    """A message on its way, and what becomes of it: whole, broken, without velocities, ..."""

    arrival_ns: int
    topic: str
    delay_ns: int
    fate: str
    seed: int


TOPICS = {
    'joint_states': 10, 'cube': 20, 'wrist/image_raw/compressed': 33, 'scene/image_raw': 40,
    'target_pose': 170, 'posture': 190,
}  # fmt: skip
FATES = st.sampled_from(['whole'] * 6 + ['broken', 'dropped', 'partial', 'silent', 'twice'])


@st.composite
def traffic(draw):
    """Events of every topic, jittered, late (so out of order), lost and damaged, for 0.6 s."""
    events = []
    for topic, period in TOPICS.items():
        for at in range(0, 600, period):
            arrival = at * MS + draw(st.integers(0, period * MS))
            delay = draw(st.integers(0, 25 * MS))
            fate = draw(FATES) if at else 'whole'
            events.append(Event(arrival, topic, delay, fate, len(events)))
    return sorted(events, key=lambda event: event.arrival_ns)


def through_jpeg(pixels: np.ndarray) -> np.ndarray:
    """Return RGB pixels as a JPEG of quality 95 shows them that halves no colours."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
    return cv2.imdecode(cv2.imencode('.jpg', pixels[..., ::-1], options)[1], 1)[..., ::-1]


class Live:
    """The nodes: what the policy assembles, and what the recorder writes of it."""

    def __init__(self, ros, writer, robot, contract):
        self.ros, self.writer = ros, writer
        self.assembler = ObservationAssembler(contract, robot, Chain())
        self.contract, self.observations, self.stamps, self.command = contract, [], set(), None

    def hear(self, event):
        if event.fate == 'dropped':
            return
        stamp = SIMULATED_NS + event.arrival_ns - event.delay_ns
        while event.topic == 'joint_states' and stamp in self.stamps:
            stamp += 1
        self.stamps.add(stamp)
        rng, broken = np.random.default_rng(event.seed), event.fate == 'broken'
        message, sample = self._message(event, stamp, rng, broken)
        for part in range(2 if event.fate == 'twice' else 1):
            self._record(event.topic, message, event.arrival_ns + part)
            try:
                self.assembler.put(*sample())
            except (RobotRLError, cv2.error):
                assert event.fate in ('broken', 'silent', 'partial')

    def _message(self, event, stamp, rng, broken):
        """Return the message, and a function that makes the live sample as the nodes do."""
        stamp_s, ros, topic = stamp * 1e-9, self.ros, event.topic
        if topic in ('joint_states', 'posture'):
            q, qd = rng.normal(size=(2, 2))
            q[0], qd[0] = np.nan if broken else q[0], np.nan if event.fate == 'partial' else qd[0]
            qd = [] if event.fate == 'silent' or topic == 'posture' else qd
            message = ros.joint_state(stamp, JOINTS[::-1], q[::-1], qd[::-1])
            values = {'position': message.position, 'velocity': message.velocity}
            return message, lambda: (topic, stamp_s, values, message.name)
        if topic in ('cube', 'target_pose'):
            place, turn = rng.normal(size=3), rng.normal(size=4)
            place[0] = np.nan if broken else place[0]
            message = ros.pose(stamp, place, turn)
            values = {'position': place, 'orientation': xyzw_to_wxyz(turn)}
            return message, lambda: (topic, stamp_s, values)
        pixels = rng.integers(0, 256, (15, 16, 3), dtype=np.uint8)
        shape = (*SIZE, 3)
        if topic.startswith('wrist'):
            data = cv2.imencode('.jpg', pixels)[1].tobytes()
            data = data[: len(data) // 3] if broken else data
            message = ros.compressed(stamp, data)
            return message, lambda: ('wrist', stamp_s, {'image': decoded(data, shape)})
        pixels = pixels[:4] if broken else pixels  # too small
        message, size = ros.raw(stamp, pixels), pixels.shape[:2]
        seen = lambda: unpacked(pixels.tobytes(), 'rgb8', size, message.step, shape)  # noqa: E731
        kept = seen if self.contract.observation[9].lossless else lambda: through_jpeg(seen())
        return message, lambda: ('scene', stamp_s, {'image': kept()})

    def tick(self, arrival_ns, seed):
        """Decide by the newest joint states' time, and publish, as the policy's thread does."""
        newest = self.assembler._samples.get('joint_states')
        if newest is None:
            return
        command = newest.values['position'] if self.command is None else self.command
        try:
            observation, stamp_s = self.assembler.assemble(newest.stamp_s, command)
        except ContractMismatch:
            return
        self.assembler.keep(observation)
        self.observations.append(observation)
        self.command, action = np.random.default_rng(10**6 + seed).normal(size=(2, 2))
        stamp = round(stamp_s * 1e9)
        for name, values in (('action', action), ('command', self.command)):
            message = self.ros.trajectory(stamp, JOINTS, values)
            self._record(f'policy/{name}', message, arrival_ns)
        message = self.ros.trajectory(stamp, JOINTS, self.command, 'policy')
        self._record('command_guard/applied', message, arrival_ns)

    def _record(self, topic, message, arrival_ns):
        self.ros.write(self.writer, topic, message, ARRIVAL_NS + arrival_ns)


def observed(columns, contract):
    """Return a recorded episode's observations {field: [T + 1, *full_shape]}."""
    streams = defaultdict(dict)
    for name, column in with_tool(SimpleNamespace(chain=Chain()), columns).items():
        stream, _, quantity = name.partition('.')
        streams[stream][quantity] = column
    return with_history(contract, Observer(contract, Chain()).observe(streams))


def play(ros, header, contract, root, events, ticks):
    """Send `events` to the live assembly and the recorder; tick in between [ns]."""
    with EpisodeWriter(root, header(contract=contract)) as writer:
        live = Live(ros, writer, header().robot_spec, contract)
        moments = [(event.arrival_ns, 0, event) for event in events]
        moments += [(tick, 1, number) for number, tick in enumerate(ticks)]
        for at, is_tick, what in sorted(moments, key=lambda moment: moment[:2]):
            live.tick(at, what) if is_tick else live.hear(what)
        return live, EpisodeReader(writer.commit())


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    events=traffic(),
    jitter=st.lists(st.integers(0, 30 * MS), min_size=9, max_size=9),
    fill=st.sampled_from(['difference', 'zero', 'none']),
    lossless=st.booleans(),
)
def test_columns_are_what_the_live_assembly_saw(ros, header, events, jitter, fill, lossless):
    # 1 ns short of a message is another order; at the same time as one is no order at all.
    ticks = [(100 + 50 * number) * MS + late for number, late in enumerate(jitter)]
    with tempfile.TemporaryDirectory() as folder:
        live, episode = play(ros, header, contract(fill, lossless), folder, events, ticks)
        count = len(live.observations)
        if count < 2:
            return
        columns = aligned_columns(episode)
        magic = b'\x89PNG' if lossless else b'\xff\xd8'
        assert columns['scene.image'].file(0).startswith(magic)
        offline = observed(columns, live.contract)
        steps = len(columns['action/requested'])
        assert steps in (count, count - 1)  # the last action's effect may not be there
        for name in live.contract.observation_shapes:
            seen = np.stack([observation[name] for observation in live.observations])
            assert offline[name].dtype == seen.dtype
            exact = 0 if seen.dtype == np.uint8 else 1e-6
            rows = min(len(seen), len(offline[name]))
            np.testing.assert_allclose(
                offline[name][:rows], seen[:rows], rtol=exact, atol=exact, err_msg=name
            )
        again = observed(aligned_columns(episode), live.contract)  # from the cache
        assert (episode.path / CACHE_FILE).exists()
        for name, values in offline.items():
            np.testing.assert_array_equal(again[name], values)


def quiet(count=61, without=()):
    """Return events without any fault, each 1 ms late; those of `without` never come."""
    events = [
        Event((at + 1) * MS, topic, MS, 'whole', index)
        for topic, period in TOPICS.items()
        for index, at in enumerate(range(0, count * 10, period))
        if topic not in without
    ]
    return sorted(events, key=lambda event: event.arrival_ns)


def test_what_the_sensor_took_before_the_tick_but_came_after_it_was_not_known(ros, header):
    """A picture is on its way for 25 ms: the policy acted on the one before."""
    events = [
        dataclasses.replace(event, delay_ns=25 * MS) if 'wrist' in event.topic else event
        for event in quiet()
    ]
    with tempfile.TemporaryDirectory() as folder:
        ticks = [(105 + 50 * number) * MS for number in range(8)]
        live, episode = play(ros, header, contract(), folder, events, ticks)
        columns = aligned_columns(episode)
        arrived = np.array([e.arrival_ns for e in events if 'wrist' in e.topic])
        expected = [arrived[arrived <= tick].max() - 25 * MS for tick in ticks]
        times = (columns['wrist.time'] * 1e9 - SIMULATED_NS)[: len(ticks)]
        np.testing.assert_allclose(times, expected, atol=1e3)
        assert len(live.observations) == len(ticks)


def test_an_episode_that_a_camera_ended_keeps_the_steps_before(ros, header):
    events = [e for e in quiet() if 'wrist' not in e.topic or e.arrival_ns < 250 * MS]
    ticks = [(105 + 50 * number) * MS for number in range(9)]
    with tempfile.TemporaryDirectory() as folder:
        live, episode = play(ros, header, contract(), folder, events, ticks)
        assert len(live.observations) == 5  # at 105 ... 305 ms; 232 ms is old at 355
        columns = aligned_columns(episode)
        assert len(columns['action/requested']) == len(columns['time']) - 1 == 4
        strict = contract().to_dict()
        strict['observation'][8]['max_age_s'] = 0.02
        with pytest.raises(RobotRLError, match=r'wrist is 0\.\d+ s old at tick \d of 6, at most'):
            aligned_columns(episode, Contract.parse(strict))


def test_a_missing_camera_is_told_and_the_other_encoding_serves(ros, header):
    ticks = [(205 + 50 * number) * MS for number in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        _, episode = play(ros, header, contract(), folder, quiet(), ticks)
        other = contract().to_dict()
        other['observation'][8]['encoding'] = 'rgb8'
        other['observation'][9]['encoding'] = 'jpeg'
        found, own = aligned_columns(episode, Contract.parse(other)), aligned_columns(episode)
        for name in ('wrist.image', 'scene.image'):
            np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(own[name]))
        other['observation'][8]['source'] = 'ceiling.image'
        with pytest.raises(RobotRLError, match=r"nothing recorded for 'ceiling\.image'"):
            aligned_columns(episode, Contract.parse(other))
        other['observation'][8] |= {'source': 'wrist.image', 'shape': [16, 16, 3]}
        with pytest.raises(RobotRLError, match='16 x 15 pixels, the policy needs 16 x 16'):
            aligned_columns(episode, Contract.parse(other))


class Lifting:
    """A demonstrated lift in simulation, and every message that it would be beside an arm."""

    def __init__(self, ros, task, seed):
        self.ros, self.task, self.sent = ros, task, []
        self.environment = ArmEnvironment(task, 1)
        policy = registry.make_demonstrator('ur5e/lift')
        self.loop = ControlLoop(task.contract(), task.robot, task.chain, policy)
        self.commands, self.rewards = [], []
        self.environment.reset([seed])
        self.rows = [self.environment.columns]
        self.sense(0)
        self.loop.begin(self.rows[0]['joint_states.position'][0])
        for tick in range(task.max_steps):
            self.step(tick)

    def sense(self, tick):
        at, row = SIMULATED_NS + tick * 50 * MS, {k: v[0] for k, v in self.rows[-1].items()}
        robot, width = self.task.robot, row['gripper.width'] / 2
        names = ('left_finger', *robot.joints[::-1])
        position = np.concatenate([width, row['joint_states.position'][::-1]])
        velocity = np.concatenate([[0.0], row['joint_states.velocity'][::-1]])
        self.send(at, 1, 'joint_states', self.ros.joint_state(at, names, position, velocity))
        place, turn = row['cube_pose.position'], row['cube_pose.orientation']
        self.send(at, 1, 'cube_pose', self.ros.pose(at, place, np.roll(turn, -1)))
        values = {'position': position, 'velocity': velocity}
        self.loop.observations.put('joint_states', at * 1e-9, values, names)
        self.loop.observations.put(
            'cube_pose', at * 1e-9, {'position': place, 'orientation': turn}
        )

    def step(self, tick):
        from std_msgs.msg import Float64MultiArray

        at, robot = SIMULATED_NS + tick * 50 * MS, self.task.robot
        command = self.loop.tick(at * 1e-9)
        names = self.task.contract().action_names
        trajectory = self.ros.trajectory
        # It had heard all streams 1.5 ms ago: what came since is not what it saw.
        action = trajectory(at, names, command.requested.tolist())
        action.points[0].time_from_start.nanosec = 1_500_000
        self.send(at, 3, 'policy/action', action)
        self.send(at, 2, 'cube_pose', self.ros.pose(at + MS, (9.0, 9.0, 9.0), (0, 0, 0, 1)))
        self.send(at, 3, '{}/command', trajectory(at, robot.joints, command.target))
        self.send(at, 3, '{}/gripper', Float64MultiArray(data=[command.width]))
        applied = trajectory(at, robot.joints, command.target, 'policy')
        self.send(at, 8, 'command_guard/applied', applied)
        finger = Float64MultiArray(data=[command.width / 2])  # where one of two stands
        self.send(at, 9, robot.gripper.topic, finger)
        timestep = self.environment.step(command.requested[None])
        self.commands.append(command)
        self.rewards.append(timestep.reward[0])
        self.rows.append(self.environment.columns)
        self.sense(tick + 1)

    def send(self, at, after_ms, topic, message):
        self.sent.append((ARRIVAL_NS + at - SIMULATED_NS + after_ms * MS, topic, message))

    def record(self, root, source):
        header = EpisodeHeader(
            task=self.task.name, source=source, robot_spec=self.task.robot,
            contract=self.task.contract(), start_time_ns=ARRIVAL_NS,
        )  # fmt: skip
        with EpisodeWriter(root, header) as writer:
            for arrival, topic, message in self.sent:
                if source == 'policy' or topic != 'policy/action':
                    self.ros.write(writer, topic.format(source), message, arrival)
            return EpisodeReader(writer.commit())


@pytest.fixture(scope='module')
def lifting(ros):
    return Lifting(ros, registry.make_task('ur5e/lift'), seed=12)


@pytest.mark.parametrize('source', ['policy', 'teleop'])
def test_a_recorded_lift_is_seen_done_and_paid_as_it_was_simulated(lifting, tmp_path, source):
    """Whether a policy said what it wanted, or only the commands of a person are there."""
    task, contract = lifting.task, lifting.task.contract()
    columns = with_tool(
        task,
        aligned_columns(lifting.record(tmp_path, source), kinematics=KinematicChain.from_spec),
    )
    steps = steps_of(task, columns, contract)
    for field in contract.observation:
        seen = np.stack([command.observation[field.name] for command in lifting.commands])
        np.testing.assert_allclose(
            steps[f'observation/{field.name}'][:-1], seen, atol=1e-6, err_msg=field.name
        )
    np.testing.assert_allclose(steps['reward'][:-1], lifting.rewards, atol=1e-6)
    whole = {name: np.stack([row[name][0] for row in lifting.rows]) for name in lifting.rows[0]}
    assert task.success(columns) == task.success(whole) == True  # noqa: E712
    for kind in ('requested', 'applied'):
        told = np.stack([getattr(command, kind) for command in lifting.commands])
        # What a person wanted is not known, but where it led: steps of inverse kinematics.
        exact = kind == 'applied' or source == 'policy'
        np.testing.assert_allclose(
            columns[f'action/{kind}'], told, atol=1e-6 if exact else 2e-3, err_msg=kind
        )
        np.testing.assert_allclose(columns[f'action/{kind}'][:, -1], told[:, -1], atol=1e-7)
