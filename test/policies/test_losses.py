import hypothesis.extra.numpy as hnp
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.policies.losses import categorical_projection, categorical_td_loss, dpg_loss


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


def test_td_loss_is_the_cross_entropy_with_the_projected_target():
    rng = np.random.default_rng(3)
    support = np.linspace(-3, 3, 7)
    logits, following = rng.normal(size=(4, 7)), distributions(rng, 4, 7)
    reward, discount = rng.normal(size=4), np.array([0.0, 0.5, 0.9, 0.99])
    atoms = reward[:, None] + discount[:, None] * support
    target = project_by_hand(atoms, following, support)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    tensors = [torch.from_numpy(x) for x in (logits, support, reward, discount, following)]
    np.testing.assert_allclose(categorical_td_loss(*tensors), -(target * log_p).sum(1))


def test_td_loss_pulls_on_the_logits_alone():
    logits = torch.randn(2, 5, requires_grad=True)
    following = torch.randn(2, 5, requires_grad=True)
    support = torch.linspace(-1, 1, 5)
    loss = categorical_td_loss(logits, support, torch.ones(2), torch.ones(2), following.softmax(1))
    loss.sum().backward()
    assert logits.grad.abs().sum() > 0
    assert following.grad is None


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
