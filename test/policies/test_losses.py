import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from robot_rl.policies import losses
from robot_rl.policies.losses import categorical_projection, categorical_target, dpg_loss
from robot_rl.policies.mpo import Duals, MPOConfig
from robot_rl.policies.networks import CategoricalCritic, ScalarCritic


def project_by_hand(atoms, probabilities, support):
    """Bellemare et al. 2017, equation 7, literally: a sum over pairs of atoms."""
    spacing = support[1] - support[0]
    clipped = np.clip(atoms, support[0], support[-1])
    nearness = 1 - np.abs(clipped[:, None, :] - support[None, :, None]) / spacing
    return (np.clip(nearness, 0, 1) * probabilities[:, None, :]).sum(-1)


def distributions(rng, rows, atoms):
    return rng.dirichlet(np.ones(atoms), size=rows)


def projected(atoms, probabilities, support):
    tensors = (torch.as_tensor(x, dtype=torch.float64) for x in (atoms, probabilities, support))
    return categorical_projection(*tensors).numpy()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 12),
    st.floats(-200, 200),
    st.floats(0.1, 300),
    hnp.arrays(np.float64, (3, 1), elements=st.floats(-400, 400)),
    hnp.arrays(np.float64, (3, 1), elements=st.floats(-1, 1)),
    st.integers(0, 2**16),
)
def test_projection_is_equation_7_and_keeps_mass(count, low, width, reward, discount, seed):
    support = np.linspace(low, low + width, count)
    probabilities = distributions(np.random.default_rng(seed), 3, count)
    atoms = reward + discount * support
    found = projected(atoms, probabilities, support)
    np.testing.assert_allclose(found, project_by_hand(atoms, probabilities, support), atol=1e-9)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    assert (found >= 0).all()


def test_projection_keeps_the_mean_inside_the_support():
    support = np.linspace(-10, 10, 21)
    probabilities = distributions(np.random.default_rng(1), 5, 21)
    atoms = np.linspace(-2, 2, 5)[:, None] + 0.7 * support
    found = projected(atoms, probabilities, support)
    np.testing.assert_allclose(found @ support, (probabilities * atoms).sum(1), atol=1e-12)


def test_projection_leaves_atoms_on_the_support_where_they_are():
    support = np.linspace(0, 4, 5)
    probabilities = distributions(np.random.default_rng(2), 3, 5)
    np.testing.assert_allclose(
        projected(np.tile(support, (3, 1)), probabilities, support), probabilities
    )


def test_projection_puts_what_lies_outside_on_the_ends():
    support = np.linspace(-1, 1, 5)
    probabilities = np.array([[0.25, 0.25, 0.5, 0, 0]])
    np.testing.assert_allclose(
        projected(np.full((1, 5), 9.0), probabilities, support), [[0, 0, 0, 0, 1]]
    )
    np.testing.assert_allclose(
        projected(np.full((1, 5), -9.0), probabilities, support), [[1, 0, 0, 0, 0]]
    )


def test_the_categorical_critics_loss_is_the_cross_entropy_with_the_projected_target():
    rng = np.random.default_rng(3)
    support = np.linspace(-3, 3, 7)
    logits, following = rng.normal(size=(4, 7)), distributions(rng, 4, 7)
    reward, discount = rng.normal(size=4), np.array([0.0, 0.5, 0.9, 0.99])
    atoms = reward[:, None] + discount[:, None] * support
    target = project_by_hand(atoms, following, support)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    critic = CategoricalCritic(1, 1, (2,), torch.Generator(), torch.from_numpy(support))
    found = critic.target(*map(torch.from_numpy, (reward, discount, following)))
    np.testing.assert_allclose(found, target, atol=1e-12)
    loss = critic.loss(torch.from_numpy(logits), found)
    np.testing.assert_allclose(loss, -(target * log_p).sum(1))
    with np.errstate(divide='ignore', invalid='ignore'):
        divergence = np.nansum(target * (np.log(target) - log_p), axis=1)
    np.testing.assert_allclose(critic.surprise(loss, found), divergence, atol=1e-12)
    belief = critic.belief(torch.from_numpy(logits))
    np.testing.assert_allclose(critic.value(belief), np.exp(log_p) @ support)


def test_the_scalar_critics_loss_is_half_of_the_squared_error():
    values, reward, discount, following = np.random.default_rng(4).normal(size=(4, 6))
    critic = ScalarCritic(1, 1, (2,), torch.Generator())
    tensors = [torch.from_numpy(x) for x in (reward, discount, following[:, None])]
    target, error = critic.target(*tensors), values - reward - discount * following
    np.testing.assert_allclose(target, reward + discount * following)
    loss = critic.loss(torch.from_numpy(values[:, None]), target)
    np.testing.assert_allclose(loss, 0.5 * error**2)
    np.testing.assert_allclose(critic.surprise(loss, target), abs(error))


def test_a_target_is_a_constant():
    following = torch.randn(2, 5, requires_grad=True)
    support = torch.linspace(-1, 1, 5)
    numbers = torch.ones(2), torch.ones(2)
    scalar = ScalarCritic(1, 1, (2,), torch.Generator())
    assert not categorical_target(support, *numbers, following.softmax(1)).requires_grad
    assert not scalar.target(*numbers, following[:, :1]).requires_grad


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(np.float64, (4, 3), elements=st.floats(-50, 50)),
    st.floats(0.01, 10),
)
def test_dpg_loss_climbs_the_action_gradient_cut_to_the_norm(gradient, max_norm):
    action = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    loss = dpg_loss(action, torch.from_numpy(gradient), max_norm)
    loss.sum().backward()
    norm = np.linalg.norm(gradient, axis=1, keepdims=True)
    cut = np.where(norm > max_norm, gradient * max_norm / np.maximum(norm, 1e-300), gradient)
    np.testing.assert_allclose(action.grad, -cut, atol=1e-12)
    np.testing.assert_allclose(loss.detach(), 0.5 * (cut**2).sum(1), atol=1e-12)


def normals(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize('temperature', [1e-6, 0.3, 50.0])
def test_importance_weights_are_the_softmax_over_samples(temperature):
    values = normals(20, 6).numpy()
    exponent = (values - values.max(0)) / temperature
    expected = np.exp(exponent) / np.exp(exponent).sum(0)
    tensors = torch.from_numpy(values), torch.tensor(temperature, dtype=torch.float64)
    found = losses.importance_weights(*tensors)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    loss = losses.temperature_loss(*tensors, epsilon=0.1)
    mean = (values.max(0) + temperature * np.log(np.exp(exponent).mean(0))).astype(float)
    np.testing.assert_allclose(loss, 0.1 * temperature + mean, atol=1e-9)


def best_temperature(values, epsilon):
    """Where the dual of the E-step is smallest, found without its gradient."""
    optimize = pytest.importorskip('scipy.optimize')

    def dual(log):
        temperature = torch.tensor(np.exp(log), dtype=torch.float64)
        return float(losses.temperature_loss(values, temperature, epsilon).mean())

    found = optimize.minimize_scalar(
        dual, bounds=(-8, 8), method='bounded', options={'xatol': 1e-9}
    )
    return torch.tensor(np.exp(found.x), dtype=torch.float64)


@pytest.mark.parametrize('epsilon', [0.01, 0.1, 0.5])
def test_at_the_best_temperature_the_weights_diverge_by_epsilon(epsilon):
    values = normals(20, 9, seed=1) * torch.linspace(0.1, 3, 9)
    weights = losses.importance_weights(values, best_temperature(values, epsilon)).numpy()
    divergence = (weights * np.log(20 * weights)).sum(0).mean()
    np.testing.assert_allclose(divergence, epsilon, rtol=1e-4)


@pytest.mark.parametrize('seed', range(4))
def test_the_weights_are_the_best_ones_within_epsilon(seed):
    """The expected value under weights of bounded divergence, at its largest."""
    optimize = pytest.importorskip('scipy.optimize')
    values, epsilon, uniform = normals(8, 1, seed=seed), 0.1, np.full(8, 1 / 8)
    found = losses.importance_weights(values, best_temperature(values, epsilon)).numpy()[:, 0]
    best = optimize.minimize(
        lambda w: -w @ values.numpy()[:, 0],
        uniform,
        method='SLSQP',
        bounds=[(1e-9, 1)] * 8,
        constraints=[
            {'type': 'eq', 'fun': lambda w: w.sum() - 1},
            {'type': 'ineq', 'fun': lambda w: epsilon - (w * np.log(w / uniform)).sum()},
        ],
        options={'ftol': 1e-9, 'maxiter': 500},
    )
    assert best.success
    np.testing.assert_allclose(found, best.x, atol=2e-4)


def slopes(function, parameter, step=1e-6):
    """Central differences of `function` [] by each element of `parameter`."""
    flat, found = parameter.data.view(-1), []
    for i in range(len(flat)):
        ends = []
        for sign in (1, -1):
            flat[i] += sign * step
            ends.append(function().item())
            flat[i] -= sign * step
        found.append((ends[0] - ends[1]) / (2 * step))
    return np.array(found)


@pytest.mark.parametrize('log', [-3.0, 0.0, 2.5])
def test_duals_get_the_gradients_of_their_losses(log):
    config = MPOConfig(initial_log_temperature=log, initial_log_alpha_mean=log)
    duals, values, divergence = Duals(config, 3).double(), normals(20, 4), normals(3).abs() / 50

    def temperature_loss():
        return losses.temperature_loss(values, duals.temperature, 0.1).mean()

    def held_back():  # the part that moves the multipliers: KL is a constant in it
        return (duals.alpha_mean * (0.01 - divergence)).sum()

    for function, loss, parameter in (
        (temperature_loss, temperature_loss(), duals.log_temperature),
        (
            held_back,
            losses.divergence_penalty(divergence, duals.alpha_mean, 0.01),
            duals.log_alpha_mean,
        ),
    ):
        (gradient,) = torch.autograd.grad(loss, parameter)
        np.testing.assert_allclose(
            gradient.view(-1), slopes(function, parameter), rtol=1e-5, atol=1e-8
        )


def test_multipliers_grow_where_the_divergence_is_too_large():
    log = torch.zeros(2, requires_grad=True)
    divergence = torch.tensor([0.02, 0.005], requires_grad=True)
    losses.divergence_penalty(divergence, log.exp(), epsilon=0.01).backward()
    np.testing.assert_allclose(log.grad, [-0.01, 0.005], rtol=1e-5)  # descent goes against it
    np.testing.assert_allclose(divergence.grad, [1, 1])  # held back by alpha itself


@pytest.mark.parametrize('moved', ['mean', 'std'])
def test_divergences_are_those_of_normals(moved):
    mean, new_mean = normals(5, 3), normals(5, 3, seed=1)
    std, new_std = normals(5, 3, seed=2).exp(), normals(5, 3, seed=3).exp()
    if moved == 'mean':
        found = losses.mean_divergence(mean, std, new_mean)
        expected = kl_divergence(Normal(mean, std), Normal(new_mean, std))
    else:
        found = losses.deviation_divergence(std, new_std)
        expected = kl_divergence(Normal(mean, std), Normal(mean, new_std))
    torch.testing.assert_close(found, expected)


def test_weighted_likelihood_is_that_of_normals():
    action, weight = normals(20, 5, 3), normals(20, 5, seed=1).softmax(0)
    mean, std = normals(5, 3, seed=2), normals(5, 3, seed=3).exp()
    expected = -(weight * Normal(mean, std).log_prob(action).sum(2)).sum(0)
    torch.testing.assert_close(
        losses.weighted_likelihood_loss(action, weight, mean, std), expected
    )


def test_the_cost_of_actions_is_their_distance_from_the_bounds():
    action = 2 * normals(20, 5, 3).numpy()
    expected = -np.sqrt((np.maximum(abs(action) - 1, 0) ** 2).sum(2))
    assert (expected < 0).any()
    np.testing.assert_allclose(
        losses.out_of_bounds_cost(torch.from_numpy(action)), expected, atol=1e-12
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 2**16))
def test_a_mixture_may_be_projected_as_one_or_by_its_parts(count, samples, seed):
    """Acme projects sample by sample and takes the mean; the learner projects the mean."""
    rng = np.random.default_rng(seed)
    support = np.linspace(-3, 5, count)
    beliefs = rng.dirichlet(np.ones(count), size=(samples, 4))
    reward, discount = rng.normal(size=4), rng.uniform(size=4)
    atoms = reward[:, None] + discount[:, None] * support
    expected = np.mean([project_by_hand(atoms, belief, support) for belief in beliefs], axis=0)
    mean = torch.from_numpy(beliefs).mean(0)
    found = categorical_target(*map(torch.from_numpy, (support, reward, discount)), mean)
    np.testing.assert_allclose(found, expected, atol=1e-12)
