# SPDX-License-Identifier: Apache-2.0
"""One Adam over all trained tensors with a joint gradient clip, and the lagged moving average."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

from qam_train.networks import Params


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all entries of all tensors.

    Norms are taken tensor by tensor: one float32 accumulator over ten million entries is off by
    3e-4.
    """
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))


def clip_jointly(gradients: Sequence[Tensor], clip_norm: float) -> Tensor:
    """Scale all gradients in place so that their joint norm is at most clip_norm.

    Returns the norm before clipping. Scale = clip_norm / norm without an epsilon (official code).
    """
    norm = global_norm(gradients)
    scale = torch.clamp(clip_norm / norm, max=1.0)
    torch._foreach_mul_(list(gradients), scale)
    return norm


@torch.no_grad()
def lagged_average(
    targets: Sequence[Tensor], online: Sequence[Tensor], rate: float
) -> None:
    """Moving average target <- target + rate (online - target), in place.

    Call it before the optimiser steps: targets follow the parameters before the step (official
    code: one step of lag).
    """
    torch._foreach_lerp_(list(targets), list(online), rate)


class JointAdam:
    """Adam (bias-corrected, epsilon outside the root) over a dictionary of tensors.

    Gradients are clipped by their joint norm first: a large gradient of one loss shrinks the step
    of every other net (official code).
    """

    def __init__(self, params: Params, clip_norm: float) -> None:
        """Start with zero moments.

        Args:
            params: tensors to train, updated in place.
            clip_norm: largest joint gradient norm; inf switches the clip off.
        """
        self.params = params
        self.clip_norm = clip_norm
        self.first = {name: torch.zeros_like(value) for name, value in params.items()}
        self.second = {name: torch.zeros_like(value) for name, value in params.items()}
        self.steps = {
            name: torch.zeros((), dtype=torch.float32, device=value.device)
            for name, value in params.items()
        }

    @torch.no_grad()
    def step(
        self, gradients: Sequence[Tensor], learning_rate: float | Tensor
    ) -> dict[str, Tensor]:
        """Clip and take one step; gradients are in the order of the dictionary and are consumed.

        A learning rate () on the tensors' device may change without any work of the host.
        """
        norm = clip_jointly(gradients, self.clip_norm)
        adam(
            list(self.params.values()),
            list(gradients),
            list(self.first.values()),
            list(self.second.values()),
            [],
            list(self.steps.values()),
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
        return {"grad/global_norm": norm}

    def state(self) -> Params:
        """Moments and step counts, by 'first/', 'second/', 'step/' and the tensor's name."""
        state: Params = {}
        for kind, tensors in self._parts().items():
            state.update({f"{kind}/{name}": value for name, value in tensors.items()})
        return state

    @torch.no_grad()
    def load_state(self, state: Params) -> None:
        """Copy a state() of the same dictionary of tensors back."""
        for kind, tensors in self._parts().items():
            for name, value in tensors.items():
                value.copy_(state[f"{kind}/{name}"])

    def _parts(self) -> dict[str, Params]:
        return {"first": self.first, "second": self.second, "step": self.steps}
