# SPDX-License-Identifier: Apache-2.0
"""FBRAC: a behaviour flow trained through its own sampler to raise the critic."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from qam_train import critic
from qam_train.agents.base import Metrics
from qam_train.agents.behaviour_flow import BehaviourFlowAgent, FlowActorNoise
from qam_train.config import FlowConfig, require
from qam_train.data.dataset import ChunkBatch


@dataclass(frozen=True)
class FBRACConfig(FlowConfig):
    """Numbers of FBRAC.

    Args:
        alpha: the value enters with weight 1 / alpha beside flow matching.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha > 0.0, "alpha", "a positive number", self.alpha)


class FBRACAgent(BehaviourFlowAgent[FBRACConfig]):
    """Critic and one flow."""

    algorithm = "fbrac"
    settings = FBRACConfig
    cloned_net = None  # the flow is the policy itself

    def loss(self, batch: ChunkBatch, noise: FlowActorNoise) -> tuple[Tensor, Metrics]:
        """Critic, flow matching, and -mean Q(s, flow(s, z)) / alpha.

        The gradient runs through all n steps and the final clip (zero outside the box); online
        critic, rows not weighted by valid (official code).
        """
        critic_loss, metrics = self.critic_loss(batch, noise.next_action)
        flow_loss, flow_metrics = self.behaviour_loss(batch, noise)
        s, _ = self.inputs(batch)
        action = self.policy(s, noise.actor)
        q_loss = -critic.ensemble(self.constant, "critic", s, action).mean()
        loss = critic_loss + flow_loss + q_loss / self.config.alpha
        more = {"actor/q_loss": q_loss.detach()}
        return loss, {"loss": loss.detach(), **metrics, **flow_metrics, **more}
