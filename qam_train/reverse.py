# SPDX-License-Identifier: Apache-2.0
"""Reversing a flow from the data, and one-step improvement inside it (RQL).

Notation: a chunk of the data (B, D), f flow time with f = 1 the action, K steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qam_train.networks import Field


def reverse_flow(
    f: Field, a: Tensor, distance: Tensor, n: int
) -> tuple[Tensor, Tensor]:
    """Euler steps back from the action: x <- x - d v(x, f), f <- f - d with d = distance / n.

    Args:
        f: velocity field.
        a: (B, D), the data's chunks at f = 1.
        distance: (B, 1), how far back, in [0, 1].
        n: steps.

    Returns:
        x (B, D) and the flow time 1 - distance (B, 1) it was reached at.
    """
    d = distance / n
    x, time = a, torch.ones_like(distance)
    for _ in range(n):
        x, time = x - d * f(x, time), time - d
    return x, time


def one_euler_step(
    velocity: Tensor, x: Tensor, t: Tensor, n: int
) -> tuple[Tensor, Tensor]:
    """State and time after one step of size 1/n that does not pass t = 1; x (B, D), t (B, 1)."""
    step = (1.0 - t).clamp(max=1.0 / n)
    return x + velocity * step, (t + 1.0 / n).clamp(max=1.0)
