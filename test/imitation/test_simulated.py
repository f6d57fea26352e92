"""Episodes recorded in simulation come back as the steps that the environment gave."""

import numpy as np
import pytest

from robot_rl.errors import ContractMismatch, StorageError
from robot_rl.imitation.data import write_demonstrations
from robot_rl.imitation.simulated import (
    _DEFINITION,
    _TYPE,
    _encoded,
    is_simulated,
    record_episodes,
    simulated_steps,
)
from robot_rl.sim.environment import StepType, TimeStep
from robot_rl.specs import RobotSpec
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


def write(root, contract, rows):
    """Write an episode of made-up rows {topic: values}, each of them a message."""
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
