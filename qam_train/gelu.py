# SPDX-License-Identifier: Apache-2.0
"""GELU in its tanh form, x sigma(2 u) with u = sqrt(2/pi) (x + 0.044715 x^3), and its slope.

0.5 (1 + tanh u) = sigma(2 u) exactly. On the CPU torch evaluates the sigmoid faster than its own
tanh GELU, and keeping the slope in the forward pass makes the backward pass one product. On other
devices torch's fused kernel is used.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LINEAR = 2.0 * math.sqrt(2.0 / math.pi)
CUBIC = LINEAR * 0.044715


def gelu(x: Tensor) -> Tensor:
    """GELU (tanh form), entry by entry."""
    if x.device.type != "cpu":
        return functional.gelu(x, approximate="tanh")
    if torch.is_grad_enabled() and x.requires_grad:
        return _Gelu.apply(x)
    return _gate(x).mul_(x)


def gelu_slope(x: Tensor) -> Tensor:
    """Derivative of gelu at x; carries no gradient itself."""
    with torch.no_grad():
        return _slope(x, _gate(x))


def _gate(x: Tensor) -> Tensor:
    """The factor sigma(2 u)."""
    return (x * x).mul_(CUBIC).add_(LINEAR).mul_(x).sigmoid_()


def _slope(x: Tensor, gate: Tensor) -> Tensor:
    """Derivative gate (1 + (1 - gate) x d(2u)/dx), with x d(2u)/dx = x (LINEAR + 3 CUBIC x^2)."""
    steepness = (x * x).mul_(3.0 * CUBIC).add_(LINEAR).mul_(x)
    return steepness.mul_(1.0 - gate).add_(1.0).mul_(gate)


class _Gelu(torch.autograd.Function):
    """GELU that keeps its slope instead of its input."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        gate = _gate(x)
        context.save_for_backward(_slope(x, gate))
        return gate.mul_(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        (slope,) = context.saved_tensors
        return gradients[0] * slope
