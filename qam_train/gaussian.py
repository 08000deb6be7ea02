# SPDX-License-Identifier: Apache-2.0
"""Tanh-Gaussian actions: draw, log-likelihood, entropy temperature.

Notation: u = mean + std * noise before the squashing, e = tanh(u) in (-1, 1), log p(e) its density
over the box, (..., B); alpha entropy temperature, H entropy -log p, H* its target.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from qam_train.networks import Params, features, mlp

LOG_STD_BOUNDS = (-20.0, 2.0)
ATANH_MARGIN = 1e-5  # official code: data actions are pulled inside before atanh


def head(params: Params, prefix: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation (clipped to [-20, 2]) of u, each (..., B, D)."""
    hidden = features(params, f"{prefix}/trunk", x)
    mean = mlp(params, f"{prefix}/mean", hidden)
    log_std = mlp(params, f"{prefix}/log_std", hidden).clamp(*LOG_STD_BOUNDS)
    return mean, log_std


def draw(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Action tanh(mean + std noise) (..., B, D) and its log-likelihood (..., B)."""
    u = mean + log_std.exp() * noise
    return torch.tanh(u), _normal_log_density(noise, log_std) - _log_slope(u)


def log_likelihood(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """Log-likelihood (..., B) of given actions (..., B, D) in [-1, 1]."""
    u = torch.atanh(action.clamp(-1.0 + ATANH_MARGIN, 1.0 - ATANH_MARGIN))
    noise = (u - mean) * torch.exp(-log_std)
    return _normal_log_density(noise, log_std) - _log_slope(u)


def temperature_loss(log_alpha: Tensor, log_p: Tensor, target: float) -> Tensor:
    """Alpha (H - H*) with H = -mean log p constant: its gradient moves alpha alone."""
    return log_alpha.exp() * (-log_p.detach().mean() - target)


def _normal_log_density(noise: Tensor, log_std: Tensor) -> Tensor:
    half = 0.5 * math.log(2.0 * math.pi)
    return (-0.5 * noise.square() - half - log_std).sum(-1)


def _log_slope(u: Tensor) -> Tensor:
    """Log |d tanh(u) / du| summed over D, in the form that does not cancel for large u."""
    return (2.0 * (math.log(2.0) - u - functional.softplus(-2.0 * u))).sum(-1)
