# SPDX-License-Identifier: Apache-2.0
"""CGQL-M: guidance by a critic that has learnt the mean value of noised actions."""

from __future__ import annotations

from torch import Tensor

from qam_train import guidance
from qam_train.agents.base import Metrics
from qam_train.agents.cgql import CGQLNoise, GuidedAgent, NoisyCGQLConfig
from qam_train.data.dataset import ChunkBatch


class CGQLMAgent(GuidedAgent[NoisyCGQLConfig]):
    """Critic at t, regressed by squares."""

    algorithm = "cgql_m"
    settings = NoisyCGQLConfig

    def noisy_loss(self, batch: ChunkBatch, noise: CGQLNoise) -> tuple[Tensor, Metrics]:
        """Nu mean valid (Q_t - Q_1)^2."""
        error = guidance.squared_time_loss(*self.noisy_values(batch, noise))
        loss = (error * batch.valid).mean()
        return self.config.noisy * loss, {"critic/noisy_loss": loss.detach()}

    def guidance_time(self, t: float) -> float:
        """The step's own."""
        return t
