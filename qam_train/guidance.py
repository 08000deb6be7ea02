# SPDX-License-Identifier: Apache-2.0
"""Flow sampling guided by a critic's action gradient, and losses of critics on noised actions.

Notation: v behaviour velocity, theta guidance weight, tau inverse temperature, a_t noised action,
Q_t value of a noised action at time t, Q_1 value of the action itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qam_train.networks import Field


def guided_sample(
    f: Field,
    gradient: Callable[[Tensor, float], Tensor],
    a_0: Tensor,
    n: int,
    theta: float,
    tau: float,
) -> Tensor:
    """Euler steps of v + theta [tau (1 - t) grad_a Q + a] / t; the first step is not guided.

    The bracket over t is the velocity's shift when the score moves by tau grad Q. Clipped to the box
    at the end.

    Args:
        f: behaviour velocity field.
        gradient: (a, t) -> grad_a Q (B, D).
        a_0: (B, D), normal.
        n: steps.
        theta: guidance weight.
        tau: inverse temperature.
    """
    h = 1.0 / n
    a = a_0
    for k in range(n):
        t = k * h
        v = f(a, t)
        if k > 0:
            v = v + theta * (tau * (1.0 - t) * gradient(a, t) + a) / t
        a = torch.add(a, v, alpha=h)
    return a.clamp(-1.0, 1.0)


def squared_time_loss(q_t: Tensor, q_1: Tensor) -> Tensor:
    """(Q_t - Q_1)^2, entry by entry: Q_t learns the mean of Q_1."""
    return (q_t - q_1).square()


def linex_time_loss(q_t: Tensor, q_1: Tensor, tau: float, linear_from: float) -> Tensor:
    """e^d + tau Q_t with d = tau (Q_1 - Q_t): Q_t learns log mean exp(tau Q_1) / tau.

    Where d > linear_from the loss is d itself: neither continuous nor with the slope of the exponential, but
    finite (official code).
    """
    d = tau * (q_1 - q_t)
    inside = d.clamp(max=linear_from).exp() + tau * q_t
    return torch.where(d > linear_from, d, inside)


def exponential_bias(q_t: Tensor, q_1: Tensor, tau: float) -> Tensor:
    """Diagnostic mean(exp(tau Q_t) - exp(tau Q_1)): near 0 where Q_t is the soft maximum."""
    return (torch.exp(tau * q_t) - torch.exp(tau * q_1)).mean()
