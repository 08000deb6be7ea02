# SPDX-License-Identifier: Apache-2.0
"""QAM-F: QAM with a one-step actor distilled from the flow (arXiv 2601.14234)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from qam_train.agents.adjoint_family import AdjointAgent
from qam_train.agents.heads import OneStepHead
from qam_train.agents.qam import QAMAgent
from qam_train.config import AgentConfig, require


@dataclass(frozen=True)
class QAMOneStepConfig(AgentConfig):
    """Numbers of QAM-F.

    Args:
        distill: alpha, weight of the distance between one-step actor and flow.
    """

    distill: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.distill > 0.0, "distill", "a positive number", self.distill)


class QAMOneStepAgent(AdjointAgent[QAMOneStepConfig]):
    """QAM whose one-step actor is played and bootstrapped from."""

    algorithm = "qam_onestep"
    settings = QAMOneStepConfig
    parts = dataclasses.replace(QAMAgent.parts, head=OneStepHead())
