# SPDX-License-Identifier: Apache-2.0
"""FQL: one-step actor distilled from a behaviour flow and pushed up the critic (arXiv 2502.02538)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from qam_train import flow
from qam_train.agents.base import Metrics
from qam_train.agents.behaviour_flow import BehaviourFlowAgent, FlowActorNoise
from qam_train.agents.heads import Head, HeadNets, OneStepHead, row_weight
from qam_train.config import MaskedConfig, require
from qam_train.data.dataset import ChunkBatch
from qam_train.deployment import Deployment, FlowPolicy, best_of
from qam_train.networks import Params, velocity_field

C = TypeVar("C", bound=MaskedConfig)


@dataclass(frozen=True)
class FQLConfig(MaskedConfig):
    """Numbers of FQL.

    Args:
        distill: alpha, weight of the distance between one-step actor and flow.
    """

    distill: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.distill > 0.0, "distill", "a positive number", self.distill)


class HeadedFlowAgent(BehaviourFlowAgent[C]):
    """A behaviour flow with a head on top: critic, flow and head learn together.

    Attributes:
        head: what is played and bootstrapped from.
    """

    head: ClassVar[Head]

    @classmethod
    def draw_nets(
        cls, config: C, observation_size: int, width: int, generator: torch.Generator
    ) -> Params:
        """Critic, flow and the head's nets."""
        params = super().draw_nets(config, observation_size, width, generator)
        head = cls.head.draw_nets(config, observation_size, width, generator)
        return params | head

    def loss(self, batch: ChunkBatch, noise: FlowActorNoise) -> tuple[Tensor, Metrics]:
        """Critic, flow matching and the head's loss; each trains its own nets only."""
        critic_loss, metrics = self.critic_loss(batch, noise.next_action)
        flow_loss, flow_metrics = self.behaviour_loss(batch, noise)
        s, _ = self.inputs(batch)
        weight = row_weight(self.config, batch.valid)
        head_loss, head_metrics = self.head.loss(
            self.config, self.head_nets(), s, noise.actor, weight
        )
        loss = critic_loss + flow_loss + head_loss
        return loss, {"loss": loss.detach(), **metrics, **flow_metrics, **head_metrics}

    def policy(self, s: Tensor, noise: Tensor) -> Tensor:
        """The head's action."""
        return self.head.act(self.config, self.head_nets(), s, noise)[0]

    def deployment(self) -> Deployment:
        """The head on top of the flow."""
        flow = FlowPolicy("flow", self.config.flow_steps)
        return best_of(self.config, self.head.deployment(self.config, flow))

    @property
    def noise_width(self) -> int:
        """As the head takes it."""
        return self.head.noise_width(self.chunk_width)

    def head_nets(self) -> HeadNets:
        """What the head may read; the flow's action carries no gradient."""

        @torch.no_grad()
        def sample(s: Tensor, z: Tensor) -> Tensor:
            field = velocity_field(self.constant, "flow", s)
            return flow.sample(field, z, self.config.flow_steps)

        return HeadNets(self.trained, self.constant, sample)


class FQLAgent(HeadedFlowAgent[FQLConfig]):
    """Critic, behaviour flow, one-step actor."""

    algorithm = "fql"
    settings = FQLConfig
    head = OneStepHead()
