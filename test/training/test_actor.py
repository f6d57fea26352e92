import numpy as np
import pytest

from robot_rl.policies.d4pg import D4PGConfig, D4PGLearner
from robot_rl.sim.environment import StepType
from robot_rl.training.actor import Actor, SingleActor
from robot_rl.training.replay import Replay

OBSERVED = ('position', 'clock')


@pytest.fixture
def parts(line):
    environment = line(4, seed=0)
    config = D4PGConfig(policy_layers=(8,), critic_layers=(8,))
    learner = D4PGLearner(environment.contract, config)
    return environment, learner, Replay(environment.contract, 4, 1000)


def make(parts, learn=lambda: None, **config):
    environment, learner, replay = parts
    learner = D4PGLearner(environment.contract, learner.config.replace(**config))
    behaviour = learner.behaviour(environment.num_envs)
    return Actor(behaviour, replay, learn, np.random.default_rng(0))


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


def test_a_ladder_gives_each_environment_a_noise_of_its_own(parts):
    observation = parts[0].reset().observation
    actor = make(parts, noise_ladder=(0.05, 0.2))
    drawn = np.stack([actor.select(observation, {})[0][:, 0] for _ in range(2000)])
    np.testing.assert_allclose(drawn.std(axis=0), [0.05, 0.1, 0.15, 0.2], rtol=0.08)


def test_a_memory_is_stored_with_each_observation_and_begins_anew_with_each_episode(line):
    """The stored state is what the memory holds before it reads the row's observation."""
    environment = line(3, seed=1)
    config = D4PGConfig(policy_layers=(8,), critic_layers=(8,), memory=4, sigma=0.3)
    learner = D4PGLearner(environment.contract, config)
    behaviour = learner.behaviour(3)
    shapes = {name: value.shape[1:] for name, value in behaviour.initial_state(1).items()}
    assert set(shapes) == {'hidden', 'cell', 'critic_hidden', 'critic_cell'}
    replay = Replay(environment.contract, 3, 300, shapes)
    actor = Actor(behaviour, replay, lambda: None, np.random.default_rng(0))
    timestep = environment.reset()
    state = actor.observe_first(timestep)
    for _ in range(40):
        action, state, extras = actor.select(timestep.observation, state)
        timestep = environment.step(action)
        state = actor.observe(action, extras, timestep, state)
    columns, size = replay.steps.columns, replay.steps.size
    for lane in range(3):
        held = behaviour.initial_state(1)
        for row in range(size):
            if columns['step_type'][lane, row] == StepType.FIRST:
                held = behaviour.initial_state(1)
            for name, value in held.items():
                np.testing.assert_allclose(
                    columns[f'state/{name}'][lane, row], value[0], atol=1e-6
                )
            seen = {name: columns[f'observation/{name}'][lane, row][None] for name in OBSERVED}
            _, held = behaviour.select(seen, held, np.zeros((1, 1), np.float32))
    assert (columns['step_type'][:, 1:size] == StepType.FIRST).any(axis=1).all()
    assert np.abs(columns['state/hidden'][:, 1:size]).max() > 0.01


def test_one_environment_at_a_time_fills_the_replay_as_the_batch_does(line):
    """The lecture's loop (policy, observe, observe_last, update) against the batched one."""
    rows = []
    for single in (False, True):
        environment = line(1, seed=2)
        config = D4PGConfig(policy_layers=(8,), critic_layers=(8,), sigma=0.3)
        learner = D4PGLearner(environment.contract, config)
        replay, calls = Replay(environment.contract, 1, 1000), []
        behaviour = learner.behaviour(1)
        actor = Actor(behaviour, replay, lambda c=calls: c.append(1), np.random.default_rng(0))
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
    state = actor.observe_first(timestep)
    while steps:
        if timestep.step_type[0] == StepType.LAST:  # no draw of noise, as in the single loop
            action, extras = np.zeros((1, 1), np.float32), {}
        else:
            action, state, extras = actor.select(timestep.observation, state)
            steps -= 1
        timestep = environment.step(action)
        state = actor.observe(action, extras, timestep, state)
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
