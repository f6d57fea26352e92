"""The products of learning: float32 by either library, and nothing else changed."""

import numpy as np
import pytest
import torch

from robot_rl.policies import products
from robot_rl.policies.products import fast_products

CPU = torch.device('cpu')


@pytest.fixture
def helps(monkeypatch):
    def patch(value):
        monkeypatch.setattr(products, '_helps', lambda: value)

    return patch


@pytest.mark.parametrize('shape', [(1, 1, 1), (3, 30, 5), (256, 512, 512), (5, 1000, 7)])
def test_products_and_their_gradients_are_those_of_float64(shape):
    rows, inner, columns = shape
    rng = np.random.default_rng(0)
    left, right, slope = (
        rng.standard_normal(size) for size in ((rows, inner), (inner, columns), (rows, columns))
    )
    tensors = [torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in (left, right)]
    with fast_products(CPU)():
        product = tensors[0] @ tensors[1]
        product.backward(torch.tensor(slope, dtype=torch.float32))
    for found, expected, terms in (
        (product.detach(), left @ right, inner),
        (tensors[0].grad, slope @ right.T, columns),
        (tensors[1].grad, left.T @ slope, rows),
    ):
        np.testing.assert_allclose(found.numpy(), expected, atol=4e-6 * np.sqrt(terms), rtol=1e-5)


def test_the_precision_of_others_is_given_back_also_after_an_error(helps):
    helps(True)
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError), fast_products(CPU)():
        assert torch.get_float32_matmul_precision() == 'medium'
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(('useful', 'device'), [(False, 'cpu'), (True, 'cuda')])
def test_nothing_changes_where_it_does_not_help_and_on_a_gpu(helps, useful, device):
    helps(useful)
    before = torch.get_float32_matmul_precision()
    with fast_products(torch.device(device))():
        assert torch.get_float32_matmul_precision() == before


def test_a_library_that_rounds_is_left_alone(monkeypatch):
    """Where a CPU multiplies bfloat16 by itself, 'medium' means products of that."""
    monkeypatch.setattr(products, '_made_by_amd', lambda: True)
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX512')
    product = torch.Tensor.__matmul__

    def rounded(left, right):
        if torch.get_float32_matmul_precision() == 'medium' and left.dtype == torch.float32:
            return product(left.bfloat16(), right.bfloat16()).float()
        return product(left, right)

    monkeypatch.setattr(torch.Tensor, '__matmul__', rounded)
    assert not products._helps.__wrapped__()
