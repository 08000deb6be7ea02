# SPDX-License-Identifier: Apache-2.0
"""TRQAM: QAM whose temperature keeps the path KL on a budget (arXiv 2605.27079)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from qam_train.agents.adjoint_family import AdjointAgent
from qam_train.agents.adjoint_parts import DualTemperature
from qam_train.agents.qam import QAMAgent
from qam_train.config import AdjointConfig
from qam_train.dual import DualConfig


@dataclass(frozen=True)
class TRQAMConfig(AdjointConfig):
    """Numbers of TRQAM."""

    dual: DualConfig = field(default_factory=DualConfig)


class TRQAMAgent(AdjointAgent[TRQAMConfig]):
    """Memoryless rollout, lean adjoint, dual temperature."""

    algorithm = "trqam"
    settings = TRQAMConfig
    parts = dataclasses.replace(QAMAgent.parts, temperature=DualTemperature())
