# SPDX-License-Identifier: Apache-2.0
"""Adjoint matching: memoryless rollout, lean adjoint and the regression loss of the tuned flow.

Notation: a_k state (B, D) at t_k = k h, k = 0 .. n-1, h = 1/n; f_theta tuned velocity ("fast"),
f_beta behaviour velocity ("slow", its moving average); g_k lean adjoint (B, D); sigma_k noise scale.
Terms marked "official code" are choices of the discretisation that the continuous equations do not
fix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qam_train.networks import Field, Pullback


def step_times(n: int, like: Tensor) -> Tensor:
    """Times t_k = k / n of the n steps as (n, 1, 1), in the dtype and on the device of like."""
    return torch.arange(n, dtype=like.dtype, device=like.device).view(n, 1, 1) / n


def memoryless_sigma(t: Tensor, h: float) -> Tensor:
    """Noise scale sigma_t = sqrt(2 (1 - t + h) / (t + h)).

    The two +h keep both ends finite (official code).
    """
    return torch.sqrt(2.0 * (1.0 - t + h) / (t + h))


def rollout(
    f_theta: Field, f_beta: Field, a_0: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Memoryless SDE a <- a + h (2 f_theta(a, t) - a / (t + h)) + sqrt(h) sigma_t noise_k.

    The last of the n steps is a plain Euler step with f_beta and no noise (official code).
    Nothing is clipped.

    Args:
        f_theta: tuned velocity field.
        f_beta: behaviour velocity field.
        a_0: (B, D), standard normal.
        noise: (n-1, B, D), standard normal.

    Returns:
        states a_0 .. a_{n-1} as (n, B, D), and the end point a_1 (B, D).
    """
    n = noise.shape[0] + 1
    h = 1.0 / n
    spread = (
        h**0.5 * memoryless_sigma(step_times(n, a_0), h)[:-1] * noise
    )  # (n-1, B, D)
    a = a_0
    states = [a]
    for k in range(n - 1):
        a = _memoryless_step(a, f_theta(a, k * h), spread[k], k * h, h)
        states.append(a)
    a_1 = torch.add(a, f_beta(a, (n - 1) * h), alpha=h)
    return torch.stack(states), a_1


def _memoryless_step(a: Tensor, v: Tensor, shock: Tensor, t: float, h: float) -> Tensor:
    return torch.add((1.0 - h / (t + h)) * a + shock, v, alpha=2.0 * h)


def controlled_rollout(
    f_theta: Field,
    f_beta: Field,
    a_0: Tensor,
    noise: Tensor,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """End point and control cost of the memoryless rollout, to be differentiated through (BAM).

    Cost = mean_B sum_{k < n-1} (2 / sigma_k^2) ||f_theta - f_beta||^2, without the step size h
    (official code): n times the path KL of the steps that f_theta takes.

    Args:
        f_theta: tuned velocity field.
        f_beta: behaviour velocity field; takes the last step.
        a_0: (B, D), standard normal.
        noise: (n-1, B, D), standard normal.
        weight: (B,), of each row in the cost; None: 1.

    Returns:
        end point a_1 (B, D), unclipped, and the cost.
    """
    n = noise.shape[0] + 1
    h = 1.0 / n
    sigma = memoryless_sigma(step_times(n, a_0), h)[:-1]  # (n-1, 1, 1)
    spread = h**0.5 * sigma * noise
    a = a_0
    corrections = []
    for k in range(n - 1):
        v = f_theta(a, k * h)
        corrections.append(v - f_beta(a, k * h))
        a = _memoryless_step(a, v, spread[k], k * h, h)
    a_1 = torch.add(a, f_beta(a, (n - 1) * h), alpha=h)
    zero = a_0.new_zeros(())
    shares = path_kl_shares(torch.stack(corrections), zero, sigma, 1.0, weight)
    return a_1, shares.sum()


def lean_adjoint(pullback: Pullback, g_1: Tensor, n: int, first: int = 0) -> Tensor:
    """Lean adjoint g_k = g_{k+1} + h [d/da (2 f_beta - a / (t_k + h))]^T g_{k+1}, backward in k.

    The Jacobian is taken at the left state a_k but at time t_k + h (official code): the caller
    linearises f_beta there.

    Args:
        pullback: pullback(k, g) = [d f_beta(a_k, t_k + h) / da]^T g.
        g_1: (B, D), terminal adjoint -tau * grad_a mean Q.
        n: number of steps.
        first: step to stop at.

    Returns:
        g_first .. g_{n-1} as (n - first, B, D).
    """
    h = 1.0 / n
    g = g_1
    adjoints: list[Tensor] = []
    for k in reversed(range(first, n)):
        decay = 1.0 - h / (k * h + h)  # exactly 0 at k = 0
        g = torch.add(decay * g, pullback(k, g), alpha=2.0 * h)
        adjoints.append(g)
    return torch.stack(adjoints[::-1]) if adjoints else g_1[None][:0]


def terminal_metrics(g_1: Tensor) -> dict[str, Tensor]:
    """Size of the terminal adjoint (B, D), entry by entry: how hard the critic pulls."""
    size = g_1.abs()
    return {
        "adjoint/terminal_mean": size.mean(),
        "adjoint/terminal_std": size.std(correction=0),
        "adjoint/terminal_max": size.amax(),
    }


def bridge(a_1: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """States a_t = (1 - t) noise_k + t a_1 on the grid t = 1/K .. 1, one fresh noise per time.

    Args:
        a_1: (B, D), end points.
        noise: (K, B, D), standard normal.

    Returns:
        states (K, B, D) and their times (K, 1, 1).
    """
    t = step_times(noise.shape[0], a_1) + 1.0 / noise.shape[0]
    return (1.0 - t) * noise + t * a_1, t


def scalar_adjoint(g_1: Tensor, t: Tensor) -> Tensor:
    """Scalar adjoint g_t = t g_1: the lean adjoint of a base field whose Jacobian is zero.

    For a Jacobian c_t I the lean adjoint is t exp(2 int_t^1 c) g_1; the exponential is left out
    (SQAM).

    Args:
        g_1: (B, D), terminal adjoint.
        t: (K, 1, 1), times.

    Returns:
        (K, B, D).
    """
    return t * g_1


def path_kl_shares(
    v_theta: Tensor,
    v_beta: Tensor,
    sigma: Tensor,
    h: float,
    weight: Tensor | None = None,
) -> Tensor:
    """Path KL of the tuned process from the base, step by step, (K,); their sum is the KL.

    mean_B (2 h / sigma_k^2) ||f_theta - f_beta||^2.

    Free of the temperature (Girsanov: sigma u = 2 (f_theta - f_beta)). All K steps count although
    the rollout takes the last one with f_beta (official code); that one carries a third of the
    weight at K = 10.

    Args:
        v_theta: (K, B, D), tuned velocities.
        v_beta: (K, B, D), behaviour velocities at the same states.
        sigma: (K, 1, 1), memoryless noise scale.
        h: step size.
        weight: (B,), of each row; None: 1.
    """
    weighted = (2.0 * h / sigma.square()) * (v_theta - v_beta).square()
    return _row_mean(weighted.sum(-1), weight)


def _row_mean(rows: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over all B of weight times rows (..., B)."""
    return (rows if weight is None else rows * weight).mean(-1)


def adjoint_cost(g: Tensor, sigma: Tensor, h: float) -> Tensor:
    """Cost C = mean_B sum_k h sigma_k^2 ||g_k||^2 of adjoints at unit temperature.

    At the optimum of the regression with temperature lambda the path KL is C / (2 lambda^2).
    Arguments as in path_kl_shares, g (K, B, D).
    """
    return (h * sigma.square() * g.square()).sum((0, -1)).mean(-1)


def matching_loss(
    v_theta: Tensor,
    v_beta: Tensor,
    g: Tensor,
    sigma: Tensor | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean_B sum_k || 2 (f_theta - f_beta) / sigma_k + sigma_k g_k ||^2.

    Not weighted by h, and by default not by valid (official code). The pointwise optimum is
    f_theta = f_beta - sigma^2 g / 2. With sigma = memoryless / sqrt(lambda) and g at unit
    temperature this is lambda times the loss at temperature 1 / lambda (TRQAM).

    Args:
        v_theta: (n, B, D), tuned velocities at (a_k, t_k); the only ones with a gradient.
        v_beta: (n, B, D), behaviour velocities at (a_k, t_k).
        g: (n, B, D), adjoints.
        sigma: (n, 1, 1), noise scales; None: memoryless at t_k = k / n.
        weight: (B,), of each row in the mean over all B; None: 1.
    """
    n = g.shape[0]
    if sigma is None:
        sigma = memoryless_sigma(step_times(n, g), 1.0 / n)
    residual = (2.0 / sigma) * (v_theta - v_beta) + sigma * g  # (n, B, D)
    loss = _row_mean(residual.square().sum((0, -1)), weight)
    with torch.no_grad():
        norm = torch.linalg.vector_norm(g, dim=-1)  # (n, B)
        metrics = {
            "adjoint/loss": loss.detach(),
            "adjoint/norm_mean": norm.mean(),
            "adjoint/norm_max": norm.amax(),
            "adjoint/correction": torch.linalg.vector_norm(
                v_theta - v_beta, dim=-1
            ).mean(),
        }
    return loss, metrics
