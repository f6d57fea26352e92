"""Losses as pure functions of tensors. B batch, A action size, K atoms."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


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


def categorical_td_loss(
    logits: Tensor,
    support: Tensor,
    reward: Tensor,
    discount: Tensor,
    next_probabilities: Tensor,
) -> Tensor:
    """Return the cross-entropy [B] of `logits` [B, K] against the projected n-step target.

    The target is reward [B] + discount [B] * z, z distributed as `next_probabilities` [B, K] over
    `support` [K]; `discount` is that of all n steps. Gradients flow into `logits` alone.
    Source: Barth-Maron et al. 2018 (D4PG), section 3; Bellemare et al. 2017 (C51), algorithm 1.
    """
    with torch.no_grad():
        atoms = reward[:, None] + discount[:, None] * support
        target = categorical_projection(atoms, next_probabilities, support)
    return functional.cross_entropy(logits, target, reduction='none')


def dpg_loss(action: Tensor, action_gradient: Tensor, max_norm: float) -> Tensor:
    """Return 0.5 |stop_gradient(a + clip(dq/da)) - a|^2 for each row -> [B].

    Its gradient with respect to `action` [B, A] is -clip(dq/da): `action_gradient` [B, A] with
    each row's L2 norm cut to `max_norm`.
    Source: Silver et al. 2014 (DPG), equation 9; clipping as rlax.dpg_loss.
    """
    norm = torch.linalg.vector_norm(action_gradient, dim=1, keepdim=True)
    clipped = action_gradient * (max_norm / norm.clamp(min=max_norm))
    return 0.5 * ((action + clipped).detach() - action).square().sum(dim=1)
