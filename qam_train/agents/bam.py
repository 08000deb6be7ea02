# SPDX-License-Identifier: Apache-2.0
"""BAM: the objective of adjoint matching by backpropagation through the rollout (arXiv 2601.14234).

Minimises -tau (mean - rho std) Q(s, a_1) + control cost, differentiated through all steps of the
memoryless SDE. Online critic at the unclipped end point; the cost has no step size (official code).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from qam_train import adjoint, critic
from qam_train.agents.adjoint_family import FlowPairAgent, QAMNoise
from qam_train.agents.base import Metrics
from qam_train.config import AgentConfig


@dataclass(frozen=True)
class BAMConfig(AgentConfig):
    """Numbers of BAM; tau weighs the value against a control cost n times QAM's path KL."""


class BAMAgent(FlowPairAgent[BAMConfig]):
    """Critic, behaviour flow, and a tuned flow trained through its own rollout."""

    algorithm = "bam"
    settings = BAMConfig

    def improvement(
        self,
        s: Tensor,
        a: Tensor,  # noqa: ARG002
        noise: QAMNoise,
        weight: Tensor,
    ) -> tuple[Tensor, Metrics]:
        """-tau pessimistic value at the end point + control cost, on the first M rows."""
        rows = noise.rollout_start.shape[0]
        s, weight = s[:rows], weight[:rows]
        end, cost = self.rollout(s, noise, weight)
        q = critic.ensemble(self.constant, "critic", s, end)
        value = (critic.pessimistic(q, self.config.rho) * weight).mean(-1)
        loss = cost - self.config.tau * value
        metrics = {
            "bam/loss": loss.detach(),
            "bam/value": value.detach(),
            "bam/control_cost": cost.detach(),
            # times the step size 1/n and per control period: the path KL of the steps f_theta takes
            "dual/kl_inner": cost.detach()
            / (self.config.flow_steps * self.config.chunk),
        }
        return loss, metrics

    def rollout(
        self, s: Tensor, noise: QAMNoise, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """End point (M, D) and control cost, with gradient to the tuned flow."""
        return adjoint.controlled_rollout(
            self.tuned_field(s),
            self.base_field(s),
            noise.rollout_start,
            noise.rollout,
            weight,
        )
