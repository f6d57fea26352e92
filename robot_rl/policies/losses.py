"""Losses as pure functions of tensors. B batch, N sampled actions, A action size, K atoms."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def categorical_projection(atoms: Tensor, probabilities: Tensor, support: Tensor) -> Tensor:
    """Project the distribution of `probabilities` [B, K'] at `atoms` [B, K'] onto `support` [K].

    `support` is evenly spaced and increasing. An atom's mass is split between the two nearest
    places of the support in proportion to nearness; beyond the ends it goes to the end. Returns
    probabilities [B, K].
    Source: Bellemare et al. 2017 (C51), equation 7.
    """
    last = len(support) - 1
    spacing = (support[-1] - support[0]) / last
    place = ((atoms - support[0]) / spacing).clamp_(0, last)
    lower = place.floor().clamp_(max=last - 1)
    upper_share = place - lower  # in [0, 1]: 0 on the lower place, 1 on the upper one
    upper_mass = probabilities * upper_share
    index = lower.long()
    projected = torch.zeros_like(probabilities[:, :1]).repeat(1, last + 1)
    projected.scatter_add_(1, index, probabilities - upper_mass)
    return projected.scatter_add_(1, index + 1, upper_mass)


@torch.no_grad()
def categorical_target(
    support: Tensor, reward: Tensor, discount: Tensor, next_probabilities: Tensor
) -> Tensor:
    """Return the distribution [B, K] of reward [B] + discount [B] * z, projected on `support` [K].

    z is distributed as `next_probabilities` [B, K]; `discount` is that of all n steps.
    Source: Barth-Maron et al. 2018 (D4PG), section 3; Bellemare et al. 2017 (C51), algorithm 1.
    """
    atoms = reward[:, None] + discount[:, None] * support
    return categorical_projection(atoms, next_probabilities, support)


def dpg_loss(action: Tensor, action_gradient: Tensor, max_norm: float) -> Tensor:
    """Return 0.5 |stop_gradient(a + clip(dq/da)) - a|^2 for each row -> [B].

    Its gradient with respect to `action` [B, A] is -clip(dq/da): `action_gradient` [B, A] with
    each row's L2 norm cut to `max_norm`.
    Source: Silver et al. 2014 (DPG), equation 9; clipping as rlax.dpg_loss.
    """
    norm = torch.linalg.vector_norm(action_gradient, dim=1, keepdim=True)
    clipped = action_gradient * (max_norm / norm.clamp(min=max_norm))
    return 0.5 * ((action + clipped).detach() - action).square().sum(dim=1)


def importance_weights(values: Tensor, temperature: Tensor) -> Tensor:
    """Return softmax_j(Q(s, a_j) / eta) for `values` [N, B] and `temperature` eta [] -> [N, B].

    The E-step of MPO: how much more likely than under the policy that sampled them the better
    actions become. No gradient flows.
    Source: Abdolmaleki et al. 2018 (MPO, arXiv 1806.06920), section 4.1.
    """
    return (values.detach() / temperature.detach()).softmax(dim=0)


def temperature_loss(values: Tensor, temperature: Tensor, epsilon: float) -> Tensor:
    """Return eta (epsilon + log mean_j exp(Q(s, a_j) / eta)) for each state -> [B].

    Its mean over states is the dual function of the E-step; at the minimum over `temperature`
    eta [] the weights' divergence from the policy is `epsilon`. `values` [N, B] get no gradient.
    Source: Abdolmaleki et al. 2018 (MPO, arXiv 1806.06920), section 4.1.
    """
    log_mean = (values.detach() / temperature).logsumexp(dim=0) - math.log(len(values))
    return temperature * (epsilon + log_mean)


def out_of_bounds_cost(action: Tensor) -> Tensor:
    """Return -|a - clip(a, -1, 1)|, an objective of its own: [..., A] -> [...].

    Source: Abdolmaleki et al. 2020 (MO-MPO, arXiv 2005.07513), as Acme penalises actions.
    """
    return -torch.linalg.vector_norm(action - action.clamp(-1, 1), dim=-1)


def weighted_likelihood_loss(action: Tensor, weight: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return -sum_j w_j log N(a_j; mean, std) for each state -> [B]: the M-step of MPO.

    `action` [N, B, A], `weight` [N, B], `mean` and `std` [B, A] of a diagonal normal.
    Source: Abdolmaleki et al. 2018 (MPO, arXiv 1806.06920), section 4.2.
    """
    distance = ((action - mean) / std).square().sum(dim=-1)
    constant = action.shape[-1] * math.log(2 * math.pi)
    log_density = -0.5 * (distance + constant) - std.log().sum(dim=-1)
    return -(weight * log_density).sum(dim=0)


def mean_divergence(mean: Tensor, std: Tensor, new_mean: Tensor) -> Tensor:
    """Return KL(N(mean, std) | N(new_mean, std)) in each dimension: [B, A] -> [B, A].

    Source: Abdolmaleki et al. 2018 (arXiv 1812.02256), the decoupled constraints.
    """
    return 0.5 * ((mean - new_mean) / std).square()


def deviation_divergence(std: Tensor, new_std: Tensor) -> Tensor:
    """Return KL(N(mean, std) | N(mean, new_std)) in each dimension: [B, A] -> [B, A].

    Source: Abdolmaleki et al. 2018 (arXiv 1812.02256), the decoupled constraints.
    """
    # As the sum of a logarithm and a square it would cancel: bounds on it are as small as 1e-6.
    log = (std / new_std).log()
    return 0.5 * (2 * log).expm1() - log


def divergence_penalty(divergence: Tensor, alpha: Tensor, epsilon: float) -> Tensor:
    """Return sg(alpha) KL + alpha (epsilon - sg(KL)), summed over dimensions -> [].

    The first part holds the policy back, the second moves the multipliers `alpha` [A] so that
    `divergence` [A], a mean over states, comes to `epsilon`.
    Source: Abdolmaleki et al. 2018 (MPO, arXiv 1806.06920), section 4.2.
    """
    penalty = alpha.detach() * divergence
    return (penalty + alpha * (epsilon - divergence.detach())).sum()


def mixture_log_likelihood(action: Tensor, logits: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return log sum_k p_k N(a; mean_k, std_k) of each row -> [B].

    `action` [B, A]; `logits` [B, K] of the modes' probabilities p; `mean` and `std` [B, K, A] of
    diagonal normals. Source: Bishop 1994, Mixture density networks, equations 22 and 23.
    """
    distance = ((action[:, None] - mean) / std).square().sum(dim=-1)
    constant = action.shape[-1] * math.log(2 * math.pi)
    log_density = -0.5 * (distance + constant) - std.log().sum(dim=-1)
    return (logits.log_softmax(dim=1) + log_density).logsumexp(dim=1)
