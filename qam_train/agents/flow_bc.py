# SPDX-License-Identifier: Apache-2.0
"""Behaviour-cloned flow: the velocity net 'slow' alone, trained by flow matching on the data.

The base of adjoint matching and the policy it is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qam_train import flow
from qam_train.agents.common import (
    Normaliser,
    copy_net,
    draw_normal,
    draw_uniform,
    load_named,
)
from qam_train.config import AgentConfig
from qam_train.data.dataset import ChunkBatch
from qam_train.networks import Params, init_mlp, velocity_field
from qam_train.optimizer import JointAdam


@dataclass(frozen=True)
class FlowNoise:
    """Random numbers of one update.

    Args:
        start: (B, D), normal; start of the path.
        time: (B, 1), uniform on [0, 1); time on the path.
    """

    start: Tensor
    time: Tensor


class FlowBCAgent:
    """Parameters and optimiser of one behaviour-cloned flow."""

    algorithm = "flow_bc"

    def __init__(
        self, config: AgentConfig, parameters: Params, normaliser: Normaliser
    ) -> None:
        """Take over the tensors of the net 'slow'; init() draws fresh ones."""
        self.config = config
        self.normaliser = normaliser
        self.parameters = {
            name: value.requires_grad_() for name, value in parameters.items()
        }
        self.optimizer = JointAdam(self.parameters, config.clip_norm)

    @classmethod
    def init(
        cls,
        config: AgentConfig,
        observation_size: int,
        action_size: int,
        generator: torch.Generator,
        normaliser: Normaliser | None = None,
    ) -> FlowBCAgent:
        """Draw a fresh net; arguments as in QAMAgent.init."""
        width = config.chunk * action_size
        sizes = (observation_size + width + 1, *config.actor.widths, width)
        parameters = init_mlp(
            "slow", sizes, generator, layer_norm=config.actor.layer_norm
        )
        return cls(
            config,
            parameters,
            normaliser or Normaliser.identity(observation_size, generator.device),
        )

    def update(
        self, batch: ChunkBatch, noise: FlowNoise, learning_rate: float | None = None
    ) -> dict[str, Tensor]:
        """One step of flow matching; returns metrics."""
        field = velocity_field(
            self.parameters, "slow", self.normaliser(batch.observations)
        )
        chunk = batch.actions[:, : self.config.chunk].flatten(1)  # (B, D)
        loss, metrics = flow.flow_matching_loss(
            field, chunk, noise.start, noise.time, batch.valid
        )
        gradients = torch.autograd.grad(loss, list(self.parameters.values()))
        rate = self.config.lr if learning_rate is None else learning_rate
        return {"loss": loss.detach(), **metrics} | self.optimizer.step(gradients, rate)

    def draw_noise(self, batch_size: int, generator: torch.Generator) -> FlowNoise:
        """Draw the noise of one update on the generator's device."""
        return FlowNoise(
            start=draw_normal(generator, batch_size, self.chunk_width),
            time=draw_uniform(generator, batch_size, 1),
        )

    @torch.no_grad()
    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Action chunks, clipped to [-1, 1]: raw (B, O) and normal (B, D) -> (B, H, A)."""
        field = velocity_field(self.parameters, "slow", self.normaliser(observations))
        chunk = flow.integrate(field, noise, self.config.flow_steps).clamp(-1.0, 1.0)
        return chunk.unflatten(-1, (self.config.chunk, -1))

    @property
    def chunk_width(self) -> int:
        """D = H*A, numbers in a chunk."""
        return self.parameters["slow/0/weight"].shape[0] - self.normaliser.size - 1

    def actor_parameters(self) -> Params:
        """Tensors of the deployed velocity net, named 'actor/layer/kind'."""
        return {
            name: value.detach()
            for name, value in copy_net(self.parameters, "slow", "actor").items()
        }

    def state_dict(self) -> Params:
        """Everything that training continues from: net, statistics, optimiser."""
        state = {
            f"parameters/{name}": value.detach()
            for name, value in self.parameters.items()
        }
        state |= {
            f"optimizer/{name}": value for name, value in self.optimizer.state().items()
        }
        return state | self.normaliser.state()

    def load_state_dict(self, state: Params) -> None:
        """Copy a state_dict() back in place.

        Raises:
            ConfigError: a tensor is missing or has another shape.
        """
        load_named(self.state_dict(), state)
