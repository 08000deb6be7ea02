# SPDX-License-Identifier: Apache-2.0
"""SQAM: adjoint matching on bridge states with a scalar adjoint (arXiv 2610.10437)."""

from __future__ import annotations

from dataclasses import dataclass

from qam_train.agents.adjoint_family import AdjointAgent
from qam_train.agents.adjoint_parts import (
    BridgePath,
    DualTemperature,
    Parts,
    scalar,
    value_penalty,
)
from qam_train.agents.trqam import TRQAMConfig
from qam_train.config import require, require_positive


@dataclass(frozen=True)
class SQAMConfig(TRQAMConfig):
    """Numbers of SQAM.

    Args:
        bridges: bridge states per row, times 1/bridges .. 1.
        penalty: c, weight of the value penalty; 0 leaves it out.
    """

    bridges: int = 10
    penalty: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "bridges")
        require(self.penalty >= 0.0, "penalty", "a number >= 0", self.penalty)


class SQAMAgent(AdjointAgent[SQAMConfig]):
    """Bridge states, scalar adjoint, dual temperature, value penalty."""

    algorithm = "sqam"
    settings = SQAMConfig
    parts = Parts(BridgePath(), scalar, DualTemperature(), penalty=value_penalty)
