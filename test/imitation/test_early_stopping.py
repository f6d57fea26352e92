"""Episodes that end by their own score, against a plain loop over recorded scores."""

import numpy as np
import pytest

from robot_rl.imitation.early_stopping import StoppingEnvironment
from robot_rl.sim.environment import StepType, TimeStep

LENGTH = 15


class Counting:
    """Shows (seed of the episode, step); an episode lasts LENGTH steps and then terminates."""

    def __init__(self, seed=0):
        self.rng, self.contract, self.reward_range = np.random.default_rng(seed), None, (0, 1)
        self.num_envs, self.max_steps, self.columns = 1, LENGTH, {'a.b': np.zeros((1, 2))}
        self.closed, self.actions = False, []

    def reset(self, seeds=None):
        self.seed = int(self.rng.integers(1000)) if seeds is None else seeds[0]
        self.t = 0
        return self.show(StepType.FIRST)

    def step(self, action):
        assert self.t < LENGTH, 'an episode that has ended takes no step'
        self.actions.append(action)
        self.t += 1
        return self.show(StepType.LAST if self.t == LENGTH else StepType.MID)

    def show(self, kind):
        end = 0.0 if kind == StepType.LAST else 1.0
        seen = np.array([[self.seed, self.t]], np.float32)
        reward = np.array([float(self.t)], np.float32)
        return TimeStep(
            np.array([kind], np.int8), reward, np.array([end], np.float32), {'s': seen}
        )

    def close(self):
        self.closed = True


def score_of(seed, t):
    return float(np.random.default_rng([int(seed), int(t)]).random() + (t > 6) * (seed % 3))


def stops_at(seed, patience):
    """The step at which an episode of this seed is to end, LENGTH without an early one."""
    scores, above = [], 0
    for t in range(1, LENGTH + 1):
        score = score_of(seed, t)
        above = above + 1 if scores and score > np.median(scores) else 0
        scores.append(score)
        if above == patience:
            return t
    return LENGTH


def environment(patience=4, num_envs=3, score=None):
    made = []

    def make(seed):
        made.append(Counting(seed))
        return made[-1]

    def scores(judged):
        seen = judged.next_observation['s']
        return np.array([score_of(*row) for row in seen])

    return StoppingEnvironment(make, num_envs, 5, score or scores, patience), made


@pytest.mark.parametrize('patience', [2, 4])
def test_episodes_end_where_their_score_has_been_above_its_median_long_enough(patience):
    env, _ = environment(patience)
    timestep = env.reset()
    assert (timestep.step_type == StepType.FIRST).all()
    ended, early = [], 0
    for _ in range(300):
        before = timestep
        timestep = env.step(np.zeros((3, 2)))
        for lane in range(3):
            seed, t = timestep.observation['s'][lane]
            if before.step_type[lane] == StepType.LAST:
                assert (timestep.step_type[lane], t) == (StepType.FIRST, 0)
                continue
            last = stops_at(seed, patience)
            assert (timestep.step_type[lane] == StepType.LAST) == (t == last)
            # A truncation, which bootstraps; the task's own end stays what it is.
            assert timestep.discount[lane] == (0 if t == LENGTH else 1)
            assert timestep.reward[lane] == t
            if t == last:
                ended.append(t)
                early += t < LENGTH
    assert 0 < early < len(ended)
    assert env.stopped == early


def test_without_a_score_nothing_ends_early():
    env, _ = environment(1, score=lambda judged: None)
    env.reset()
    kinds = np.stack([env.step(np.zeros((3, 2))).step_type for _ in range(LENGTH)])
    assert (kinds[:-1] == StepType.MID).all()
    assert (kinds[-1] == StepType.LAST).all()
    assert env.stopped == 0


def test_what_is_scored_is_the_step_that_was_taken():
    asked = []
    env, made = environment(score=lambda judged: asked.append(judged))
    first = env.reset([1, 2, 3])
    assert first.observation['s'].tolist() == [[1, 0], [2, 0], [3, 0]]
    action = np.arange(6.0).reshape(3, 2)
    env.step(action)
    (judged,) = asked
    np.testing.assert_array_equal(judged.observation['s'], first.observation['s'])
    np.testing.assert_array_equal(judged.next_observation['s'], [[1, 1], [2, 1], [3, 1]])
    np.testing.assert_array_equal(judged.action, action)
    np.testing.assert_array_equal(np.concatenate([lane.actions[0] for lane in made]), action)
    assert env.columns['a.b'].shape == (3, 2)
    env.close()
    assert all(lane.closed for lane in made)
