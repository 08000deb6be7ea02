# SPDX-License-Identifier: Apache-2.0
"""CGQL-L: guidance by a critic that has learnt the soft maximum over noised actions (LINEX)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from qam_train import guidance
from qam_train.agents.base import Metrics
from qam_train.agents.cgql import CGQLNoise, GuidedAgent, NoisyCGQLConfig
from qam_train.data.dataset import ChunkBatch


@dataclass(frozen=True)
class CGQLLConfig(NoisyCGQLConfig):
    """Numbers of CGQL-L.

    Args:
        linear_from: exponent d beyond which the loss is linear.
    """

    linear_from: float = 5.0


class CGQLLAgent(GuidedAgent[CGQLLConfig]):
    """Critic at t, regressed by LINEX."""

    algorithm = "cgql_l"
    settings = CGQLLConfig

    def noisy_loss(self, batch: ChunkBatch, noise: CGQLNoise) -> tuple[Tensor, Metrics]:
        """Nu mean valid (e^d + tau Q_t), d = tau (Q_1 - Q_t)."""
        tau = self.config.tau
        q_t, q_1 = self.noisy_values(batch, noise)
        error = guidance.linex_time_loss(q_t, q_1, tau, self.config.linear_from)
        loss = (error * batch.valid).mean()
        metrics = {
            "critic/noisy_loss": loss.detach(),
            "critic/exp_bias": guidance.exponential_bias(q_t.detach(), q_1, tau),
        }
        return self.config.noisy * loss, metrics

    def guidance_time(self, t: float) -> float:
        """The step's own."""
        return t
