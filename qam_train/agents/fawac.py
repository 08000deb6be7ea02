# SPDX-License-Identifier: Apache-2.0
"""FAWAC: flow matching weighted by the exponential of the advantage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qam_train import critic, flow
from qam_train.agents.base import Metrics, draw_value
from qam_train.agents.behaviour_flow import BehaviourFlowAgent, FlowActorNoise
from qam_train.config import FlowConfig, require
from qam_train.data.dataset import ChunkBatch
from qam_train.expectile import advantage_weight
from qam_train.networks import Params, mlp, velocity_field


@dataclass(frozen=True)
class FAWACConfig(FlowConfig):
    """Numbers of FAWAC.

    Args:
        tau: inverse temperature of the weights exp(tau (Q - V)), capped at 100.
    """

    tau: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.tau >= 0.0, "tau", "a number >= 0", self.tau)


class FAWACAgent(BehaviourFlowAgent[FAWACConfig]):
    """Critic, state value, one flow."""

    algorithm = "fawac"
    settings = FAWACConfig
    cloned_net = None  # the flow is the policy itself

    @classmethod
    def draw_nets(
        cls,
        config: FAWACConfig,
        observation_size: int,
        width: int,
        generator: torch.Generator,
    ) -> Params:
        """Critic, flow and state value."""
        params = super().draw_nets(config, observation_size, width, generator)
        return params | draw_value(config, observation_size, generator)

    def loss(self, batch: ChunkBatch, noise: FlowActorNoise) -> tuple[Tensor, Metrics]:
        """Critic, value and weighted flow matching."""
        critic_loss, metrics = self.critic_loss(batch, noise.next_action)
        s, a = self.inputs(batch)
        v = mlp(self.trained, "value", s).squeeze(-1)
        value_loss = self._value_loss(s, a, v, batch.valid)
        with torch.no_grad():
            q = critic.ensemble(self.constant, "critic", s, a).mean(-2)
            weight = advantage_weight(q - v, self.config.tau)
        field = velocity_field(self.trained, "flow", s)
        actor_loss, _ = flow.flow_matching_loss(
            field, a, noise.flow_start, noise.flow_time, batch.valid * weight
        )
        loss = critic_loss + value_loss + actor_loss
        more = {
            "value/loss": value_loss.detach(),
            "actor/weighted_flow_loss": actor_loss.detach(),
            "actor/weight_mean": weight.mean(),
        }
        return loss, {"loss": loss.detach(), **metrics, **more}

    def _value_loss(self, s: Tensor, a: Tensor, v: Tensor, valid: Tensor) -> Tensor:
        """Mean over target members and batch of valid (Q_k(s, a) - V(s))^2."""
        with torch.no_grad():
            q = critic.ensemble(self.targets, "target_critic", s, a)
        return critic.td_loss(q - v, torch.zeros_like(v), valid)[0]
