# SPDX-License-Identifier: Apache-2.0
"""Settings of offline training: a method, its numbers, and the stages it is trained in."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qam_ros.contract.errors import ConfigError
from qam_train.agents.registry import METHODS, find_method
from qam_train.config import (
    AgentConfig,
    FlowConfig,
    MethodConfig,
    StageConfig,
    require,
)


@dataclass(frozen=True)
class OfflineConfig:
    """Offline training: behaviour cloning, then the method.

    Args:
        method: name of the method, see qam_train/agents/registry.py.
        seed: of initialisation, sampling and training noise.
        pad_terminated: keep chunks that cross a terminated end: actions after it come from other
            rows (mask 0, valid 1). False: such chunks weigh 0 (official code).
        standardise: observations enter the nets as (s - mean) / (std + 0.01) of the data.
        matmul_precision: torch's float32 matmul precision. 'medium' is faster on some CPUs and
            rounds to bfloat16 on others.
        threads: CPU threads.
        log_every, checkpoint_every: in updates.
        keep_checkpoints: older checkpoints are removed; 0 keeps all.
        updates_per_replay: on a GPU, updates that are recorded together and replayed by one launch
            (captured.py); 0: none are recorded.
        behaviour: the behaviour-cloning stage; 0 updates: no warm start, nets start independently.
        offline: the stage of the method itself; 0 updates leave its fresh nets.
        agent: the method's numbers.
    """

    method: str = "qam"
    seed: int = 0
    pad_terminated: bool = False
    standardise: bool = True
    matmul_precision: typing.Literal["highest", "high", "medium"] = "highest"
    threads: int = 1
    log_every: int = 100
    checkpoint_every: int = 10_000
    keep_checkpoints: int = 3
    updates_per_replay: int = 10
    behaviour: StageConfig = field(default_factory=StageConfig)
    offline: StageConfig = field(default_factory=lambda: StageConfig(updates=1_000_000))
    agent: MethodConfig = field(default_factory=AgentConfig)

    def __post_init__(self) -> None:
        for name in ("threads", "log_every", "checkpoint_every"):
            value = getattr(self, name)
            require(value >= 1, name, "a positive number", value)
        for name in ("keep_checkpoints", "updates_per_replay"):
            value = getattr(self, name)
            require(value >= 0, name, "a number >= 0", value)
        method = find_method(self.method)
        if type(self.agent) is not method.config:
            raise ConfigError(
                f"agent: expected the {method.config.__name__} of method '{self.method}', got a "
                f"{type(self.agent).__name__}"
            )
        if self.behaviour.updates > 0 and not method.agent.behaviour_nets:
            able = [name for name, m in METHODS.items() if m.agent.behaviour_nets]
            raise ConfigError(
                f"behaviour.updates: expected 0, got {self.behaviour.updates}: method "
                f"'{self.method}' has no behaviour flow to clone; those that have one: "
                f"{', '.join(able)}"
            )

    @classmethod
    def field_types(cls, mapping: Mapping[str, Any]) -> dict[str, type]:
        """The class of `agent`, which the method decides (see config.from_mapping)."""
        return {"agent": find_method(mapping.get("method", cls.method)).config}

    @property
    def total_updates(self) -> int:
        """Updates of both stages."""
        return self.behaviour.updates + self.offline.updates


def clone_settings(config: MethodConfig) -> AgentConfig:
    """Numbers of the cloned behaviour flow: those it depends on, whatever the method.

    So methods of the same sizes share a clone. The joint clip is that of the released
    pre-training.
    """
    shared = ("chunk", "horizon", "batch_size", "actor")
    numbers = {name: getattr(config, name) for name in shared}
    if isinstance(config, FlowConfig):
        numbers["flow_steps"] = config.flow_steps
    return AgentConfig(**numbers)
