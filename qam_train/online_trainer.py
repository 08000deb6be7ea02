# SPDX-License-Identifier: Apache-2.0
"""Online training: streamed rows into the replay, one update for each row (or as UTD says).

It knows no ROS, no robot and no files: the learner node and `qam finetune` drive the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qam_ros.contract.errors import ConfigError
from qam_train.checkpoint import Checkpoint, go_on_drawing
from qam_train.config import to_mapping
from qam_train.data.dataset import FlatDataset
from qam_train.data.replay import Replay
from qam_train.data.stream_replay import Rows, StreamReplay
from qam_train.learner_config import LearnerConfig
from qam_train.offline_trainer import check_finite
from qam_train.restore import Agent, agent_metadata, agent_tensors, restore_agent

GENERATOR = "generator/learner"
# Settings a resumed run may change: they do not change what is computed.
FREE_ON_RESUME = {
    *(
        "checkpoint_every",
        "keep_checkpoints",
        "log_every",
        "reoffer_s",
        "stall_s",
        "threads",
        "window",
    ),
    "max_probe_change",
}


class OnlineTrainer:
    """Agent, replay and the order of updates of one online run.

    Args:
        config: settings.
        agent: the agent after offline training; continues with its optimiser and dual state.
        offline: the dataset it was trained on.

    Raises:
        ConfigError: the settings give a budget to a method without a trust region.
    """

    def __init__(
        self, config: LearnerConfig, agent: Agent, offline: FlatDataset
    ) -> None:
        self.config = config
        self.agent = agent
        if config.budget is not None:
            agent.aim_at(config.budget)
        self.stream = StreamReplay(Replay(offline, config.online_fraction))
        self.generator = torch.Generator(device=offline.rewards.device).manual_seed(
            config.seed
        )
        self.updates = 0

    @property
    def rows(self) -> int:
        """Rows taken in."""
        return self.stream.counters.received

    @property
    def due(self) -> int:
        """Updates the rows have paid for that are still to do."""
        return self.config.updates_due(self.rows) - self.updates

    @property
    def complete(self) -> bool:
        """Whether all updates of the run are done."""
        return self.updates >= self.config.total_updates

    def extend(self, rows: Rows) -> None:
        """Take over rows whose keys were never taken over before."""
        self.stream.extend(rows)

    def update(self) -> dict[str, Tensor]:
        """One update; returns its metrics.

        Raises:
            NonFiniteError: loss or gradient is not finite; names the terms. The agent is not to be
                used any more; the robot keeps its policy.
        """
        agent, config = self.agent, self.config
        batch = agent.draw_batch(
            self.stream.replay, self.generator, pad_terminated=config.pad_terminated
        )
        noise = agent.draw_noise(agent.config.batch_size, self.generator)
        metrics = agent.update(batch, noise, config.learning_rate(self.updates))
        self.updates += 1
        check_finite(metrics, "online", self.updates)
        return metrics

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and metadata that the run continues from; the rows are in the replay log."""
        tensors = {**agent_tensors(self.agent), GENERATOR: self.generator.get_state()}
        metadata = {
            **agent_metadata(self.agent),
            "stage": "online",
            "update": self.updates,
            "rows": self.rows,
            "config": to_mapping(self.config),
        }
        return tensors, metadata

    def restore(self, held: Checkpoint) -> None:
        """Go back to a checkpoint(); rows are taken in separately.

        Raises:
            ConfigError: it was made with other settings.
        """
        check_unchanged(to_mapping(self.config), held.metadata["config"])
        self.agent = restore_agent(held, self.generator.device)
        go_on_drawing(self.generator, held.tensors[GENERATOR])
        self.updates = int(held.metadata["update"])


def check_unchanged(now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Refuse to resume a run with settings that change what it computes.

    Raises:
        ConfigError: names the first setting that changed.
    """
    for key, value in now.items():
        if key not in FREE_ON_RESUME and value != then.get(key):
            raise ConfigError(
                f"the online run was made with {key} = {then.get(key)}, now it is {value}; resume with "
                "the run's own config.yaml, or start in another directory"
            )
