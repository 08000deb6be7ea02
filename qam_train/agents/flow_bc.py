# SPDX-License-Identifier: Apache-2.0
"""Behaviour-cloned flow: the velocity net 'slow' alone, trained by flow matching on the data.

The base of adjoint matching and the policy it is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qam_train import flow
from qam_train.agents.base import Agent, draw_flow
from qam_train.agents.common import draw_normal, draw_uniform
from qam_train.config import AdjointConfig, AgentConfig
from qam_train.data.dataset import ChunkBatch
from qam_train.deployment import FlowPolicy
from qam_train.networks import Params, velocity_field


@dataclass(frozen=True)
class FlowNoise:
    """Random numbers of one update.

    Args:
        start: (B, D), normal; start of the path.
        time: (B, 1), uniform on [0, 1); time on the path.
    """

    start: Tensor
    time: Tensor


class FlowBCAgent(Agent[AdjointConfig, FlowNoise]):
    """Parameters and optimiser of one behaviour-cloned flow."""

    algorithm = "flow_bc"
    settings = AgentConfig
    averages: ClassVar = {}
    policy_net = "slow"
    behaviour_nets = ("slow",)

    @classmethod
    def draw_nets(
        cls,
        config: AdjointConfig,
        observation_size: int,
        width: int,
        generator: torch.Generator,
    ) -> Params:
        """The velocity net alone."""
        return draw_flow(config, "slow", observation_size, width, generator)

    def loss(
        self, batch: ChunkBatch, noise: FlowNoise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow matching."""
        s, a = self.inputs(batch)
        field = velocity_field(self.trained, "slow", s)
        loss, metrics = flow.flow_matching_loss(
            field, a, noise.start, noise.time, batch.valid
        )
        return loss, {"loss": loss.detach(), **metrics}

    def draw_noise(self, batch_size: int, generator: torch.Generator) -> FlowNoise:
        """Draw the noise of one update on the generator's device."""
        return FlowNoise(
            start=draw_normal(generator, batch_size, self.chunk_width),
            time=draw_uniform(generator, batch_size, 1),
        )

    def policy(self, s: Tensor, noise: Tensor) -> Tensor:
        """Clipped n Euler steps of the cloned flow."""
        field = velocity_field(self.trained, "slow", s)
        return flow.sample(field, noise, self.config.flow_steps)

    def deployment(self) -> FlowPolicy:
        """The cloned flow; without a critic one candidate is as good as many."""
        return FlowPolicy("slow", self.config.flow_steps)

    def rank(self, s: Tensor, candidates: Tensor) -> Tensor:
        """All alike: there is no critic."""
        return s.new_zeros((len(candidates), len(s)))
