# SPDX-License-Identifier: Apache-2.0
"""FEdit: a behaviour flow whose action a tanh-Gaussian actor edits (after EXPO, arXiv 2507.07986)."""

from __future__ import annotations

from dataclasses import dataclass, field

from qam_train.agents.fql import HeadedFlowAgent
from qam_train.agents.heads import EditHead
from qam_train.agents.qam_edit import EditConfig
from qam_train.config import MaskedConfig


@dataclass(frozen=True)
class FEditConfig(MaskedConfig):
    """Numbers of FEdit."""

    edit: EditConfig = field(default_factory=lambda: EditConfig(scale=0.2))


class FEditAgent(HeadedFlowAgent[FEditConfig]):
    """Critic, behaviour flow, edit actor."""

    algorithm = "fedit"
    settings = FEditConfig
    head = EditHead()
