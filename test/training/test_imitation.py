"""Runs that learn from demonstrations: cloning, demonstrations in the replay, GAIL and TRAIL."""

import copy
import shutil

import numpy as np
import pytest
import torch

from robot_rl.control.runtime import OnnxPolicy
from robot_rl.errors import RobotRLError, SpecError, StorageError
from robot_rl.imitation.data import write_demonstrations
from robot_rl.imitation.early_stopping import StoppingEnvironment
from robot_rl.imitation.gail import Judged
from robot_rl.imitation.simulated import record_episodes
from robot_rl.storage.episode import EpisodeHeader, EpisodeWriter
from robot_rl.storage.store import Store
from robot_rl.training.checkpoint import load_checkpoint, save_checkpoint
from robot_rl.training.evaluation import evaluate, held_out_seeds
from robot_rl.training.logs import read_metrics
from robot_rl.training.loop import Trainer, export_checkpoint
from robot_rl.training.state import TrainingState, make_state


class Expert:
    """Goes to 0 as fast as it can."""

    def initial_state(self, batch):
        return {}

    def select(self, observation, state):
        return np.clip(0.5 - observation['position'] / 0.4, -0.5, 1.5), state


@pytest.fixture
def store(line, tmp_path):
    """Six episodes of the expert, from different starts."""
    path = tmp_path / 'store'
    about = {'task': 'suite/line', 'tags': ['expert']}
    record_episodes(Store(path), line(1), Expert(), range(0, 12, 2), about)
    return path


pytestmark = pytest.mark.usefixtures('no_board')
CLONING = {'batch_size': 16, 'policy_layers': [16, 16], 'learning_rate': 3e-3}
JUDGING = {
    'reward': '-log(1-D)',
    'horizon': 'absorbing',
    'discriminator_layers': [16],
    'discriminator_batch_size': 16,
    'v_min': None,
    'v_max': None,
}


@pytest.fixture
def build(run_config, store):
    """Return `build(agent, learner, demos, **options)`: a run from the expert's episodes."""

    def config(agent, learner=(), demos=(), **options):
        demos = {'query': 'tag=expert', 'store': str(store)} | dict(demos)
        if agent == 'bc':
            options.setdefault('training', {})
            options['training'] = {
                'evaluate_every': 100,
                'evaluation_episodes': 3,
                'checkpoint_every': 150,
            } | options['training']
            config = {'task': 'suite/line', 'steps': 300, 'agent': 'bc', 'demos': demos}
            learner = {'learner': CLONING | dict(learner)}
            return run_config().parse(config | options | learner)
        judging = JUDGING if agent in ('gail', 'gail_dmpo', 'trail') else {}
        return run_config(agent=agent, learner=judging | dict(learner), demos=demos, **options)

    return config


def learned(folder):
    """The rows of metrics without those of the clock and of the machine."""
    clock = {'wall_s', 'updates_per_s', 'env_steps_per_s', 'load_average'}
    return [
        {k: v for k, v in row.items() if k not in clock}
        for row in read_metrics(folder / 'metrics.jsonl')
    ]


@pytest.mark.parametrize('head', ['deterministic', 'gaussian', 'mixture'])
def test_cloning_counts_updates_and_acts_to_be_evaluated_only(lines, build, tmp_path, head):
    trainer = Trainer(build('bc', {'head': head}, steps=400), tmp_path / 'run')
    assert trainer.run()
    rows = learned(tmp_path / 'run')
    assert [row['learner_steps'] for row in rows] == [100, 200, 300, 400]
    assert [row['env_steps'] for row in rows] == [0, 0, 0, 0]
    expert = evaluate(Expert(), lines[0].__class__(1), held_out_seeds(3)).returns.mean()
    assert rows[-1]['eval_return_mean'] > 0.9 * expert
    policy = OnnxPolicy(tmp_path / 'run' / 'policy.onnx')
    assert policy.card.id == 'suite-line-bc-seed0-step400'
    assert policy.card.training['learner_steps'] == 400
    observation = lines[0].reset([5, 6, 7]).observation
    np.testing.assert_allclose(
        policy.select(observation, policy.initial_state(3))[0],
        trainer.state.learner.policy.select(observation)[0],
        atol=2e-5,
    )


def test_cloning_with_a_memory_leaves_as_a_file_with_its_state(lines, build, tmp_path):
    learner = {'memory': 6, 'sequence_length': 5, 'burn_in': 3}
    trainer = Trainer(build('bc', learner, steps=100), tmp_path / 'run')
    assert trainer.run()
    policy = OnnxPolicy(tmp_path / 'run' / 'policy.onnx')
    assert {field.name for field in policy.card.recurrent_state} == {'hidden', 'cell'}
    seeds = held_out_seeds(4)
    module, file = (
        evaluate(p, lines[0].__class__(2), seeds).returns
        for p in (trainer.state.learner.policy, policy)
    )
    np.testing.assert_allclose(file, module, rtol=1e-4)


def test_what_is_kept_did_best_in_the_evaluations(lines, build, tmp_path):
    """Not the last, nor that of the smallest loss; after a stop and from a checkpoint as well."""
    wild = {'learning_rate': 0.1, 'policy_layers': [4]}
    kept = build('bc', wild, steps=1000, training={'keep': 'best', 'evaluate_every': 50})
    for config, folder in ((kept, 'best'), (kept.replace(steps=500), 'in_two')):
        Trainer(config, tmp_path / folder).run()
    Trainer(kept, tmp_path / 'in_two').run()
    rows = learned(tmp_path / 'best')
    assert learned(tmp_path / 'in_two') == rows
    returns = [row['eval_return_mean'] for row in rows]
    best = int(np.argmax(returns))
    assert returns[best] > returns[-1]
    assert best != int(np.argmin([row['policy_loss'] for row in rows]))
    export_checkpoint(tmp_path / 'best', tmp_path / 'again.onnx')
    for path in ('best/policy.onnx', 'in_two/policy.onnx', 'again.onnx'):
        policy = OnnxPolicy(tmp_path / path)
        assert policy.card.training['learner_steps'] == rows[best]['learner_steps']
        assert policy.card.training['last_evaluation']['eval_return_mean'] == returns[best]
        found = evaluate(policy, lines[0].__class__(3), held_out_seeds(3)).returns.mean()
        assert found == pytest.approx(returns[best], rel=1e-4)


@pytest.mark.parametrize('agent', ['bc', 'd4pg', 'gail', 'trail'])
def test_a_run_that_goes_on_needs_the_store_no_more(lines, build, store, tmp_path, agent):
    config = build(agent, steps=150)
    Trainer(config, tmp_path / 'run').run()
    shutil.rmtree(store)
    assert Trainer(config.replace(steps=250), tmp_path / 'run').run()
    with pytest.raises(StorageError, match='no folder of episodes here'):
        Trainer(config, tmp_path / 'other')


@pytest.mark.parametrize('mixing', ['quota', 'bernoulli'])
def test_a_share_of_each_batch_is_demonstrations_and_is_told(lines, build, tmp_path, mixing):
    config = build('d4pg', demos={'ratio': 0.25, 'mixing': mixing})
    trainer = Trainer(config, tmp_path / 'run')
    assert trainer.run()
    fractions = [row['fraction_demos'] for row in learned(tmp_path / 'run')]
    if mixing == 'quota':
        assert fractions == [0.25] * 3
    else:
        assert fractions[-1] == pytest.approx(0.25, abs=0.1)
        assert len(set(fractions)) > 1
    rows = trainer.state.replay.steps.length
    counts = {int((trainer.state._draw().place >= rows).sum()) for _ in range(20)}
    assert (counts == {4}) == (mixing == 'quota')


def test_each_update_of_a_call_gets_its_share(live, line, build, tmp_path):
    config = build('d4pg', {'updates_per_call': 2, 'batch_size': 8}, {'ratio': 0.5})
    state = state_of(config, line, tmp_path)
    live(state, line(1), 60)
    rows = state.replay.steps.length
    place = state._draw().place
    assert ((place >= rows).reshape(2, 8).sum(axis=1) == 4).all()


def test_without_demonstrations_nothing_is_different(lines, run_config, build, tmp_path):
    """A share of nothing, and a config from before there was such a section."""
    plain = run_config()
    assert 'demos' not in {key.split('.')[0] for key in plain.differences(run_config())}
    Trainer(plain, tmp_path / 'a').run()
    Trainer(build('d4pg', demos={'ratio': 0.0}), tmp_path / 'b').run()
    assert learned(tmp_path / 'a') == learned(tmp_path / 'b')


def state_of(config, line, folder, name='demos', seed=None):
    """The state of a run, with the demonstrations that its config asks for."""
    contract, store = line(1).contract, Store(config.demos.store)
    path = folder / f'{name}-{len(list(folder.iterdir()))}'
    steps = write_demonstrations(path, store, config.demos.query, None, contract)
    config = config.with_support((0.0, 1.0))
    return make_state(config if seed is None else config.replace(seed=seed), contract, steps)


def flat(data):
    if isinstance(data, dict):
        return [leaf for value in data.values() for leaf in flat(value)]
    return [data] if isinstance(data, torch.Tensor | np.ndarray) else []


RECURRENT = {'memory': 4, 'sequence_length': 5, 'burn_in': 3}


@pytest.mark.parametrize(
    ('agent', 'learner', 'mixing'),
    [
        ('d4pg', {'priority_exponent': 0.6}, 'quota'),
        ('d4pg', {'priority_exponent': 0.6}, 'bernoulli'),
        ('d4pg', RECURRENT | {'priority_exponent': 0.6}, 'bernoulli'),
        ('gail', {'dropout': 0.3}, 'quota'),
        ('gail', RECURRENT, 'bernoulli'),
        ('gail_dmpo', {'updates_per_call': 2}, 'bernoulli'),
        ('trail', {'augmentation': 0.1}, 'quota'),
    ],
)
def test_a_checkpoint_makes_the_next_updates_bitwise_the_same(
    live, line, build, tmp_path, agent, learner, mixing
):
    config = build(
        agent,
        {'replay_size': 150, 'batch_size': 7} | learner,
        {'ratio': 0.3, 'mixing': mixing},
        training={'num_envs': 3},
    )
    environment = line(3, seed=1)
    state = state_of(config, line, tmp_path)
    live(state, environment, 130)
    save_checkpoint(tmp_path / 'c.pt', {'state': state.save()})
    torch.manual_seed(123)
    other = state_of(config, line, tmp_path, seed=9)
    other.restore(load_checkpoint(tmp_path / 'c.pt')['state'])
    assert other.learner.steps == state.learner.steps > 0
    twin = copy.deepcopy(environment)
    for one, world in ((state, environment), (other, twin)):
        live(one, world, 40)
    assert all(torch.equal(state.metrics[name], other.metrics[name]) for name in state.metrics)
    assert state.fractions() == other.fractions()
    first, second = (flat(one.save()) for one in (state, other))
    assert len(first) == len(second) > 20
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_cloning_goes_on_bitwise(line, build, tmp_path):
    config = build('bc', {'head': 'mixture', 'memory': 4})
    one, other = (state_of(config, line, tmp_path, seed=seed) for seed in (0, 5))
    for _ in range(5):
        one.learn()
    other.restore(copy.deepcopy(one.save()))
    for _ in range(5):
        one.learn(), other.learn()
    assert torch.equal(one.metrics['policy_loss'], other.metrics['policy_loss'])


@pytest.mark.parametrize(
    ('agent', 'weight'), [('gail', 0.0), ('gail_dmpo', 0.0), ('trail', 0.0), ('trail', 2.0)]
)
def test_every_drawn_step_is_paid_by_the_present_discriminator(
    line, build, tmp_path, agent, weight
):
    """Steps of the replay and of the demonstrations, at each draw anew; by the task if wanted."""
    learner = {'n_step': 1, 'horizon': 'fixed', 'task_reward': weight}
    config = build(agent, learner, {'ratio': 0.5})
    state = state_of(config, line, tmp_path)
    quiet = line(1)
    timestep = quiet.reset()
    state.actor.observe_first(timestep)
    for _ in range(80):
        timestep = quiet.step(np.full((1, 1), 0.5, np.float32))
        state.actor.observe(np.full((1, 1), 0.5, np.float32), {}, timestep, {})
        state.learn()
    assert state.learner.steps > 3
    rewards = []
    for _ in range(2):
        batch = state._draw()
        one = np.ones(len(batch.action), np.float32)
        judged = Judged(batch.observation, batch.action, batch.next_observation, one)
        by_task = np.exp(-np.abs(batch.next_observation['position'][:, 0]))
        paid = state.learner.reward(judged).numpy() + weight * by_task
        np.testing.assert_allclose(batch.reward, paid, rtol=1e-5)
        rewards.append(state.learner.reward(judged).mean())
        for _ in range(20):
            state._judge()
    assert rewards[0] != rewards[1]
    # 3 a step of the discriminator, 1 of the task, at discount 0.99.
    assert state.settings.v_max == pytest.approx(300 + 100 * weight, rel=1e-6)


def test_accuracies_are_logged_apart(lines, build, tmp_path):
    Trainer(build('trail', {'patience': 2}), tmp_path / 'run').run()
    rows = learned(tmp_path / 'run')
    row = rows[-1]
    for name in ('expert', 'agent', 'expert_early', 'agent_early'):
        assert 0 <= row[f'accuracy_{name}'] <= 1
    # Episodes of at least 3 steps and 300 steps in all; none is counted twice.
    assert 0 < sum(row['stopped_early'] for row in rows) <= 100
    assert row['constraint_active'] in (0, 1)


def test_only_trail_ends_episodes_early(lines, build, tmp_path):
    for agent, options, early in (
        ('trail', {}, True),
        ('trail', {'patience': 0}, False),
        ('gail', {}, False),
    ):
        trainer = Trainer(build(agent, options), tmp_path / f'{agent}{len(options)}')
        assert isinstance(trainer._environment, StoppingEnvironment) == early


def test_a_fixed_horizon_that_is_none_ends_the_run_with_what_is_right(lines, build, tmp_path):
    config = build('gail', {'horizon': 'fixed', 'sigma': 1.0}, steps=2000)
    with pytest.raises(RobotRLError, match=r"the task's episodes terminate.*=absorbing is right"):
        Trainer(config, tmp_path / 'run').run()


def test_a_saturated_discriminator_is_told_once(lines, build, tmp_path, capfd, monkeypatch):
    trainer = Trainer(build('gail'), tmp_path / 'run')
    row = {'d_expert': 0.999, 'd_agent': 0.001}
    remarks = trainer.state.learner.remarks
    monkeypatch.setattr(trainer.state.learner, 'remarks', lambda metrics: remarks(row))
    trainer.run()
    told = [line for line in capfd.readouterr().err.splitlines() if 'saturated' in line]
    assert len(told) == 1
    assert told[0].startswith('robot-rl: the discriminator is saturated')
    assert 'learner.gradient_penalty' in told[0]


@pytest.mark.parametrize('agent', ['bc', 'gail', 'trail'])
def test_who_needs_demonstrations_says_so(lines, build, tmp_path, agent):
    with pytest.raises(SpecError, match=f'demos: agent {agent} learns from .*--demos QUERY says'):
        Trainer(build(agent, demos={'query': None}), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_what_cannot_be_used_is_told_and_a_query_without_episodes_is_one_line(
    lines, build, store, tmp_path
):
    told = []
    with EpisodeWriter(store, EpisodeHeader()) as writer:
        writer.commit()
    Trainer(build('bc', demos={'query': ''}), tmp_path / 'all', told.append)
    (line,) = told
    assert line.endswith('nothing was recorded; there are no steps')
    with pytest.raises(StorageError, match="no usable demonstration for the query 'tag=none'"):
        Trainer(build('bc', demos={'query': 'tag=none'}), tmp_path / 'none')
    assert not list((tmp_path / 'none').iterdir())


@pytest.mark.parametrize(
    ('agent', 'head', 'learner'),
    [
        ('d4pg', 'deterministic', {}),
        ('gail', 'deterministic', {}),
        ('mpo', 'gaussian', {}),
        ('d4pg', 'deterministic', RECURRENT),
    ],
)
def test_a_run_begins_as_the_cloned_policy(lines, build, tmp_path, agent, head, learner):
    """With the statistics that it was cloned with; by its folder, or by its checkpoint."""
    memory = {'memory': 4} if learner else {}
    Trainer(build('bc', {'head': head} | memory), tmp_path / 'bc').run()
    clone = OnnxPolicy(tmp_path / 'bc' / 'policy.onnx')
    for init in (tmp_path / 'bc', tmp_path / 'bc' / 'checkpoint.pt'):
        run = tmp_path / f'run-{init.name}'
        config = build(
            agent, {'normalize_observations': True} | learner, init=str(init), steps=100
        )
        trainer = Trainer(config, run)
        policy, seeds = trainer.state.learner.policy, held_out_seeds(4)
        found, right = (evaluate(p, lines[0].__class__(2), seeds).returns for p in (policy, clone))
        np.testing.assert_allclose(found, right, rtol=1e-4)
        online = trainer.state.learner._online['policy'].state_dict()
        for name, value in trainer.state.learner._target['policy'].state_dict().items():
            assert torch.equal(value, online[name])
        mean = policy.vector.normalizer.mean.clone()
        trainer.run()
        assert trainer.state.learner.steps > 0
        assert torch.equal(policy.vector.normalizer.mean, mean)
    shutil.rmtree(tmp_path / 'bc')
    assert Trainer(config, run).finished  # it goes on from its own checkpoint
    with pytest.raises(StorageError, match='bc'):
        Trainer(config, tmp_path / 'another')


def test_an_aborted_run_leaves_no_demonstrations_to_another(lines, build, store, tmp_path):
    """Those of a run that never came to a checkpoint were taken for those of the next one."""
    Trainer(build('bc', demos={'episodes': 2}), tmp_path / 'run')
    trainer = Trainer(build('bc'), tmp_path / 'run')
    assert len(trainer.state.sampler.steps.spans) == 6


@pytest.mark.parametrize(
    ('learner', 'named'),
    [
        ({'policy_layers': [8, 8], 'normalize_observations': True}, 'network'),
        ({'normalize_observations': False}, 'vector.normalizer.mean'),
        ({'normalize_observations': True} | RECURRENT, 'memory'),
    ],
)
def test_another_network_cannot_begin_as_the_cloned_policy(lines, build, tmp_path, learner, named):
    Trainer(build('bc'), tmp_path / 'bc').run()
    with pytest.raises(SpecError, match=f'init: .*{named}.* must be the same') as refused:
        Trainer(build('d4pg', learner, init=str(tmp_path / 'bc')), tmp_path / 'run')
    assert '\n' not in str(refused.value)
    with pytest.raises(StorageError, match=r'nothing/checkpoint.pt|nothing: '):
        Trainer(build('d4pg', init=str(tmp_path / 'nothing')), tmp_path / 'run')
    with pytest.raises(StorageError, match=r'policy\.onnx: a policy file acts .* checkpoint.pt'):
        Trainer(build('d4pg', init=str(tmp_path / 'bc' / 'policy.onnx')), tmp_path / 'run')


@pytest.mark.slow
@pytest.mark.parametrize('agent', ['gail', 'trail'])
def test_what_the_discriminator_pays_is_worth_learning(lines, build, tmp_path, agent):
    """From six episodes and no reward of the task: nearly the expert's return.

    The expert is there after a step or two: only its very first one has nothing of the task.
    """
    short = {'constraint_frames': 1, 'patience': 0} if agent == 'trail' else {}
    learner = short | {
        'policy_learning_rate': 1e-3,
        'critic_learning_rate': 1e-3,
        'discriminator_learning_rate': 1e-3,
        'batch_size': 64,
        'discriminator_batch_size': 64,
        'samples_per_insert': 32,
        'discount': 0.9,
        'n_step': 1,
        'target_update_period': 20,
        'replay_size': 5000,
        'gradient_penalty': 1.0,
    }
    training = {'evaluate_every': 1000, 'checkpoint_every': 6000, 'keep': 'best'}
    Trainer(build(agent, learner, steps=6000, training=training), tmp_path / 'run').run()
    expert = evaluate(Expert(), lines[0].__class__(1), held_out_seeds(3)).returns.mean()
    returns = [row['eval_return_mean'] for row in learned(tmp_path / 'run')]
    assert returns[-1] > 0.9 * expert > 0.9 * returns[0]


def test_the_state_of_an_agent_that_acts_is_as_it_was(run_config, line):
    assert isinstance(make_state(run_config(), line(1).contract), TrainingState)
