"""The learner's benchmark: what its floor holds, and what its rows say."""

import importlib.util
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from robot_rl.bench import learner, learner_floor, learner_peers
from robot_rl.cli import main
from robot_rl.errors import RobotRLError
from robot_rl.policies import compiler

# All sizes differ, so that no product can be taken for another.
SMALL = {'batch_size': 7, 'policy_layers': (64, 48), 'critic_layers': (40, 56), 'num_atoms': 11}
SEQUENCES = {'memory': 12, 'sequence_length': 5, 'burn_in': 3, 'n_step': 2}
TINY = SMALL | {'sequence_length': 3, 'burn_in': 2}


class Products(TorchDispatchMode):
    """Notes the shapes of the matrix products that are really made."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            left, right = args[-2:]
            self.shapes.append((*left.shape, right.shape[1]))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def without_compiler(monkeypatch):
    """Leave torch.compile out: it takes longer than all else here."""
    monkeypatch.setattr(compiler, 'missing', lambda: 'no C++ compiler is found')


def made_in(agent, batch):
    """Return the shapes of the products in one update."""
    # Without oneDNN torch writes its LSTM out in products that can be seen.
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about GPUs of another kind
        with torch.backends.mkldnn.flags(enabled=False), Products() as made:
            agent.update(batch)
    return made.shapes


def floor_of(agent):
    products = learner_floor.products(agent.config, learner._OBSERVATION, learner._ACTION)
    assert all(out.shape == (left @ right).shape for left, right, out in products)
    return [(*left.shape, right.shape[1]) for left, right, _ in products]


@pytest.mark.parametrize('execution', ['fused', 'plain'])
@pytest.mark.parametrize('name', learner.AGENTS)
def test_the_floor_holds_just_the_products_of_an_update(name, execution):
    agent = learner._learner(name, execution, SMALL)
    batch = learner._sampler(agent).transitions(7)
    assert sorted(floor_of(agent)) == sorted(made_in(agent, batch))


@pytest.mark.parametrize('name', learner.AGENTS)
def test_the_floor_holds_just_the_products_of_an_update_from_sequences(name):
    agent = learner._learner(name, 'fused', SMALL | SEQUENCES)
    made = made_in(agent, learner._sampler(agent).sequences(7, 5, 3))
    # torch adds the gradient of the hidden state's weights [4 * 12, 12] up step by step; one
    # product will do, for policy and critic each.
    step_by_step, at_once = (48, 7, 12), (48, 7 * (5 + 2), 12)
    assert made.count(step_by_step) == 2 * (5 + 2)
    made = [shape for shape in made if shape != step_by_step] + [at_once] * 2
    assert sorted(floor_of(agent)) == sorted(made)


def test_rows_are_complete_for_every_agent(without_compiler, monkeypatch):
    monkeypatch.setattr(learner, '_SLICE_S', 0.001)
    rows = {row['metric']: row for row in learner.run(seconds=0.02, settings=TINY)}
    parts = [
        *('updates', 'floor', 'fused_updates', 'plain_updates', 'speedup', 'sampling'),
        *('prioritised_sampling', 'lstm_updates', 'lstm_sampling'),
    ]
    assert list(rows) == [f'{name}_{part}' for name in learner.AGENTS for part in parts]
    for metric, row in rows.items():
        assert {'bench', 'metric', 'value', 'unit', 'reference', 'ratio', 'device'} <= row.keys()
        assert row['ratio'] == pytest.approx(row['value'] / row['reference'], rel=1e-3)
        unit = {'sampling': 'ms', 'speedup': 'x', 'updates': '1/s', 'floor': '1/s'}[
            metric.split('_')[-1]
        ]
        assert row['unit'] == unit
    for name in learner.AGENTS:
        updates, plain = rows[f'{name}_updates'], rows[f'{name}_plain_updates']
        assert (updates['execution'], plain['execution']) == ('fused', 'plain')
        # What the floor allows over plain, and what is reached of it.
        speedup = rows[f'{name}_speedup']
        assert speedup['value'] == pytest.approx(1 / plain['ratio'], rel=1e-3)
        assert speedup['ratio'] == pytest.approx(updates['ratio'], rel=1e-3)


def test_agents_are_chosen(without_compiler, monkeypatch):
    monkeypatch.setattr(learner, '_SLICE_S', 0.001)
    rows = list(learner.run(seconds=0.02, agents=['mpo'], settings=TINY))
    assert len(rows) == 9 and all(row['metric'].startswith('mpo_') for row in rows)


def test_slices_are_as_long_for_quick_sides_as_for_slow_ones(monkeypatch):
    clock, called = [0.0], {'quick': 0, 'slow': 0}
    for name in ('perf_counter', 'process_time'):
        monkeypatch.setattr(learner.time, name, lambda: clock[0])

    def side(name, seconds):
        called[name] += 1
        clock[0] += seconds

    sides = {'quick': lambda: side('quick', 0.01), 'slow': lambda: side('slow', 0.2)}
    took = learner._interleaved(sides, 3.0, 'cpu')
    assert took == pytest.approx({'quick': 0.01, 'slow': 0.2})
    # Four first calls, and in each of six turns one that is not timed and a slice: 10 and 1.
    assert called == {'quick': 4 + 6 * 11, 'slow': 4 + 6 * 2}


def test_peers_without_their_package_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert main.main(['bench', 'learner', '--peers']) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.count('\n') == 1
    assert 'pip install stable-baselines3' in err


def test_rows_of_peers_have_our_rate_beside_them(without_compiler, monkeypatch):
    monkeypatch.setattr(learner, '_SLICE_S', 0.001)
    monkeypatch.setattr(learner_peers, 'require', lambda: None)
    monkeypatch.setattr(learner_peers, 'sides', lambda *sizes: {'peer_sac': lambda: None})
    (row,) = learner.run(seconds=0.02, agents=[], peers=True, settings=TINY)
    assert (row['metric'], row['unit']) == ('peer_sac_updates', '1/s')
    assert row['ratio'] == pytest.approx(row['value'] / row['reference'], rel=1e-3)


def test_peers_take_gradient_steps_with_our_batch_and_widths():
    pytest.importorskip('stable_baselines3')
    config = learner._learner('d4pg', 'fused', SMALL).config
    for side in learner_peers.sides(config, 24, 6, 'cpu').values():
        model = side.func.__self__
        assert [w.shape[0] for w in model.critic.qf0.parameters() if w.ndim == 2] == [40, 56, 1]
        side()
        assert (model._n_updates, side.args[1]) == (learner_peers.STEPS, 7)


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU is there')
def test_a_gpu_that_is_not_there_is_one_line():
    with pytest.raises(RobotRLError, match='--device cuda: torch finds no GPU here'):
        next(learner.run(seconds=1, device='cuda'))


@pytest.mark.parametrize('words', [['--peers'], ['--device', 'cuda'], ['--agents', 'mpo']])
def test_options_of_the_learner_are_refused_elsewhere(words, capsys):
    assert main.main(['bench', 'sim', *words]) == 2
    assert f'bench sim: {words[0]} is an option of bench learner only' in capsys.readouterr().err
