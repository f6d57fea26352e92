"""What an adversarial learner is shown and asked, against the rows of a ring and of episodes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.errors import RobotRLError, StorageError
from robot_rl.imitation.gail import Judged
from robot_rl.storage.sampler import WindowSampler
from robot_rl.storage.steps import FIRST, LAST, MID, Steps
from robot_rl.training.judgement import Judgement, early_steps, rewards_by


def ring(lengths, lanes=2, capacity=20, seed=0):
    """A ring that holds the newest rows of episodes of `lengths`, other ones in each lane.

    An observation is (episode, step); the action of a row is what the observation says, too.
    """
    rng = np.random.default_rng(seed)
    columns = {
        'observation/at': np.zeros((lanes, capacity, 2), np.float32),
        'action': np.zeros((lanes, capacity, 2), np.float32),
        'reward': np.zeros((lanes, capacity), np.float32),
        'discount': np.ones((lanes, capacity), np.float32),
        'step_type': np.zeros((lanes, capacity), np.int8),
    }
    written = sum(lengths)
    for lane in range(lanes):
        row = 0
        for episode, length in enumerate(rng.permutation(lengths)):
            for step in range(length):
                kind = FIRST if step == 0 else LAST if step == length - 1 else MID
                place = row % capacity
                columns['observation/at'][lane, place] = columns['action'][lane, place] = (
                    episode,
                    step,
                )
                columns['step_type'][lane, place] = kind
                row += 1
    return Steps(columns, min(written, capacity), written % capacity)


@given(
    lengths=st.lists(st.integers(2, 9), min_size=2, max_size=8),
    frames=st.integers(1, 12),
    seed=st.integers(0, 20),
)
@settings(max_examples=80, deadline=None)
def test_early_steps_are_among_the_first_of_their_episode(lengths, frames, seed):
    steps = ring(lengths, capacity=30, seed=seed)
    batch = early_steps(WindowSampler(steps, 1, 0.9, seed), frames, 64)
    assert len(batch.action) == 64
    episode, step = batch.observation['at'].T
    assert (step < frames).all()
    following = batch.next_observation['at']
    np.testing.assert_array_equal(following, np.stack([episode, step + 1], axis=1))
    np.testing.assert_array_equal(batch.action, batch.observation['at'])


def test_every_early_step_is_shown_as_often():
    steps = ring([6, 6, 6], lanes=1, capacity=40)
    batch = early_steps(WindowSampler(steps, 1, 0.9, 0), 3, 9000)
    places, counts = np.unique(batch.observation['at'], axis=0, return_counts=True)
    assert len(places) == 9
    np.testing.assert_allclose(counts, 1000, rtol=0.15)


def test_a_history_is_judged_as_it_is_seen():
    """The ring keeps one step of it; the discriminator is to see all of them."""
    steps = ring([6, 6], lanes=1, capacity=12)
    steps.histories = {'at': 3}
    shown = []

    class Looks(Asked):
        def reward(self, judged):
            shown.append(judged)
            return torch.zeros(len(judged.action))

    rewards_by(Looks(), steps, lambda name, rows: steps.flat[name].take(rows, axis=0))(
        np.array([1, 4])
    )
    (judged,) = shown
    assert judged.observation['at'][:, :, 1].tolist() == [[0, 0, 1], [2, 3, 4]]
    assert judged.next_observation['at'][:, :, 1].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_ring_in_which_no_episode_begins_is_one_line():
    steps = ring([50], lanes=1, capacity=20)
    with pytest.raises(StorageError, match='none of them begins among 20 rows; a replay_size'):
        early_steps(WindowSampler(steps, 1, 0.9, 0), 3, 8)


class Asked:
    """Stands for a learner: the reward of a step is a number made of all that it is shown."""

    early_frames = 0

    def __init__(self, **config):
        given = {'discount': 0.9, 'discriminator_batch_size': 16, 'task_reward': 0.0} | config
        self.config = type('C', (), given)
        self.judged = []

    def reward(self, judged):
        at, then = judged.observation['at'], judged.next_observation['at']
        value = at @ [100, 1] + 0.1 * judged.action[:, 1] + 1000 * (then[:, 0] - at[:, 0])
        return torch.from_numpy(value + 0.01 * (then[:, 1] - at[:, 1]))

    def judge(self, expert, agent, early=None):
        self.judged.append((expert, agent, early))
        return {}


def take_of(steps):
    return lambda column, rows: steps.flat[column].take(rows, axis=0)


@pytest.mark.parametrize(('length', 'weight'), [(0, 0.0), (4, 0.0), (0, 2.5), (4, 2.5)])
def test_each_step_of_a_window_is_paid_by_what_it_shows(length, weight):
    """And, as much of it as the learner wants, by the task."""
    steps = ring([5, 7, 4, 6, 8], lanes=3, capacity=25)
    at = steps.flat['observation/at']
    steps.flat['reward'][:] = at[..., 0] - 3 * at[..., 1]
    rewards = rewards_by(Asked(task_reward=weight), steps, take_of(steps))
    sampler = WindowSampler(steps, 3, 0.9, 0, rewards=rewards)

    def paid(episode, step):
        by_task = episode - 3 * step
        return 100 * episode + step + 0.1 * step + 0.01 + weight * by_task

    if length:
        batch = sampler.sequences(40, length)
        at = batch.observation['at'][:length]
        inside = batch.following
    else:
        batch = sampler.transitions(40)
        at, inside = batch.observation['at'], np.round(np.log(batch.discount) / np.log(0.9))
    assert inside.max() == 3
    assert inside.min() < 3
    for (episode, step), count, reward in zip(
        at.reshape(-1, 2), inside.ravel(), batch.reward.ravel(), strict=True
    ):
        right = sum(0.9**i * paid(episode, step + i) for i in range(int(count)))
        assert reward == pytest.approx(right, rel=1e-5)


def test_both_sides_are_shown_and_their_first_frames_where_they_are_wanted():
    agent, experts = ring([5, 7, 6], seed=1), ring([8, 8], lanes=1)
    experts.flat['observation/at'][:, 0] += 50
    sides = ((steps, take_of(steps)) for steps in (agent, experts))
    learner = Asked(horizon='fixed')
    learner.early_frames = 2
    Judgement(learner, *sides, np.random.default_rng(0)).update()
    ((expert, own, early),) = learner.judged
    assert all(isinstance(part, Judged) for part in (expert, own, *early))
    for part, is_expert in ((expert, True), (own, False), (early[0], True), (early[1], False)):
        assert ((part.observation['at'][:, 0] >= 50) == is_expert).all()
        assert part.action.shape == (16, 2)
    for part in early:
        assert (part.observation['at'][:, 1] < 2).all()


def test_a_termination_under_a_fixed_horizon_is_refused_on_either_side():
    rng = np.random.default_rng(0)
    learner = Asked(horizon='fixed')
    calm, cut = ring([5, 5], lanes=1), ring([5, 5], lanes=1)
    cut.flat['discount'][3] = 0
    with pytest.raises(RobotRLError, match='episodes of the demonstrations terminate'):
        Judgement(learner, (calm, take_of(calm)), (cut, take_of(cut)), rng)
    judgement = Judgement(learner, (cut, take_of(cut)), (calm, take_of(calm)), rng)
    with pytest.raises(RobotRLError, match="the task's episodes terminate"):
        for _ in range(20):
            judgement.update()
