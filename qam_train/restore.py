# SPDX-License-Identifier: Apache-2.0
"""Agents from checkpoints: the metadata says which class, sizes and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qam_ros.contract.errors import ConfigError, nearest
from qam_train.agents import base
from qam_train.agents.registry import METHODS
from qam_train.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from qam_train.config import from_mapping, to_mapping
from qam_train.networks import Params

Agent = base.Agent[Any, Any]  # of any method
PREFIX = "agent/"


def agent_tensors(agent: Agent) -> Params:
    """Tensors of an agent as they stand in a checkpoint."""
    return {PREFIX + name: value for name, value in agent.state_dict().items()}


def agent_metadata(agent: Agent) -> dict[str, Any]:
    """Metadata that rebuilds an agent without any other file."""
    return {
        "algorithm": agent.algorithm,
        "agent": to_mapping(agent.config),
        "observation_size": agent.normaliser.size,
        "action_size": agent.chunk_width // agent.config.chunk,
    }


def restore_agent(
    checkpoint: Path | Checkpoint, device: torch.device | str = "cpu"
) -> Agent:
    """Rebuild an agent with everything it continues from.

    Args:
        checkpoint: a file, or what read_checkpoint returned.
        device: where its tensors shall be.

    Raises:
        CheckpointError: as read_checkpoint, or an algorithm that is not known here.
        ConfigError: the settings or tensors do not fit.
    """
    held = read_checkpoint(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    metadata: Mapping[str, Any] = held.metadata
    name = metadata.get("algorithm", "")
    if name not in METHODS:
        raise CheckpointError(
            f"checkpoint: algorithm '{name}' is not known; {nearest(name, METHODS)}"
        )
    method = METHODS[name]
    config = from_mapping(method.config, metadata["agent"], "checkpoint")
    sizes = metadata["observation_size"], metadata["action_size"]
    agent = method.agent.init(config, *sizes, torch.Generator(device))
    agent.load_state_dict(
        {
            name.removeprefix(PREFIX): value
            for name, value in held.tensors.items()
            if name.startswith(PREFIX)
        }
    )
    return agent


def restore_trained(path: Path) -> Agent:
    """Rebuild the agent of a run's method, as online training continues it.

    Args:
        path: a checkpoint file.

    Raises:
        ConfigError: it holds the behaviour-cloning stage.
        CheckpointError, ConfigError: as restore_agent.
    """
    held = read_checkpoint(path)
    if held.metadata.get("stage") == "behaviour":
        raise ConfigError(
            f"{path}: holds the behaviour-cloning stage, which online training does not continue; give "
            "a checkpoint of the method's own stage"
        )
    return restore_agent(held)
