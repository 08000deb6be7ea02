# SPDX-License-Identifier: Apache-2.0
"""Every method by name: its agent class and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qam_ros.contract.errors import ConfigError, nearest
from qam_train.agents.bam import BAMAgent, BAMConfig
from qam_train.agents.base import Agent
from qam_train.agents.cgql import CGQLAgent, CGQLConfig, NoisyCGQLConfig
from qam_train.agents.cgql_linex import CGQLLAgent, CGQLLConfig
from qam_train.agents.cgql_mse import CGQLMAgent
from qam_train.agents.dac import DACAgent
from qam_train.agents.diffusion_policy import DiffusionConfig
from qam_train.agents.dsrl import DSRLAgent, DSRLConfig
from qam_train.agents.fawac import FAWACAgent, FAWACConfig
from qam_train.agents.fbrac import FBRACAgent, FBRACConfig
from qam_train.agents.fedit import FEditAgent, FEditConfig
from qam_train.agents.flow_bc import FlowBCAgent
from qam_train.agents.fql import FQLAgent, FQLConfig
from qam_train.agents.ifql import IFQLAgent, IFQLConfig
from qam_train.agents.qam import QAMAgent
from qam_train.agents.qam_edit import QAMEditAgent, QAMEditConfig
from qam_train.agents.qam_onestep import QAMOneStepAgent, QAMOneStepConfig
from qam_train.agents.qsm import QSMAgent, QSMConfig
from qam_train.agents.rebrac import ReBRACAgent, ReBRACConfig
from qam_train.agents.rlpd import RLPDAgent, RLPDConfig
from qam_train.agents.rql import RQLAgent, RQLConfig
from qam_train.agents.sqam import SQAMAgent, SQAMConfig
from qam_train.agents.trqam import TRQAMAgent, TRQAMConfig
from qam_train.config import AgentConfig, MethodConfig


@dataclass(frozen=True)
class Method:
    """One method: the class that trains and acts, and the dataclass of its numbers."""

    agent: type[Agent[Any, Any]]
    config: type[MethodConfig]


METHODS: dict[str, Method] = {
    method.agent.algorithm: method
    for method in (
        Method(FlowBCAgent, AgentConfig),
        Method(QAMAgent, AgentConfig),
        Method(QAMEditAgent, QAMEditConfig),
        Method(QAMOneStepAgent, QAMOneStepConfig),
        Method(TRQAMAgent, TRQAMConfig),
        Method(SQAMAgent, SQAMConfig),
        Method(BAMAgent, BAMConfig),
        Method(FQLAgent, FQLConfig),
        Method(IFQLAgent, IFQLConfig),
        Method(FAWACAgent, FAWACConfig),
        Method(FBRACAgent, FBRACConfig),
        Method(FEditAgent, FEditConfig),
        Method(ReBRACAgent, ReBRACConfig),
        Method(RLPDAgent, RLPDConfig),
        Method(DSRLAgent, DSRLConfig),
        Method(QSMAgent, QSMConfig),
        Method(DACAgent, DiffusionConfig),
        Method(RQLAgent, RQLConfig),
        Method(CGQLAgent, CGQLConfig),
        Method(CGQLMAgent, NoisyCGQLConfig),
        Method(CGQLLAgent, CGQLLConfig),
    )
}


def find_method(name: str) -> Method:
    """Method by name.

    Raises:
        ConfigError: unknown; names the nearest.
    """
    if name not in METHODS:
        raise ConfigError(f"method '{name}' is not known; {nearest(name, METHODS)}")
    return METHODS[name]
