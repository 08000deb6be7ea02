# SPDX-License-Identifier: Apache-2.0
"""QAM-E: QAM with a tanh-Gaussian edit of the flow's action (arXiv 2601.14234)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from qam_train.agents.adjoint_family import AdjointAgent
from qam_train.agents.heads import EditHead
from qam_train.agents.qam import QAMAgent
from qam_train.config import AgentConfig, require


@dataclass(frozen=True)
class EditConfig:
    """Numbers of the edit head.

    Args:
        scale: c, largest edit of each number of the chunk.
        target_entropy: the entropy is driven to minus this per number of the chunk.
    """

    scale: float = 0.1
    target_entropy: float = 0.5

    def __post_init__(self) -> None:
        require(self.scale > 0.0, "scale", "a positive number", self.scale)


@dataclass(frozen=True)
class QAMEditConfig(AgentConfig):
    """Numbers of QAM-E."""

    edit: EditConfig = field(default_factory=EditConfig)


class QAMEditAgent(AdjointAgent[QAMEditConfig]):
    """QAM whose edited action is played and bootstrapped from."""

    algorithm = "qam_edit"
    settings = QAMEditConfig
    parts = dataclasses.replace(QAMAgent.parts, head=EditHead())
