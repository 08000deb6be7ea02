# SPDX-License-Identifier: Apache-2.0
"""IFQL: implicit Q-learning with a behaviour flow, acting by the best of N samples.

After IQL (arXiv 2110.06169) and IDQL (arXiv 2304.10573).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qam_train import critic
from qam_train.agents.base import Metrics, draw_value, spread
from qam_train.agents.behaviour_flow import BehaviourFlowAgent, FlowActorNoise
from qam_train.config import FlowConfig, require
from qam_train.data.dataset import ChunkBatch
from qam_train.deployment import Deployment, FlowPolicy, best_of
from qam_train.expectile import expectile_loss
from qam_train.networks import Params, mlp


@dataclass(frozen=True)
class IFQLConfig(FlowConfig):
    """Numbers of IFQL.

    Args:
        kappa: expectile of the state value.
    """

    best_of: int = 32
    kappa: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0.0 < self.kappa < 1.0, "kappa", "a number in (0, 1)", self.kappa)


class IFQLAgent(BehaviourFlowAgent[IFQLConfig]):
    """Critic, state value, behaviour flow."""

    algorithm = "ifql"
    settings = IFQLConfig

    @classmethod
    def draw_nets(
        cls,
        config: IFQLConfig,
        observation_size: int,
        width: int,
        generator: torch.Generator,
    ) -> Params:
        """Critic, flow and state value."""
        params = super().draw_nets(config, observation_size, width, generator)
        return params | draw_value(config, observation_size, generator)

    def loss(self, batch: ChunkBatch, noise: FlowActorNoise) -> tuple[Tensor, Metrics]:
        """Expectile value, critic bootstrapped from the value, flow matching."""
        s, a = self.inputs(batch)
        q = critic.ensemble(self.trained, "critic", s, a)
        y = self._target(batch)
        critic_loss, metrics = critic.td_loss(q, y, batch.valid)
        value_loss, value_metrics = self._value_loss(s, a)
        flow_loss, flow_metrics = self.behaviour_loss(batch, noise)
        loss = critic_loss + value_loss + flow_loss
        metrics = metrics | value_metrics | flow_metrics | spread("critic/target", y)
        return loss, {"loss": loss.detach(), **metrics}

    @torch.no_grad()
    def _target(self, batch: ChunkBatch) -> Tensor:
        """R_h + gamma^h m V(s') (B,)."""
        s_next = self.normaliser(batch.next_observations)
        v = mlp(self.constant, "value", s_next).squeeze(-1)
        return batch.rewards + self.chunk_discount * batch.masks * v

    def _value_loss(self, s: Tensor, a: Tensor) -> tuple[Tensor, Metrics]:
        """Expectile of the pessimistic target critic at the data; valid is not asked (official)."""
        v = mlp(self.trained, "value", s).squeeze(-1)
        with torch.no_grad():
            q = critic.ensemble(self.targets, "target_critic", s, a)
            target = critic.pessimistic(q, self.config.rho)
        loss = expectile_loss(target - v, self.config.kappa).mean(-1)
        return loss, {"value/loss": loss.detach(), **spread("value/v", v.detach())}

    def score(self, values: Tensor) -> Tensor:
        """The least value over the online ensemble, not the mean (official code)."""
        return values.amin(0)

    def deployment(self) -> Deployment:
        """The flow's candidate with the highest of the least values."""
        flow = FlowPolicy("flow", self.config.flow_steps)
        return best_of(self.config, flow, score="min")
