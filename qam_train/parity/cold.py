# SPDX-License-Identifier: Apache-2.0
"""Temperature 0 of the official code: the behaviour flow plays, the tuned flow is trained beside it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from qam_train import flow
from qam_train.networks import velocity_field


def playing_the_clone(kind: type[Any]) -> type[Any]:
    """A class of the adjoint family that acts and bootstraps with the online behaviour flow.

    Official code of QAM and BAM at inv_temp = 0. A head's own loss still reads the tuned flow, and a
    one-step head goes on acting by itself.
    """

    class Cold(kind):
        def policy(self, s: Tensor, noise: Tensor) -> Tensor:
            if not hasattr(self, "parts"):
                return self.clone(s, noise)
            nets = dataclasses.replace(self.head_nets(), flow=self.clone)
            acted: Tensor = self.parts.head.act(self.config, nets, s, noise)[0]
            return acted

        @torch.no_grad()
        def clone(self, s: Tensor, noise: Tensor) -> Tensor:
            field = velocity_field(self.constant, "slow", s)
            return flow.sample(field, noise, self.config.flow_steps)

    return Cold
