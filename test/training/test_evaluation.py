import numpy as np
import pytest

from robot_rl import registry
from robot_rl.sim.environment import HELD_OUT
from robot_rl.training.evaluation import evaluate, held_out_seeds, task_of


class Push:
    """Always pushes by the same force."""

    def __init__(self, push):
        self.push = push

    def initial_state(self, batch):
        return {'calls': 0}

    def select(self, observation, state):
        batch = len(observation['position'])
        return np.full((batch, 1), self.push, np.float32), {'calls': state['calls'] + 1}


def return_by_hand(seed, push):
    x, total, steps = -0.5 + seed % 11 / 10, 0.0, 0
    while True:
        x, steps = x + 0.4 * (push - 0.5), steps + 1
        total += np.exp(-abs(x))
        if abs(x) > 2.05 or steps == 12:
            return total, steps


@pytest.mark.parametrize('num_envs', [1, 3, 8])
@pytest.mark.parametrize('push', [0.5, 0.9, 1.5])
def test_returns_are_those_of_one_episode_a_seed(line, num_envs, push):
    environment = line(num_envs)
    result = evaluate(Push(push), environment, held_out_seeds(7))
    expected = [return_by_hand(HELD_OUT + i, push) for i in range(7)]
    np.testing.assert_allclose(result.returns, [r for r, _ in expected], rtol=1e-5)
    np.testing.assert_array_equal(result.lengths, [n for _, n in expected])
    summary = result.summary()
    assert summary['returns'] == result.returns.tolist()
    np.testing.assert_allclose(
        [summary['mean'], summary['std']], [result.returns.mean(), result.returns.std()]
    )


def test_held_out_seeds_are_out_of_reach_of_training():
    assert held_out_seeds(3) == [2**31, 2**31 + 1, 2**31 + 2]


def test_suite_tasks_have_no_success():
    assert task_of('suite/cartpole-swingup') is None


def test_success_of_an_arm_is_judged_from_the_columns_of_the_whole_episode():
    task = task_of('ur5e/reach')
    environment = registry.make_environment('ur5e/reach', num_envs=2)
    seen = []

    class Recorder:
        def initial_state(self, batch):
            return {}

        def select(self, observation, state):
            seen.append(environment.columns)
            return np.zeros((2, 6), np.float32), state

    result = evaluate(Recorder(), environment, held_out_seeds(2), task)
    environment.close()
    assert len(seen) == task.max_steps
    start = np.linalg.norm(seen[0]['tool.position'] - seen[0]['target_pose.position'], axis=1)
    np.testing.assert_allclose(result.final_distance, start, atol=0.02)  # it stood still
    assert result.success.tolist() == [False, False]
    assert set(result.summary()) >= {'success_rate', 'final_distance_mean'}
