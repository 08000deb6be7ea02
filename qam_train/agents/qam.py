# SPDX-License-Identifier: Apache-2.0
"""QAM: Q-learning with adjoint matching (arXiv 2601.14234).

The tuned flow's samples follow p_beta(a | s) exp(tau Q(s, a)): memoryless rollout, lean adjoint,
fixed temperature.
"""

from __future__ import annotations

from qam_train.agents.adjoint_family import AdjointAgent, QAMNoise
from qam_train.agents.adjoint_parts import (
    FixedTemperature,
    MemorylessPath,
    Parts,
    lean,
)
from qam_train.config import AgentConfig

__all__ = ["QAMAgent", "QAMNoise"]


class QAMAgent(AdjointAgent[AgentConfig]):
    """Parameters, targets and optimiser of one QAM agent."""

    algorithm = "qam"
    settings = AgentConfig
    parts = Parts(MemorylessPath(), lean, FixedTemperature())
