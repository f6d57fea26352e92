"""Episodes recorded in simulation come back as the steps that the environment gave."""

import shutil
import struct

import numpy as np
import pytest

from robot_rl.control.observation import History
from robot_rl.errors import ContractMismatch, StorageError
from robot_rl.imitation.data import write_demonstrations
from robot_rl.imitation.simulated import is_simulated, record_episodes, simulated_steps
from robot_rl.sim.environment import StepType, TimeStep
from robot_rl.specs import RobotSpec
from robot_rl.storage import column_file
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.episode import EpisodeHeader, EpisodeReader, EpisodeWriter
from robot_rl.storage.store import Store


class Walk:
    """Adds up the actions; ends after 5 steps, or by termination once x is above 10."""

    columns = {'tool.height': np.array([[1.0]])}  # noqa: RUF012

    def __init__(self, contract):
        self.contract, self.num_envs = contract, 1

    def reset(self, seeds):
        self.x, self.t = np.array([float(seeds[0]), 0.0]), 0
        return self.show(StepType.FIRST, 0.0, 1.0)

    def step(self, action):
        self.x, self.t = self.x + action[0], self.t + 1
        out = self.x[0] > 10
        kind = StepType.LAST if out or self.t == 5 else StepType.MID
        return self.show(kind, self.x.sum() / 3, 0.0 if out else 1.0)

    def show(self, kind, reward, discount):
        seen = {'x': self.x[None].astype(np.float32), 'y': np.float32([self.t / 7])}
        numbers = np.float32([reward]), np.float32([discount])
        return TimeStep(np.array([kind], np.int8), *numbers, seen)


class Random:
    def __init__(self):
        self.rng = np.random.default_rng(0)
        self.taken = []

    def initial_state(self, batch):
        return {}

    def select(self, observation, state):
        self.taken.append(self.rng.uniform([0, 1], [3, 2], (1, 2)).astype(np.float32))
        return self.taken[-1], state


def record(root, contract, seeds=(0, 3, 8), **options):
    policy = Random()
    headers = record_episodes(
        Store(root), Walk(contract), policy, list(seeds), {'task': 'suite/walk'}, **options
    )
    return headers, policy


def test_an_episode_comes_back_row_by_row(contract, tmp_path):
    (header, _, ended), policy = record(tmp_path, contract)
    episode = EpisodeReader(tmp_path / header.id)
    assert is_simulated(episode)
    assert episode.damage() is None
    columns = simulated_steps(episode, contract)
    env = Walk(contract)
    timestep, rows = env.reset([0]), []
    for t in range(5):
        following = env.step(policy.taken[t])
        rows.append((timestep, policy.taken[t][0], following))
        timestep = following
    for t, (now, action, following) in enumerate(rows):
        np.testing.assert_array_equal(columns['observation/x'][t], now.observation['x'][0])
        assert columns['observation/y'][t] == now.observation['y'][0]
        np.testing.assert_array_equal(columns['action'][t], action)
        assert columns['reward'][t] == following.reward[0]
        assert columns['discount'][t] == following.discount[0]
    np.testing.assert_array_equal(columns['observation/x'][5], timestep.observation['x'][0])
    assert columns['step_type'].tolist() == [0, 1, 1, 1, 1, 2]
    assert all(column.dtype in (np.float32, np.int8) for column in columns.values())
    last = simulated_steps(EpisodeReader(tmp_path / ended.id), contract)
    assert last['discount'][-2] == 0  # a termination stays one


def test_it_has_columns_and_a_reward_sequence_and_no_messages(contract, tmp_path):
    (header, *_), policy = record(tmp_path, contract)
    path = tmp_path / header.id
    assert {file.name for file in path.iterdir()} == {'episode.json', 'rewards', 'steps.npz'}
    episode, env = EpisodeReader(path), Walk(contract)
    columns = aligned_columns(episode)
    env.reset([0])
    paid = [env.step(action).reward[0] for action in policy.taken[:5]]
    (info,) = episode.rewards()
    assert (info.task, info.kind, info.author) == ('suite/walk', 'simulated', 'suite/walk')
    np.testing.assert_array_equal(episode.reward(info.id), paid)
    np.testing.assert_allclose(np.diff(columns['time']), 0.1, atol=1e-6)
    np.testing.assert_array_equal(columns['discount'], np.ones(5))
    asked, told = columns['action/requested'], columns['action/applied']
    np.testing.assert_array_equal(asked, np.concatenate(policy.taken[:5]))
    np.testing.assert_array_equal(told, np.clip(asked, [-2, 1], [6, 2]))
    store = Store(tmp_path)
    assert header.end_time_ns - header.start_time_ns == 500_000_000
    assert len(store.episodes('reward=simulated')) == 3 and not store.episodes('reward=none')
    store.add_reward(header.id, np.zeros(5), task='other', kind='sketch', author='anna')
    steps = simulated_steps(store.open(header.id), contract)
    np.testing.assert_array_equal(steps['reward'][:-1], paid)


class Flicker(Walk):
    """Shows its last two states, and pictures of four times the steps so far."""

    def show(self, kind, reward, discount):
        timestep = super().show(kind, reward, discount)
        picture = np.full((1, 4, 6, 3), self.t * 40, np.uint8)
        picture[..., 1] = 7
        return timestep._replace(
            observation=self.stack.push({'x': timestep.observation['x'], 'eye': picture})
        )

    def reset(self, seeds):
        self.stack = History(self.contract)
        return super().reset(seeds)


def test_pictures_and_histories_are_kept_once_and_come_back(contract, tmp_path):
    x = contract.observation[0].replace(history=2).to_dict()
    eye = {'name': 'eye', 'source': 'front.image', 'shape': [4, 6, 3], 'history': 3}
    eye |= {'dtype': 'uint8', 'encoding': 'rgb8'}
    seeing = contract.replace(observation=[x, eye])
    policy, store = Random(), Store(tmp_path)
    (header,) = record_episodes(store, Flicker(seeing), policy, [0], {'task': 'suite/flicker'})
    columns = aligned_columns(store.open(header.id))
    assert columns['env.x'].shape == (6, 2) and columns['front.image'].shape == (6, 4, 6, 3)
    steps, env = simulated_steps(store.open(header.id), seeing), Flicker(seeing)
    shown = [env.reset([0]), *(env.step(action) for action in policy.taken)]
    for name in ('x', 'eye'):
        expected = np.concatenate([timestep.observation[name] for timestep in shown])
        found = steps[f'observation/{name}']
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    written = write_demonstrations(tmp_path / 'steps', store, '', None, seeing)
    np.testing.assert_array_equal(
        written.flat['observation/eye'].take(np.arange(6)), steps['observation/eye']
    )


@pytest.mark.parametrize(
    ('spoil', 'told'),
    [
        (lambda path, columns: columns.pop('discount'), 'no column discount'),
        (lambda path, columns: columns.pop('env.x'), r'no column env\.x'),
        (
            lambda path, columns: columns.update(discount=np.ones(3)),
            '3 rows of discount, expected 5',
        ),
        (lambda path, columns: shutil.rmtree(path / 'rewards'), "no reward of kind 'simulated'"),
    ],
)
def test_what_is_missing_is_told(contract, tmp_path, spoil, told):
    (header, *_), _ = record(tmp_path, contract)
    path = tmp_path / header.id
    columns = column_file.read_whole(path / 'steps.npz')
    spoil(path, columns)
    column_file.write(path / 'steps.npz', '', columns)
    with pytest.raises(StorageError, match=told) as refused:
        simulated_steps(EpisodeReader(path), contract)
    assert str(refused.value).startswith(f'{path}: ') and '\n' not in str(refused.value)


def test_a_reward_that_is_not_finite_is_one_line(contract, tmp_path):
    class Broken(Walk):
        def show(self, kind, reward, discount):
            return super().show(kind, np.nan, discount)

    with pytest.raises(StorageError, match='value 0 of 5 is nan, not finite'):
        record_episodes(Store(tmp_path), Broken(contract), Random(), [0], {'task': 'a'})


def test_success_is_told_where_somebody_can(contract, tmp_path):
    judged = []
    headers, _ = record(tmp_path, contract, judge=lambda c: judged.append(c) or len(judged) > 1)
    assert [header.success for header in headers] == [False, True, True]
    assert judged[0]['tool.height'].shape == (6, 1)
    (header,), _ = record(tmp_path, contract, seeds=[1])
    assert header.success is None
    assert [h.seed for h in Store(tmp_path).episodes('task=suite/walk success=true')] == [3, 8]


def test_a_policy_that_sees_less_reads_what_it_sees(contract, tmp_path):
    (header, *_), _ = record(tmp_path, contract)
    columns = simulated_steps(EpisodeReader(tmp_path / header.id), contract.without(['y']))
    assert 'observation/y' not in columns
    assert columns['observation/x'].shape == (6, 2)


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        ({'observation': {'name': 'w'}}, 'observation w: not among x, y'),
        (
            {'observation': {'shape': [3]}},
            r'observation x: recorded in shape \[2\], read in \[3\]',
        ),
        ({'action': {'names': ['a', 'c']}}, 'action: recorded generic a, generic b, commanded'),
        ({'action': {'kind': 'effort'}}, 'commanded effort a, effort b'),
        ({'rate_hz': 20.0}, 'rate_hz: recorded 10, decided 20'),
    ],
)
def test_an_episode_of_another_contract_names_the_field(contract, tmp_path, change, told):
    (header, *_), _ = record(tmp_path, contract)
    data = contract.to_dict()
    for key, value in change.items():
        if isinstance(value, dict):
            data[key][0] |= value
        else:
            data[key] = value
    other = type(contract).parse(data)
    with pytest.raises(ContractMismatch, match=told) as refused:
        simulated_steps(EpisodeReader(tmp_path / header.id), other)
    assert '\n' not in str(refused.value)


_TYPE, _SEPARATOR = 'std_msgs/msg/Float64MultiArray', '=' * 80
_DEFINITION = f"""\
MultiArrayLayout layout
float64[] data
{_SEPARATOR}
MSG: std_msgs/MultiArrayLayout
MultiArrayDimension[] dim
uint32 data_offset
{_SEPARATOR}
MSG: std_msgs/MultiArrayDimension
string label
uint32 size
uint32 stride
"""


def _encoded(values):
    """Return numbers as a Float64MultiArray without a layout, in little-endian CDR."""
    flat = np.ravel(values).astype('<f8')
    # Encapsulation; an empty layout (no dimensions, offset 0); a length; padding to 8 bytes.
    return struct.pack('<BBHIII4x', 0, 1, 0, 0, 0, len(flat)) + flat.tobytes()


def write(root, contract, rows):
    """Write an episode of made-up rows {topic: values} as the first version: a message each."""
    header = EpisodeHeader(contract=contract, source='policy')
    with EpisodeWriter(root, header) as writer:
        for time_ns, row in enumerate(rows):
            for name, values in row.items():
                data = _encoded(np.asarray(values))
                writer.write(
                    f'/env/{name}', _TYPE, _DEFINITION, data, header.start_time_ns + time_ns
                )
        writer.commit()
    return header.id


def test_an_older_episode_of_messages_gives_the_same_steps(contract, tmp_path):
    (header, *_), _ = record(tmp_path, contract)
    columns = simulated_steps(EpisodeReader(tmp_path / header.id), contract)
    rows = [
        {name: values[t] for name, values in columns.items() if name != 'step_type'}
        for t in range(6)
    ]
    rows[-1] = {name: rows[-1][name] for name in rows[-1] if name.startswith('observation/')}
    store = Store(tmp_path / 'older')
    older = store.open(write(store.root, contract, rows))
    assert is_simulated(older) and not older.is_steps_only
    found = simulated_steps(older, contract)
    assert found.keys() == columns.keys()
    for name, values in columns.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype
    steps = write_demonstrations(tmp_path / 'steps', store, '', None, contract)
    np.testing.assert_array_equal(steps.flat['reward'], columns['reward'])


ROW = {
    'observation/x': [1, 2],
    'observation/y': 3,
    'action': [1, 1.5],
    'reward': 1,
    'discount': 1,
}
SEEN = {name: ROW[name] for name in ('observation/x', 'observation/y')}
BAD = {
    'no actions': ([SEEN, SEEN], 'no actions; there are no steps'),
    'zero length': ([], 'nothing was recorded; there are no steps'),
    'no rewards': (
        [{n: v for n, v in ROW.items() if n != 'reward'}, SEEN],
        '0 rows of reward, expected 1',
    ),
    'a row short': ([ROW, ROW], '2 rows of observation/x, expected 3'),
    'NaN action': (
        [ROW | {'action': [np.nan, 1]}, ROW, SEEN],
        'action: NaN or infinite in 1 of 3 steps',
    ),
    'NaN observation': (
        [ROW, SEEN | {'observation/y': np.inf}],
        'observation y: NaN or infinite in 1 of 2 steps',
    ),
}


@pytest.mark.parametrize('name', BAD)
def test_an_episode_that_cannot_be_used_is_left_out_with_one_line(contract, tmp_path, name):
    rows, told = BAD[name]
    bad = write(tmp_path / 'store', contract, rows)
    store, reasons = Store(tmp_path / 'store'), []
    with pytest.raises(StorageError) as refused:
        write_demonstrations(tmp_path / 'none', store, '', None, contract)
    line = str(refused.value)
    assert '\n' not in line
    assert line.startswith(
        f"{store.root}: no usable demonstration for the query ''; the first of 1"
    )
    assert told in line
    record(tmp_path / 'store', contract)
    steps = write_demonstrations(
        tmp_path / 'some', store, '', None, contract, refused=reasons.append
    )
    assert reasons == [f'{tmp_path / "store" / bad}: {told}']
    assert len(steps.spans) == 3


def test_at_most_so_many_are_taken_oldest_first(contract, tmp_path):
    record(tmp_path / 'store', contract)
    store = Store(tmp_path / 'store')
    steps = write_demonstrations(tmp_path / 'two', store, '', None, contract, limit=2)
    assert steps.spans.tolist() == [[0, 6], [6, 10]]  # the second one terminated
    assert steps.flat['observation/x'].take([0, 6], axis=0)[:, 0].tolist() == [0, 3]


def test_a_query_that_matches_nothing_says_what_may_have_been_meant(contract, tmp_path):
    record(tmp_path / 'store', contract)
    store = Store(tmp_path / 'store')
    with pytest.raises(StorageError, match=r"'task=suite/wlk'.*did you mean 'suite/walk'\?"):
        write_demonstrations(tmp_path / 'd', store, 'task=suite/wlk', None, contract)


def test_an_episode_of_another_arm_names_the_field_and_the_joints(contract, tmp_path):
    from robot_rl.registry import make_task

    task, store = make_task('ur5e/reach'), Store(tmp_path / 'store')
    robot = RobotSpec.load('ur5e')
    other = robot.joints[0] + '_of_another'
    joint = {'names': [other, *robot.joints[1:]]}
    contract = task.contract()
    data = contract.to_dict()
    data['action'][0] |= joint
    header = EpisodeHeader(contract=contract, robot_spec=robot, robot='ur5e')
    with EpisodeWriter(store.root, header) as writer:
        writer.write('/note', _TYPE, _DEFINITION, _encoded(np.zeros(1)), header.start_time_ns)
        writer.commit()
    wanted = type(contract).parse(data)
    with pytest.raises(StorageError, match=rf"action joint_delta: joints \['{other}'\] are not"):
        write_demonstrations(tmp_path / 'd', store, '', task, wanted)
    with pytest.raises(StorageError, match='an episode of streams, and the task to be learned'):
        write_demonstrations(tmp_path / 'e', store, '', None, contract)
