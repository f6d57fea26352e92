"""Discriminators: losses, penalties and rewards against the formulas, written out once more."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from robot_rl.imitation import discriminator as d

FORMS = ['-log(1-D)', 'log D', 'airl']


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(seed=0, **options):
    network = d.Discriminator(3, (5, 4), generator(seed), generator(seed + 1), **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator(seed + 2))
    return network.double()


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=8))
def test_losses_are_those_of_the_two_classes(logits):
    logits = torch.tensor(logits, dtype=torch.float64)
    for loss, label in ((d.expert_loss, 1.0), (d.agent_loss, 0.0)):
        expected = functional.binary_cross_entropy_with_logits(
            logits, torch.full_like(logits, label), reduction='none'
        )
        torch.testing.assert_close(loss(logits), expected, atol=1e-7, rtol=1e-6)
    expected = torch.distributions.Bernoulli(logits=logits).entropy()
    torch.testing.assert_close(d.entropy(logits), expected, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize('form', FORMS)
@given(logit=st.floats(-20, 20), limit=st.floats(0.1, 50))
@settings(max_examples=50)
def test_rewards_are_their_formulas_within_the_bounds(form, logit, limit):
    probability = 1 / (1 + np.exp(-logit))
    right = {
        '-log(1-D)': -np.log1p(-probability),
        'log D': np.log(probability),
        'airl': np.log(probability) - np.log1p(-probability),
    }[form]
    found = d.reward_of(torch.tensor([logit], dtype=torch.float64), form, limit).item()
    assert found == pytest.approx(np.clip(right, -limit, limit), rel=1e-6, abs=1e-7)
    low, high = d.reward_bounds(form, limit)
    assert low <= found <= high
    ends = d.reward_of(torch.tensor([-1e6, 1e6]), form, limit)
    np.testing.assert_allclose(ends, [low, high], rtol=1e-6)


def slopes(network, x, h=1e-6):
    """|dl/dx| of each row by central differences."""
    norms = []
    for row in x:
        gradient = []
        for i in range(len(row)):
            step = torch.zeros_like(row)
            step[i] = h
            with torch.no_grad():
                gradient.append(
                    (network((row + step)[None]) - network((row - step)[None])) / 2 / h
                )
        norms.append(torch.stack(gradient).norm())
    return torch.stack(norms)


@pytest.mark.parametrize('spectral', [False, True])
@pytest.mark.parametrize('target', [0.0, 1.0])
def test_the_gradient_penalty_is_that_of_finite_differences(spectral, target):
    network = small(spectral_norm=spectral).eval()
    expert, agent = (
        torch.randn(6, 3, generator=generator(s), dtype=torch.float64) for s in (4, 5)
    )
    share = torch.rand(6, 1, generator=generator(6), dtype=torch.float64)

    def by_differences():
        return (slopes(network, share * expert + (1 - share) * agent) - target).square().mean()

    found = d.gradient_penalty(network, expert, agent, share, target)
    torch.testing.assert_close(found, by_differences(), rtol=1e-5, atol=1e-8)
    # And so is its own gradient, which goes through the first one.
    found.backward()
    weight = network[1].weight
    for place in ((0, 0), (2, 1), (4, 2)):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[place] += sign * 1e-4
                ends.append(by_differences())
                weight[place] -= sign * 1e-4
        expected = (ends[0] - ends[1]) / 2e-4
        assert weight.grad[place].item() == pytest.approx(expected.item(), rel=1e-2, abs=1e-5)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_a_normalised_layer_stretches_nothing_and_one_direction_not_at_all(inputs, outputs, seed):
    layer = d.SpectralLinear(inputs, outputs, generator(seed))
    with torch.no_grad():
        for _ in range(200):
            layer(torch.zeros(1, inputs))
        effective = (layer(torch.eye(inputs)) - layer(torch.zeros(1, inputs))).numpy().T
    largest = np.linalg.svd(effective, compute_uv=False)[0]
    assert largest == pytest.approx(1.0, abs=1e-2)


def test_the_gradient_of_a_normalised_layer_is_that_of_the_paper():
    """(G - <G, W/s> u v^T) / s with singular vectors u, v (Miyato et al. 2018, equation 12)."""
    layer = d.SpectralLinear(4, 3, generator()).double()
    with torch.no_grad():
        for _ in range(500):
            layer(torch.zeros(1, 4, dtype=torch.float64))
    layer.eval()
    x, seen = (torch.randn(5, n, generator=generator(1), dtype=torch.float64) for n in (4, 3))
    (layer(x) * seen).sum().backward()
    left, values, right = np.linalg.svd(layer.weight.detach().numpy())
    plain = seen.numpy().T @ x.numpy()  # of the loss with respect to the weights as applied
    normalised = layer.weight.detach().numpy() / values[0]
    outer = np.outer(left[:, 0], right[0])
    expected = (plain - (plain * normalised).sum() * outer) / values[0]
    np.testing.assert_allclose(layer.weight.grad, expected, rtol=1e-5, atol=1e-8)


def test_only_training_follows_the_weights():
    layer = d.SpectralLinear(4, 3, generator())
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([[5.0], [1.0], [0.1]]))
    before = layer.left.clone()
    layer.eval()(torch.zeros(1, 4))
    assert torch.equal(layer.left, before)
    layer.train()(torch.zeros(1, 4))
    assert not torch.equal(layer.left, before)


def test_dropout_keeps_the_mean_and_is_off_when_judging():
    drop = d.Dropout(0.3, generator())
    x = torch.full((200, 50), 2.0)
    dropped = drop(x)
    assert dropped.unique().tolist() == pytest.approx([0, 2 / 0.7])
    assert (dropped == 0).float().mean() == pytest.approx(0.3, abs=0.02)
    assert dropped.mean() == pytest.approx(2, abs=0.05)
    assert torch.equal(drop.eval()(x), x)
    one, other = (d.Dropout(0.5, generator(3))(x) for _ in range(2))
    assert torch.equal(one, other)
