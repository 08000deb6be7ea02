# SPDX-License-Identifier: Apache-2.0
"""Critic ensemble: values of action chunks, bootstrapped target, loss and action gradient.

Notation: s observation (B, O), a action chunk (B, D), Q_k member k of the ensemble (E, B), gamma
discount, rho pessimism, R_h discounted return inside the chunk, m mask (0 stops the bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qam_train.networks import Params, mlp


def ensemble(params: Params, prefix: str, s: Tensor, a: Tensor) -> Tensor:
    """Values Q_k(s, a) of every member, (E, B)."""
    return mlp(params, prefix, torch.cat([s, a], -1)).squeeze(-1)


def pessimistic(q: Tensor, rho: float) -> Tensor:
    """Mean minus rho population standard deviations over the ensemble: (E, B) -> (B,)."""
    return q.mean(-2) - rho * q.std(-2, correction=0)


def td_target(
    q_next: Tensor, reward: Tensor, mask: Tensor, discount: float, rho: float
) -> Tensor:
    """Target y = R_h + gamma^h m (mean_k Q_k - rho std_k Q_k) at the next observation.

    Args:
        q_next: (E, B), target ensemble at the next observation and the policy's action there.
        reward: (B,), discounted return R_h of the chunk.
        mask: (B,), 0 where an end inside the chunk stops the bootstrap.
        discount: gamma^h, the discount over the whole chunk.
        rho: pessimism.
    """
    return reward + discount * mask * pessimistic(q_next, rho)


def td_loss(q: Tensor, y: Tensor, valid: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over ensemble and batch of valid (Q_k - y)^2.

    Args:
        q: (E, B), online ensemble at the data.
        y: (B,), target, a constant.
        valid: (B,), 1 for chunks that lie inside one segment; the mean stays over all B rows.
    """
    loss = ((q - y.unsqueeze(-2)).square() * valid.unsqueeze(-2)).mean((-2, -1))
    values = q.detach()
    metrics = {
        "critic/td_loss": loss.detach(),
        "critic/q_mean": values.mean(),
        "critic/q_max": values.amax(),
        "critic/q_min": values.amin(),
    }
    return loss, metrics


def action_gradient(q: Callable[[Tensor], Tensor], a: Tensor, bound: float) -> Tensor:
    """Gradient of mean_k Q_k(s, clip(a, -bound, bound)) with respect to a, (B, D).

    The clip makes it zero in every coordinate outside the box, and the plain ensemble mean enters,
    without pessimism (both official code).

    Args:
        q: a -> (E, B), values with the observations bound.
        a: (B, D), unclipped end points.
        bound: half width of the action box; inf leaves out the clip.
    """
    with torch.enable_grad():
        a = a.detach().requires_grad_()
        value = q(a.clamp(-bound, bound)).mean(-2).sum()
        (gradient,) = torch.autograd.grad(value, a)
    return gradient


def best_of(values: Tensor, candidates: Tensor) -> Tensor:
    """Candidate with the highest value in every row.

    Args:
        values: (N, B).
        candidates: (N, B, D).

    Returns:
        (B, D).
    """
    rows = torch.arange(values.shape[1], device=values.device)
    return candidates[values.argmax(0), rows]


def value_gap(
    params: Params, prefix: str, s: Tensor, a: Tensor, data: Tensor, weight: Tensor
) -> Tensor:
    """Mean over ensemble and batch of weight (Q_k(s, a) - Q_k(s, data)).

    Actions (B, D), weight of each row (B,); the mean stays over all B rows.
    """
    gap = ensemble(params, prefix, s, a) - ensemble(params, prefix, s, data)  # (E, B)
    return (gap * weight).mean()
