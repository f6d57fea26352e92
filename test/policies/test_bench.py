import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from robot_rl.bench import learner
from robot_rl.policies.d4pg import D4PGConfig


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


def test_the_floor_holds_just_the_products_of_an_update():
    config = D4PGConfig(batch_size=32, policy_layers=(64, 48), critic_layers=(40, 56))
    d4pg, batch = learner._learner(config), learner._sampler(config).transitions(32)
    with Products() as made:
        d4pg.update(batch)
    floor = [(*left.shape, right.shape[1]) for left, right, _ in learner._products(config)]
    assert sorted(floor) == sorted(made.shapes)


def test_rows_say_value_reference_and_ratio():
    updates, sampling = learner.run(seconds=0.2)
    assert updates.keys() == {'bench', 'metric', 'value', 'unit', 'reference', 'ratio'}
    assert updates['ratio'] == pytest.approx(updates['value'] / updates['reference'], rel=1e-3)
    assert (updates['unit'], sampling['unit']) == ('1/s', 'ms')
