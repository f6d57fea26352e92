import numpy as np
import pytest

from robot_rl.errors import RobotRLError, StorageError
from robot_rl.sim.environment import StepType
from robot_rl.storage.sampler import WindowSampler
from robot_rl.training.checkpoint import load_checkpoint, save_checkpoint
from robot_rl.training.replay import Replay


def drive(replay, environment, steps, rng, record):
    """Step with random actions; append every transition of every episode to `record`."""
    timestep = environment.reset()
    replay.add_first(timestep)
    running = [[] for _ in range(environment.num_envs)]
    for _ in range(steps):
        action = rng.uniform(-0.5, 1.5, (environment.num_envs, 1)).astype(np.float32)
        following = environment.step(action)
        replay.add(action, following)
        for lane, episode in enumerate(running):
            if following.step_type[lane] == StepType.FIRST:
                running[lane] = []
                continue
            if not episode:
                record.append(episode)
            observation, after = (
                {name: values[lane] for name, values in t.observation.items()}
                for t in (timestep, following)
            )
            episode.append(
                (
                    observation,
                    action[lane],
                    following.reward[lane],
                    following.discount[lane],
                    after,
                )
            )
        timestep = following


def n_step_by_hand(episode, start, n, gamma, ended):
    """Return (R, D, o_{t+k}), or None where the window is not complete yet."""
    window = episode[start : start + n]
    if len(window) < n and not ended:
        return None
    total, factor = 0.0, 1.0
    for _, _, reward, discount, _ in window:
        total += factor * reward
        factor *= gamma * discount
    return total, factor, window[-1][4]


@pytest.mark.parametrize('steps', [5, 60, 200])
@pytest.mark.parametrize('lanes', [1, 3])
def test_n_step_transitions_through_the_ring_are_those_of_the_episodes(line, steps, lanes):
    """Every window that can be drawn is one of the episodes', and none that should be is missing.

    With 200 steps the ring of 64 rows a lane has wrapped three times.
    """
    n, gamma = 4, 0.9
    environment = line(lanes, seed=1)
    replay = Replay(environment.contract, lanes, capacity=63 * lanes)
    episodes = []
    drive(replay, environment, steps, np.random.default_rng(0), episodes)
    sampler = WindowSampler(replay.steps, n, gamma)
    batch = sampler.gather(sampler.available())
    expected = {}
    for episode in episodes:
        last = episode[-1]
        ended = last[3] == 0 or last[4]['clock'] >= 1
        for start, (observation, action, *_) in enumerate(episode):
            window = n_step_by_hand(episode, start, n, gamma, ended)
            if window:
                expected[observation['position'].tobytes() + action.tobytes()] = window
    assert len(batch.reward) > 0
    keys = [
        position.tobytes() + action.tobytes()
        for position, action in zip(batch.observation['position'], batch.action, strict=True)
    ]
    assert set(keys) <= set(expected)
    if steps < 60:  # nothing was overwritten
        assert set(keys) == set(expected)
    for i, key in enumerate(keys):
        reward, discount, following = expected[key]
        np.testing.assert_allclose(batch.reward[i], reward, rtol=1e-5)
        np.testing.assert_allclose(batch.discount[i], discount, rtol=1e-5)
        for name, value in following.items():
            np.testing.assert_array_equal(batch.next_observation[name][i], value)


def test_full_ring_keeps_the_newest_steps(line):
    environment = line(2)
    replay = Replay(environment.contract, 2, capacity=20)
    drive(replay, environment, 100, np.random.default_rng(0), [])
    assert replay.steps.size == 11
    newest = replay.steps.rows(np.arange(2), np.array([10, 10]))
    np.testing.assert_array_equal(
        replay.steps.flat['observation/position'][newest, 0], environment.x.astype(np.float32)
    )


def test_only_steps_count_as_inserted_and_not_the_beginnings(line):
    environment = line(2, seed=3)
    replay = Replay(environment.contract, 2, capacity=1000)
    episodes = []
    drive(replay, environment, 90, np.random.default_rng(0), episodes)
    assert replay.inserted == sum(len(episode) for episode in episodes) < 180


@pytest.mark.parametrize('steps', [10, 100])
def test_restored_replay_draws_the_same(line, steps):
    environment = line(2, seed=3)
    replay, other = (Replay(environment.contract, 2, capacity=60) for _ in range(2))
    drive(replay, environment, steps, np.random.default_rng(0), [])
    other.restore(replay.save())
    first, second = (
        WindowSampler(r.steps, 3, 0.9, rng=5).transitions(64) for r in (replay, other)
    )
    np.testing.assert_array_equal(first.reward, second.reward)
    np.testing.assert_array_equal(first.action, second.action)
    np.testing.assert_array_equal(
        first.next_observation['position'], second.next_observation['position']
    )
    assert other.inserted == replay.inserted


def test_an_episode_that_a_resumption_cut_is_not_joined_to_the_next(line):
    environment = line(1, seed=3)
    replay = Replay(environment.contract, 1, capacity=60)
    zero = np.full((1, 1), 0.5, np.float32)
    replay.add_first(environment.reset([0]))  # starts at -0.5
    for _ in range(3):
        replay.add(zero, environment.step(zero))
    replay.add_first(environment.reset([5]))  # starts at 0
    for _ in range(3):
        replay.add(zero, environment.step(zero))
    sampler = WindowSampler(replay.steps, 2, 0.9)
    batch = sampler.gather(sampler.available())
    assert set(
        zip(
            batch.observation['position'][:, 0],
            batch.next_observation['position'][:, 0],
            strict=True,
        )
    ) == {(-0.5, -0.5), (0.0, 0.0)}
    # Three starts before the cut (the last one short, and bootstrapping), two complete after it.
    np.testing.assert_allclose(batch.discount, [0.81, 0.81, 0.9, 0.81, 0.81])


def test_observations_are_all_that_is_kept(line):
    environment = line(2, seed=3)
    replay = Replay(environment.contract, 2, capacity=60)
    drive(replay, environment, 10, np.random.default_rng(0), [])
    assert replay.observations()['position'].shape == (22, 1)
    np.testing.assert_array_equal(
        replay.observations()['position'][10::11, 0], environment.x.astype(np.float32)
    )


STATES = {'hidden': (3,), 'age': ()}


def memories(count, lanes):
    """Return states that say which observation they belong to: the `count`-th of each lane."""
    age = np.full(lanes, count, np.float32)
    return {
        'hidden': age[:, None] + np.arange(3) / 10 + np.arange(lanes)[:, None] / 100,
        'age': age,
    }


def drive_recurrent(replay, environment, steps, rng, sampler=None):
    """Step with random actions and states; update priorities as a learner would."""
    lanes = environment.num_envs
    replay.add_first(environment.reset(), memories(0, lanes))
    for count in range(1, steps + 1):
        action = rng.uniform(-0.5, 1.5, (lanes, 1)).astype(np.float32)
        replay.add(action, environment.step(action), memories(count, lanes))
        if sampler and count > 15:
            place = sampler.transitions(8).place
            sampler.update_priorities(place, rng.exponential(size=8))


@pytest.mark.parametrize('steps', [15, 100])
def test_states_lie_beside_the_observation_they_belong_to(line, steps):
    environment = line(2, seed=1)
    replay = Replay(environment.contract, 2, 60, STATES)
    drive_recurrent(replay, environment, steps, np.random.default_rng(0))
    kept = min(steps + 1, 31)
    rows = replay.steps.rows(np.arange(2)[:, None], np.arange(kept))
    expected = [memories(count, 2) for count in range(steps + 1 - kept, steps + 1)]
    for name in STATES:
        np.testing.assert_allclose(
            replay.steps.flat[f'state/{name}'][rows],
            np.stack([states[name] for states in expected], axis=1),
            rtol=1e-6,
        )
    batch = WindowSampler(replay.steps, 2, 0.9).sequences(32, length=4, burn_in=3)
    # Where nothing was burned in the state is that of the first learned step itself.
    at = batch.state['age'] + batch.real.sum(axis=0)
    np.testing.assert_array_equal(at, replay.steps.flat['state/age'][batch.place])


@pytest.mark.parametrize('given', [{}, {'hidden': np.zeros((2, 3))}, {'other': np.zeros(2)}])
def test_other_states_than_asked_are_refused(line, given):
    environment = line(2)
    replay = Replay(environment.contract, 2, 60, STATES)
    with pytest.raises(RobotRLError, match=r"states .* were given, \['age', 'hidden'\] are kept"):
        replay.add_first(environment.reset(), given)
    assert replay.steps.size == 0


def test_priorities_follow_the_rows_through_the_ring(line):
    """A row is new at the largest priority seen, LAST at none, and keeps what it was given."""
    environment, rng = line(3, seed=1), np.random.default_rng(0)
    replay = Replay(environment.contract, 3, capacity=90, priorities=(1.0, 0.5))
    sampler = WindowSampler(replay.steps, 2, 0.9, 3, replay.priorities)
    expected, largest = np.zeros((3, 31)), 1.0
    replay.add_first(environment.reset())
    expected[:, 0] = largest
    for step in range(1, 150):
        action = rng.uniform(-0.5, 1.5, (3, 1)).astype(np.float32)
        following = environment.step(action)
        replay.add(action, following)
        expected[:, step % 31] = np.where(following.step_type == StepType.LAST, 0, largest)
        if step > 5:
            place, given = sampler.transitions(4).place, 3 * rng.exponential(size=4)
            sampler.update_priorities(place, given)
            for row, priority in zip(place, given, strict=True):
                expected.flat[row] = priority
            largest = max(largest, given.max())
        np.testing.assert_array_equal(replay.priorities.scaled(np.arange(93)), expected.flat)
    assert largest > 1 and (expected == 0).any()
    weight = sampler.transitions(16).weight
    assert weight.max() == 1 and weight.min() < 1


@pytest.mark.parametrize('steps', [20, 100])
def test_restored_replay_with_states_and_priorities_draws_the_same(line, steps, tmp_path):
    """Through a checkpoint's file; after 100 steps the ring of 31 rows a lane has wrapped."""
    replay, other = (Replay(line(2).contract, 2, 60, STATES, (0.7, 0.4)) for _ in range(2))
    rng, environment = np.random.default_rng(0), line(2, seed=3)
    sampler = WindowSampler(replay.steps, 3, 0.9, 5, replay.priorities)
    drive_recurrent(replay, environment, steps, rng, sampler)
    drive_recurrent(other, line(2, seed=4), 10, rng)  # what is overwritten
    save_checkpoint(tmp_path / 'checkpoint.pt', replay.save())
    other.restore(load_checkpoint(tmp_path / 'checkpoint.pt'))
    again = WindowSampler(other.steps, 3, 0.9, 5, other.priorities)
    sampler.rng = np.random.default_rng(5)
    for _ in range(20):
        action = rng.uniform(-0.5, 1.5, (2, 1)).astype(np.float32)
        following = environment.step(action)
        for one in (replay, other):
            one.add(action, following, memories(0, 2))
        first, second = (s.sequences(16, 4, 3) for s in (sampler, again))
        for name in ('place', 'weight', 'reward', 'discount', 'action', 'real', 'following'):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        for name in STATES:
            np.testing.assert_array_equal(first.state[name], second.state[name])
        given = rng.exponential(size=16)
        for one in (sampler, again):
            one.update_priorities(first.place, given)
    assert other.priorities.largest == replay.priorities.largest
    assert other.inserted == replay.inserted


@pytest.mark.parametrize('steps', [10, 100])
def test_checkpoints_from_before_there_were_priorities_are_restored(line, steps):
    environment = line(2, seed=3)
    replay = Replay(environment.contract, 2, capacity=60)
    drive(replay, environment, steps, np.random.default_rng(0), [])
    saved = {name: replay.save()[name] for name in ('columns', 'inserted')}
    plain = Replay(environment.contract, 2, capacity=60)
    ranked = Replay(environment.contract, 2, 60, STATES, (1.0, 1.0))
    for other in (plain, ranked):
        other.restore(saved)
        np.testing.assert_array_equal(
            other.observations()['position'], replay.observations()['position']
        )
    first, second = (WindowSampler(r.steps, 3, 0.9, 5).transitions(64) for r in (replay, plain))
    np.testing.assert_array_equal(first.reward, second.reward)
    np.testing.assert_array_equal(first.action, second.action)
    kept = replay.steps.size
    lasts = saved['columns']['step_type'] == StepType.LAST
    expected = np.zeros((2, 31))
    expected[:, :kept] = ~lasts
    np.testing.assert_array_equal(ranked.priorities.scaled(np.arange(62)), expected.flat)
    with pytest.raises(RobotRLError, match=f'2 environments with {kept} rows .* 1 with at most'):
        Replay(environment.contract, 1, 60).restore(saved)


def test_what_the_contract_does_not_name_is_left_out(line):
    environment = line(2)
    replay = Replay(environment.contract, 2, capacity=60)
    timestep = environment.reset()
    more = timestep._replace(observation={**timestep.observation, 'goal': np.full(2, np.nan)})
    replay.add_first(more)
    assert sorted(replay.observations()) == ['clock', 'position']


HINTS = {
    'reward': "the task's reward for what was observed there",
    'discount': "the task's discount for what was observed there",
    'observation position': 'the sensor or quantity that the field reads, and whether the '
    'simulation diverges',
    'observation clock': 'the sensor or quantity that the field reads, and whether the '
    'simulation diverges',
}


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('name', HINTS)
def test_bad_numbers_are_refused_before_they_are_stored(line, name, bad):
    environment, zero = line(3, seed=1), np.full((3, 1), 0.5, np.float32)
    replay = Replay(environment.contract, 3, capacity=12, priorities=(0.6, 0.4))
    replay.add_first(environment.reset())
    for _ in range(7):  # the ring of 5 rows has wrapped
        replay.add(zero, environment.step(zero))
    following = environment.step(zero)
    spoilt = following._replace(
        reward=following.reward.copy(),
        discount=following.discount.copy(),
        observation={field: values.copy() for field, values in following.observation.items()},
    )
    values = {
        'reward': spoilt.reward,
        'discount': spoilt.discount,
        'observation position': spoilt.observation['position'],
        'observation clock': spoilt.observation['clock'],
    }
    values[name][1:] = bad
    before = replay.save()
    with pytest.raises(RobotRLError) as raised:
        replay.add(zero, spoilt)
    assert str(raised.value) == (
        f'{name}: NaN or infinite in environment 1 after 21 steps; check {HINTS[name]}'
    )
    after = replay.save()
    for column, kept in before['columns'].items():
        np.testing.assert_array_equal(after['columns'][column], kept)
    assert (after['head'], after['inserted']) == (before['head'], before['inserted'])
    if name.startswith('observation'):
        with pytest.raises(RobotRLError, match=f'{name}: NaN or infinite in environment 1'):
            replay.add_first(spoilt)


def test_priorities_outside_of_what_is_right_are_refused(line):
    with pytest.raises(StorageError, match='alpha 2'):
        Replay(line(1).contract, 1, 10, priorities=(2, 0.4))


def test_rows_that_are_not_written_begin_no_episode(line):
    """They were zeros, which is FIRST: TRAIL looked through a million of them at each update."""
    environment = line(2)
    replay = Replay(environment.contract, 2, capacity=1000)
    replay.add_first(environment.reset())
    assert np.count_nonzero(replay.steps.flat['step_type'] == StepType.FIRST) == 2
