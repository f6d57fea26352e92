import math

import numpy as np
import pytest
import torch

from robot_rl.policies.networks import (
    CategoricalCritic,
    DeterministicPolicy,
    GaussianPolicy,
    LayerNormMLP,
    ScalarCritic,
    Tanh,
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


def test_the_gaussians_deviation_begins_where_it_is_asked_and_stays_above_the_smallest():
    """softplus(x) * initial_std / log 2 + min_std, as Acme's MultivariateNormalDiagHead."""
    policy = GaussianPolicy(3, 2, (32, 32), generator(), initial_std=0.7, min_std=0.01)
    x = torch.randn(50, 3, generator=generator())
    with torch.no_grad():
        mean, std = policy.gaussian(x)
        assert (std - 0.71).abs().max() < 0.03
        assert mean.abs().max() < 0.05
        policy.std.weight.mul_(1e5)
        mean, std = policy.gaussian(x)
        logits = policy.std(policy.torso(x)).double().numpy()
        expected = np.logaddexp(0, logits) * 0.7 / np.log(2) + 0.01
        np.testing.assert_allclose(std, expected, rtol=1e-4)
        assert std.min() == pytest.approx(0.01, rel=1e-3)
        assert torch.equal(policy(x), mean)


@pytest.mark.parametrize('squash', [False, True])
def test_the_gaussians_mean_goes_out_of_bounds_but_where_it_is_squashed(squash):
    policy = GaussianPolicy(3, 2, (32, 32), generator(), squash=squash)
    with torch.no_grad():
        policy.mean.weight.mul_(1e6)
        largest = policy(torch.randn(50, 3, generator=generator())).abs().max()
    assert largest <= 1 if squash else largest > 10


def test_tanh_by_the_sigmoid_is_tanh():
    x = torch.linspace(-30, 30, 2001)
    np.testing.assert_allclose(Tanh()(x), np.tanh(x.double().numpy()), atol=3e-7)


def test_critics_read_the_action():
    x, a = torch.randn(4, 3), torch.randn(4, 2)
    for critic, size in (
        (CategoricalCritic(3, 2, (8,), generator(), torch.linspace(-1, 1, 5)), 5),
        (ScalarCritic(3, 2, (8,), generator()), 1),
    ):
        assert critic(x, a).shape == (4, size)
        assert critic.value(critic.belief(critic(x, a))).shape == (4,)
        assert not torch.equal(critic(x, a), critic(x, -a))


def test_the_generator_alone_decides_the_weights():
    first, second = (DeterministicPolicy(3, 2, (8, 8), generator()) for _ in range(2))
    torch.manual_seed(5)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
