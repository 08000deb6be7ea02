# SPDX-License-Identifier: Apache-2.0
"""What methods on top of one behaviour-cloned flow share: critic, flow net 'flow', their noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from qam_train import flow
from qam_train.agents.base import Agent, Metrics, draw_critic, draw_flow
from qam_train.agents.common import draw_normal, draw_uniform
from qam_train.config import FlowConfig
from qam_train.data.dataset import ChunkBatch
from qam_train.deployment import Deployment, FlowPolicy, best_of
from qam_train.networks import Params, velocity_field

C = TypeVar("C", bound=FlowConfig)


@dataclass(frozen=True)
class FlowActorNoise:
    """Random numbers of one update.

    Args:
        next_action: (B, W), or (N, B, W) for the best of N; noise of the policy at the next
            observation, as for act().
        flow_start: (B, D), normal; start of the behaviour path.
        flow_time: (B, 1), uniform on [0, 1); time on the behaviour path.
        actor: (B, W), normal; noise of the actor's own loss; not read where it takes none.
    """

    next_action: Tensor
    flow_start: Tensor
    flow_time: Tensor
    actor: Tensor


class BehaviourFlowAgent(Agent[C, FlowActorNoise]):
    """Critic ensemble 'critic' and behaviour flow 'flow'."""

    policy_net: ClassVar[str] = "flow"
    behaviour_nets: ClassVar[tuple[str, ...]] = ("flow",)
    cloned_net: ClassVar[str | None] = "flow"

    @classmethod
    def draw_nets(
        cls, config: C, observation_size: int, width: int, generator: torch.Generator
    ) -> Params:
        """Critic and flow; a method adds its own nets."""
        params = draw_critic(config, observation_size + width, generator)
        return params | draw_flow(config, "flow", observation_size, width, generator)

    def behaviour_loss(
        self, batch: ChunkBatch, noise: FlowActorNoise
    ) -> tuple[Tensor, Metrics]:
        """Flow matching on the data."""
        s, a = self.inputs(batch)
        field = velocity_field(self.trained, "flow", s)
        return flow.flow_matching_loss(
            field, a, noise.flow_start, noise.flow_time, batch.valid
        )

    def policy(self, s: Tensor, noise: Tensor) -> Tensor:
        """Clipped n Euler steps of the flow."""
        field = velocity_field(self.trained, "flow", s)
        return flow.sample(field, noise, self.config.flow_steps)

    def deployment(self) -> Deployment:
        """The flow."""
        return best_of(self.config, FlowPolicy("flow", self.config.flow_steps))

    def draw_noise(self, batch_size: int, generator: torch.Generator) -> FlowActorNoise:
        """Draw the noise of one update on the generator's device."""
        width = self.chunk_width
        return FlowActorNoise(
            next_action=self.draw_action_noise(batch_size, generator),
            flow_start=draw_normal(generator, batch_size, width),
            flow_time=draw_uniform(generator, batch_size, 1),
            actor=draw_normal(generator, batch_size, self.noise_width),
        )

    @property
    def chunk_width(self) -> int:
        """D = H*A, numbers in a chunk."""
        return self.parameters["flow/0/weight"].shape[0] - self.normaliser.size - 1
