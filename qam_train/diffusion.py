# SPDX-License-Identifier: Apache-2.0
"""Denoising diffusion of action chunks: schedule, noise predictor, reverse samplers, losses.

Here diffusion time counts from K = pure noise down to 0 = action. Notation: beta_k step variance,
alpha_k = 1 - beta_k, alpha_hat_k their running product; x_k noised action (B, D); eps predicted
noise; x0 predicted action.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from qam_train.networks import Params, mish, mlp

Predictor = Callable[[Tensor, int], Tensor]  # (x_k, k) -> eps
BETA_MIN, BETA_MAX = 0.1, 10.0  # variance-preserving schedule of the official code


@dataclass(frozen=True)
class Schedule:
    """Entries 0 .. K; entry 0 is the action itself (beta 0).

    Args:
        betas, alphas, alpha_hats: (K+1,).
    """

    betas: Tensor
    alphas: Tensor
    alpha_hats: Tensor

    @property
    def steps(self) -> int:
        """K."""
        return len(self.betas) - 1


def schedule(steps: int, like: Tensor) -> Schedule:
    """alpha_k = exp(-b_min / K - (b_max - b_min) (2k - 1) / (2 K^2)), in the dtype of like."""
    k = torch.arange(1, steps + 1, dtype=torch.float64)
    slope = 0.5 * (BETA_MAX - BETA_MIN) * (2.0 * k - 1.0) / steps**2
    alphas = torch.cat(
        [torch.ones(1, dtype=k.dtype), torch.exp(-BETA_MIN / steps - slope)]
    )
    found = (1.0 - alphas, alphas, alphas.cumprod(0))
    return Schedule(*(x.to(like.dtype).to(like.device) for x in found))


def predicted_noise(
    params: Params, prefix: str, s: Tensor, x: Tensor, k: Tensor
) -> Tensor:
    """eps(s, x, k): learnt Fourier code of k, its MLP c, then the MLP of [x, s, c]; mish.

    Args:
        params: flat dictionary with the nets prefix/fourier, prefix/time and prefix/noise.
        prefix: name of the actor.
        s: (B, O), normalised.
        x: (B, D).
        k: (B, 1), diffusion time as a number.
    """
    angle = 2.0 * math.pi * k @ params[f"{prefix}/fourier/0/weight"].mT
    code = torch.cat([angle.cos(), angle.sin()], -1)
    c = mlp(params, f"{prefix}/time", code, mish)
    return mlp(
        params,
        f"{prefix}/noise",
        torch.cat([x, s.expand(*x.shape[:-1], -1), c], -1),
        mish,
    )


def noised(plan: Schedule, a: Tensor, eps: Tensor, k: Tensor) -> Tensor:
    """x_k = sqrt(alpha_hat_k) a + sqrt(1 - alpha_hat_k) eps; k (B,) whole numbers."""
    level = plan.alpha_hats[k].unsqueeze(-1)
    return level.sqrt() * a + (1.0 - level).sqrt() * eps


def _action(plan: Schedule, x: Tensor, eps: Tensor, k: int) -> Tensor:
    level = plan.alpha_hats[k]
    return (x - (1.0 - level).sqrt() * eps) / level.sqrt()


def posterior_sample(
    predictor: Predictor, plan: Schedule, x: Tensor, noise: Tensor
) -> Tensor:
    """Ancestral sampling with x0 clipped to the box (DAC).

    Args:
        predictor: (x_k, k) -> eps.
        plan: the schedule.
        x: (B, D), x_K.
        noise: (K, B, D), of the steps K .. 1; the last one is not used.
    """
    for index, k in enumerate(range(plan.steps, 0, -1)):
        x0 = _action(plan, x, predictor(x, k), k).clamp(-1.0, 1.0)
        before, level = plan.alpha_hats[k - 1], plan.alpha_hats[k]
        x = (
            before.sqrt() * plan.betas[k] * x0
            + plan.alphas[k].sqrt() * (1.0 - before) * x
        ) / (1.0 - level)
        if k > 1:
            x = x + plan.betas[k].sqrt() * noise[index]
    return x.clamp(-1.0, 1.0)


def jump_sample(
    predictor: Predictor, plan: Schedule, x: Tensor, noise: Tensor
) -> Tensor:
    """X <- clip(x0 + sqrt(beta_k) noise): each step jumps to the predicted action (QSM).

    Not a posterior: without the clip of x0 the official sampler goes on from x0 itself. Arguments
    as in posterior_sample.
    """
    for index, k in enumerate(range(plan.steps, 0, -1)):
        x = _action(plan, x, predictor(x, k), k)
        if k > 1:
            x = x + plan.betas[k].sqrt() * noise[index]
        x = x.clamp(-1.0, 1.0)
    return x


def valid_mean(rows: Tensor, valid: Tensor) -> Tensor:
    """Mean of rows where valid, of 1 elsewhere; both (B,).

    The official code raises each row to the power `valid`: the gradient is that of a product, the
    value is larger by the share of invalid rows.
    """
    return torch.where(valid > 0.0, rows, 1.0).mean(-1)


def denoising_error(predicted: Tensor, eps: Tensor) -> Tensor:
    """Mean over the chunk of (eps_hat - eps)^2, (B,)."""
    return functional.mse_loss(predicted, eps, reduction="none").mean(-1)
