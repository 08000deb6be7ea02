# SPDX-License-Identifier: Apache-2.0
"""Flow matching: the straight path from noise to action, its loss and its Euler sampler.

Notation: a action chunk (B, D) with D = H*A, t in [0, 1] with t = 0 noise and t = 1 action,
n flow steps, h = 1/n, f(a, t) a velocity field bound to its observations
(networks.velocity_field).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qam_train.networks import Field


def integrate(f: Field, a_0: Tensor, n: int) -> Tensor:
    """Euler steps a <- a + h f(a, kh), k = 0 .. n-1, from noise to action; nothing is clipped.

    Args:
        f: velocity field.
        a_0: (..., B, D), noise.
        n: number of steps.
    """
    h = 1.0 / n
    a = a_0
    for k in range(n):
        a = torch.add(a, f(a, k * h), alpha=h)
    return a


def added(f: Field, g: Field) -> Field:
    """The field f + g."""
    return lambda a, t: f(a, t) + g(a, t)


def sample(f: Field, a_0: Tensor, n: int) -> Tensor:
    """Action chunks: n Euler steps from noise, clipped to the box [-1, 1] at the end alone."""
    return integrate(f, a_0, n).clamp(-1.0, 1.0)


def flow_matching_loss(
    f: Field, a_1: Tensor, noise: Tensor, t: Tensor, valid: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean of valid * mean_D (f(a_t, t) - (a_1 - a_0))^2 on the path a_t = (1-t) a_0 + t a_1.

    Args:
        f: velocity field that is trained.
        a_1: (B, D), action chunks of the data, normalised to [-1, 1].
        noise: (B, D), standard normal a_0.
        t: (B, 1), uniform on [0, 1).
        valid: (B,), 1 for chunks that lie inside one segment; the mean stays over all B rows.
    """
    a_t = (1.0 - t) * noise + t * a_1
    error = f(a_t, t) - (a_1 - noise)  # (B, D)
    loss = (error.square().mean(-1) * valid).mean(-1)
    return loss, {"flow/loss": loss.detach()}
