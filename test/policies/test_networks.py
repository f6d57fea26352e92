import math

import numpy as np
import torch

from robot_rl.policies.networks import (
    CategoricalCritic,
    DeterministicPolicy,
    LayerNormMLP,
    linear,
    scaled_linear,
)


def generator():
    return torch.Generator().manual_seed(0)


def test_linear_weights_are_uniform_with_the_variance_of_the_fan_out():
    layer = linear(300, 200, generator())
    bound = math.sqrt(3 * 0.333 / 200)
    weights = layer.weight.detach()
    assert weights.abs().max() <= bound
    assert weights.abs().max() > 0.999 * bound
    np.testing.assert_allclose(weights.std().item(), bound / math.sqrt(3), rtol=0.01)
    assert not layer.bias.any()


def test_scaled_linear_weights_have_the_variance_of_the_fan_in_and_are_cut_at_two_deviations():
    weights = scaled_linear(400, 300, generator(), scale=1e-4).weight.detach()
    expected = math.sqrt(1e-4 / 400)
    np.testing.assert_allclose(weights.std().item(), expected, rtol=0.01)
    assert weights.abs().max() <= 2 * expected / 0.8796 * 1.001


def test_layer_norm_mlp_is_the_formula():
    torso = LayerNormMLP(4, (6, 5), generator())
    x = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    w1, w2 = (torso[i].weight.detach().numpy() for i in (0, 3))
    h = x @ w1.T
    h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
    h = np.tanh(h) @ w2.T
    expected = np.where(h > 0, h, np.exp(h) - 1)
    with torch.no_grad():
        np.testing.assert_allclose(torso(torch.from_numpy(x)), expected, atol=1e-6)


def test_policy_begins_near_the_middle_and_stays_inside():
    policy = DeterministicPolicy(3, 2, (32, 32), generator())
    with torch.no_grad():
        assert policy(torch.randn(50, 3)).abs().max() < 0.05
        policy[1].weight.mul_(1e6)
        assert policy(torch.randn(50, 3)).abs().max() <= 1


def test_critic_reads_the_action():
    critic = CategoricalCritic(3, 2, (8,), torch.linspace(-1, 1, 5), generator())
    x, a = torch.randn(4, 3), torch.randn(4, 2)
    assert critic(x, a).shape == (4, 5)
    assert not torch.equal(critic(x, a), critic(x, -a))


def test_the_generator_alone_decides_the_weights():
    first, second = (DeterministicPolicy(3, 2, (8, 8), generator()) for _ in range(2))
    torch.manual_seed(5)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
