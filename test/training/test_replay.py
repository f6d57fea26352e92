import numpy as np
import pytest

from robot_rl.sim.environment import StepType
from robot_rl.storage.sampler import WindowSampler
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
