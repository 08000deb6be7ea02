# SPDX-License-Identifier: Apache-2.0
"""Regression of state values: expectiles and advantage weights."""

from __future__ import annotations

import torch
from torch import Tensor


def expectile_loss(difference: Tensor, kappa: float) -> Tensor:
    """|kappa - 1[d < 0]| d^2, entry by entry; d = target - value, kappa = 0.5: half the square."""
    weight = ((difference < 0.0).to(difference.dtype) - kappa).abs()
    return weight * difference.square()


def advantage_weight(advantage: Tensor, tau: float, cap: float = 100.0) -> Tensor:
    """min(exp(tau A), cap), a constant."""
    return torch.exp(tau * advantage.detach()).clamp(max=cap)
