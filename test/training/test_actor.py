import numpy as np
import pytest

from robot_rl.policies.d4pg import D4PGConfig, D4PGLearner
from robot_rl.sim.environment import StepType
from robot_rl.training.actor import Actor, SingleActor
from robot_rl.training.replay import Replay


@pytest.fixture
def parts(line):
    environment = line(4, seed=0)
    config = D4PGConfig(policy_layers=(8,), critic_layers=(8,))
    learner = D4PGLearner(environment.contract, config)
    return environment, learner, Replay(environment.contract, 4, 1000)


def make(parts, sigma, learn=lambda: None):
    _, learner, replay = parts
    return Actor(learner.policy, replay, learn, sigma, np.random.default_rng(0))


def test_noise_has_the_deviation_of_the_unit_range_and_stays_in_bounds(parts):
    environment, learner, _ = parts
    timestep = environment.reset()
    actor = make(parts, sigma=0.2)
    drawn = np.concatenate([actor.select(timestep.observation, {})[0] for _ in range(2000)])
    quiet, _ = learner.policy.select(timestep.observation)
    # The bounds are -0.5 and 1.5: the unit range's 0.2 is 0.2 here as well, half the width is 1.
    np.testing.assert_allclose(drawn.std(), 0.2, rtol=0.05)
    np.testing.assert_allclose(drawn.mean(), quiet.mean(), atol=0.01)
    wild = make(parts, sigma=5.0)
    drawn = np.concatenate([wild.select(timestep.observation, {})[0] for _ in range(100)])
    assert drawn.dtype == np.float32
    assert (drawn.min(), drawn.max()) == (-0.5, 1.5)


def test_without_noise_it_is_the_policy(parts):
    environment, learner, _ = parts
    observation = environment.reset().observation
    action, state, extras = make(parts, sigma=0).select(observation, {})
    np.testing.assert_array_equal(action, learner.policy.select(observation)[0])
    assert state == extras == {}


def test_one_environment_at_a_time_fills_the_replay_as_the_batch_does(line):
    """The lecture's loop (policy, observe, observe_last, update) against the batched one."""
    rows = []
    for single in (False, True):
        environment = line(1, seed=2)
        config = D4PGConfig(policy_layers=(8,), critic_layers=(8,))
        learner = D4PGLearner(environment.contract, config)
        replay, calls = Replay(environment.contract, 1, 1000), []
        actor = Actor(
            learner.policy, replay, lambda c=calls: c.append(1), 0.3, np.random.default_rng(0)
        )
        (run_single if single else run_batched)(environment, actor, steps=40)
        rows.append((replay, len(calls)))
    (batched, updates), (single, single_updates) = rows
    assert batched.inserted == single.inserted
    assert single_updates == batched.inserted <= updates
    valid = batched.steps.columns['step_type'] != StepType.LAST
    for name, column in batched.steps.columns.items():
        other = single.steps.columns[name]
        if name.startswith('observation/') or name == 'step_type':
            np.testing.assert_array_equal(column, other)
        else:  # what a LAST row holds besides its observation is nobody's business
            np.testing.assert_array_equal(column[valid], other[valid])


def run_batched(environment, actor, steps):
    timestep = environment.reset()
    actor.observe_first(timestep)
    state = actor.policy.initial_state(1)
    while steps:
        if timestep.step_type[0] == StepType.LAST:  # no draw of noise, as in the single loop
            action, extras = np.zeros((1, 1), np.float32), {}
        else:
            action, state, extras = actor.select(timestep.observation, state)
            steps -= 1
        timestep = environment.step(action)
        actor.observe(action, extras, timestep)
        actor.update()


def run_single(environment, actor, steps):
    single = SingleActor(actor)
    timestep = environment.reset()
    while True:
        observation = {name: value[0] for name, value in timestep.observation.items()}
        if timestep.step_type[0] == StepType.LAST:
            single.observe_last(observation)
            timestep = environment.step(np.zeros((1, 1), np.float32))
            continue
        if not steps:
            break
        steps -= 1
        action = single.policy(observation)
        timestep = environment.step(action[None])
        single.observe(observation, action, timestep.reward[0], timestep.discount[0])
        single.update()
    single.policy(observation)
