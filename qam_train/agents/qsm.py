# SPDX-License-Identifier: Apache-2.0
"""QSM: the score of a diffusion policy matched to the critic's action gradient (arXiv 2312.11752)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from qam_train import diffusion
from qam_train.agents.diffusion_policy import (
    DiffusionAgent,
    DiffusionConfig,
    Process,
)
from qam_train.config import require


@dataclass(frozen=True)
class QSMConfig(DiffusionConfig):
    """Numbers of QSM.

    Args:
        tau: inverse temperature.
        sampler: how actions are drawn, in the bootstrap and deployed, too. 'jump': each step goes to
            the predicted action and adds noise (official code); 'posterior': ancestral sampling,
            the process that the noise predictor is trained to reverse.
    """

    alpha: float = 30.0
    tau: float = 10.0
    sampler: Process = "jump"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.tau >= 0.0, "tau", "a number >= 0", self.tau)


class QSMAgent(DiffusionAgent[QSMConfig]):
    """Predicted noise is regressed to -tau grad Q, beside the denoising loss."""

    algorithm = "qsm"
    settings = QSMConfig

    def improvement(
        self,
        predicted: Tensor,
        gradient: Tensor,
        level: Tensor,  # noqa: ARG002
    ) -> Tensor:
        """mean_D (eps_hat + tau grad Q)^2."""
        return diffusion.denoising_error(predicted, -self.config.tau * gradient)

    @property
    def process(self) -> Process:
        """The configured sampler."""
        return self.config.sampler
