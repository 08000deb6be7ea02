# SPDX-License-Identifier: Apache-2.0
"""DAC: diffusion actor-critic, predicted noise pushed against the critic's gradient (arXiv 2405.20555)."""

from __future__ import annotations

from torch import Tensor

from qam_train.agents.diffusion_policy import (
    DiffusionAgent,
    DiffusionConfig,
    Process,
)


class DACAgent(DiffusionAgent[DiffusionConfig]):
    """Inner product of predicted noise and critic gradient, beside the denoising loss."""

    algorithm = "dac"
    settings = DiffusionConfig

    def improvement(self, predicted: Tensor, gradient: Tensor, level: Tensor) -> Tensor:
        """mean_D sqrt(1 - alpha_hat) grad Q eps_hat; no temperature (official code)."""
        return (level * gradient * predicted).mean(-1)

    @property
    def process(self) -> Process:
        """diffusion.posterior_sample."""
        return "posterior"
