# SPDX-License-Identifier: Apache-2.0
"""Offline training of any method, update by update: behaviour cloning, then the method.

It knows no files and no display: `qam train` and the suite drive the same one. On the CPU a restored
trainer goes on bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qam_ros.contract.errors import ConfigError, DatasetError, QamError
from qam_train.agents.base import Metrics
from qam_train.agents.common import Normaliser
from qam_train.agents.flow_bc import FlowBCAgent
from qam_train.agents.registry import find_method
from qam_train.captured import CapturedUpdates, recorder_for
from qam_train.checkpoint import Checkpoint, go_on_drawing
from qam_train.config import StageConfig, to_mapping
from qam_train.data.dataset import FlatDataset
from qam_train.offline_config import OfflineConfig, clone_settings
from qam_train.restore import (
    Agent,
    agent_metadata,
    agent_tensors,
    restore_agent,
)

GENERATOR = "generator/loop"
BEHAVIOUR, OFFLINE = "behaviour", "offline"
# Settings a resumed run may change: they touch neither the numbers nor the order of draws.
FREE_ON_RESUME = {
    *("log_every", "checkpoint_every", "keep_checkpoints", "updates_per_replay"),
}
# Settings the clone does not depend on: another method may go on from its checkpoint.
FREE_AFTER_CLONING = FREE_ON_RESUME | {"method", "offline", "agent"}

Snapshot = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, metadata


class NonFiniteError(QamError):
    """Training produced NaN or infinity."""


class OfflineTrainer:
    """Agent, data and the order of updates of one run; updates count over both stages.

    Args:
        config: settings.
        dataset: rows to train on; everything runs on their device.

    Attributes:
        agent: what learns now: the clone in the behaviour stage, then the method's agent.
        behaviour: the clone once its stage is over; None before, and where there is no such stage.
        updates: updates done.
        learning_rate: of the last one.
    """

    def __init__(self, config: OfflineConfig, dataset: FlatDataset) -> None:
        self.config = config
        self._dataset = dataset
        self._device = dataset.rewards.device
        self._normaliser = (
            Normaliser.of(dataset.observations)
            if config.standardise
            else Normaliser.identity(dataset.observation_size, self._device)
        )
        self.generator = torch.Generator(self._device).manual_seed(config.seed)
        self.updates = 0
        self.learning_rate = math.nan
        self.behaviour: FlowBCAgent | None = None
        self._clone: Snapshot | None = None
        self._captured: CapturedUpdates | None = None
        self._settled = 0
        self.agent: Agent = self._draw_clone() if self._cloning else self._draw_agent()

    @property
    def stage(self) -> str:
        """'behaviour' or 'offline': the stage of the next update."""
        return BEHAVIOUR if self._cloning else OFFLINE

    @property
    def complete(self) -> bool:
        """Whether all updates of both stages are done."""
        return self.updates >= self.config.total_updates

    @property
    def dataset(self) -> FlatDataset:
        """Rows that are trained on; may be replaced by others of the same robot."""
        return self._dataset

    @dataset.setter
    def dataset(self, dataset: FlatDataset) -> None:
        old, new = (
            (d.observation_size, d.action_size) for d in (self._dataset, dataset)
        )
        if old != new:
            raise DatasetError(
                f"dataset: expected observations and actions of {old} numbers as before, got {new}; "
                "give a file of the same robot"
            )
        self._dataset = dataset
        if self._captured is not None:
            self._captured.replace(dataset)

    @property
    def stride(self) -> int:
        """Updates that one call should ask for: as many as are recorded together on a GPU."""
        recorded = self._device.type == "cuda"
        return max(1, self.config.updates_per_replay) if recorded else 1

    def update(self, count: int = 1) -> Metrics:
        """That many updates, or as many as the stage has left; returns the last one's metrics.

        After the last one of the behaviour stage the method's agent stands in its place, warm
        started.

        Raises:
            NonFiniteError: names term, update and stage; the agent is not to be used any more.
        """
        self.launch(count)
        return self.settle()

    def launch(self, count: int) -> None:
        """Start updates; a GPU is left to work on them. Nothing else may be asked before settle()."""
        stage, first = self._stage_config()
        done = self.updates - first
        count = min(count, stage.updates - done)
        assert count > 0, "all updates are done"
        rates = [stage.learning_rate(done + index) for index in range(count)]
        self._recorded().launch(rates)
        self.updates += count
        self.learning_rate = rates[-1]

    def settle(self) -> Metrics:
        """Wait for what was launched; else as update()."""
        assert self._captured is not None
        first, self._settled = self._settled, self.updates
        outcome = self._captured.settle()
        cloned = self._settled <= self.config.behaviour.updates
        if outcome.failed_after is not None:
            stage = BEHAVIOUR if cloned else OFFLINE
            raise not_finite(outcome.terms, stage, first + outcome.failed_after)
        if cloned and not self._cloning:
            self._end_cloning()
        return outcome.metrics

    def checkpoint(self) -> Snapshot:
        """Tensors and metadata that restore() goes back to."""
        return self._snapshot(self.agent, self.stage)

    def behaviour_checkpoint(self) -> Snapshot:
        """The clone as its stage left it; every method of the same settings may restore() it.

        Raises:
            ConfigError: the stage is not over, or was over before this trainer was restored.
        """
        if self._clone is None:
            raise ConfigError(
                f"after update {self.updates}: the behaviour stage did not end in this trainer; its "
                "checkpoint is at hand once the stage is over"
            )
        return self._clone

    def restore(self, held: Checkpoint) -> None:
        """Go back to a checkpoint() or behaviour_checkpoint().

        The clone of a run restored in its second stage is not in the checkpoint.

        Raises:
            ConfigError: it was made with other settings; names the first.
        """
        self._check_settings(held.metadata)
        go_on_drawing(self.generator, held.tensors[GENERATOR])
        self.updates = self._settled = int(held.metadata["update"])
        self.behaviour = self._clone = None
        self.agent = restore_agent(held, self._device)
        if held.metadata["stage"] == BEHAVIOUR and not self._cloning:
            self._end_cloning()

    @property
    def _cloning(self) -> bool:
        return self.updates < self.config.behaviour.updates

    def _recorded(self) -> CapturedUpdates:
        """Updates of the agent that learns now."""
        if self._captured is None or self._captured.agent is not self.agent:
            k = self.config.updates_per_replay
            self._captured = CapturedUpdates(
                self.agent,
                self._dataset,
                self.generator,
                per_replay=max(1, k),
                pad_terminated=self.config.pad_terminated,
                recorder=recorder_for(self._device) if k > 0 else None,
            )
        return self._captured

    def until(self, *intervals: int, done: int | None = None) -> int:
        """Updates to ask for now: the stride, but not past the next multiple of an interval.

        Args:
            intervals: in updates.
            done: updates by the intervals' own count; None: those of both stages.
        """
        at = self.updates if done is None else done
        return min(self.stride, *(every - at % every for every in intervals))

    def _stage_config(self) -> tuple[StageConfig, int]:
        """The stage of the next update and the number of its first one."""
        config = self.config
        if self._cloning:
            return config.behaviour, 0
        return config.offline, config.behaviour.updates

    def _sizes(self) -> tuple[int, int, torch.Generator, Normaliser]:
        data = self._dataset
        sizes = data.observation_size, data.action_size
        return (*sizes, self.generator, self._normaliser)

    def _draw_clone(self) -> FlowBCAgent:
        return FlowBCAgent.init(clone_settings(self.config.agent), *self._sizes())

    def _draw_agent(self) -> Agent:
        method = find_method(self.config.method)
        return method.agent.init(self.config.agent, *self._sizes())

    def _end_cloning(self) -> None:
        """Put the method's agent in the place of the clone."""
        assert isinstance(self.agent, FlowBCAgent)
        self.behaviour = self.agent
        self._clone = self._snapshot(self.agent, BEHAVIOUR)
        self.agent = self._draw_agent()
        self.agent.warm_start(self.behaviour.parameters)

    def _snapshot(self, agent: Agent, stage: str) -> Snapshot:
        tensors = {**agent_tensors(agent), GENERATOR: self.generator.get_state()}
        metadata = {
            **agent_metadata(agent),
            "stage": stage,
            "update": self.updates,
            "config": to_mapping(self.config),
        }
        return tensors, metadata

    def _check_settings(self, metadata: Mapping[str, Any]) -> None:
        now, then = to_mapping(self.config), dict(metadata["config"])
        free = FREE_ON_RESUME
        if metadata["stage"] == BEHAVIOUR:
            free = FREE_AFTER_CLONING
            now["clone"] = to_mapping(clone_settings(self.config.agent))
            then["clone"] = metadata["agent"]
        for key in now:
            if key not in free and now[key] != then.get(key):
                name, before, asked = _first_difference(key, then.get(key), now[key])
                raise ConfigError(
                    f"the run was made with other settings: {name} was {before}, now {asked}; "
                    "resume with the run's own config.yaml"
                )


def _first_difference(name: str, then: Any, now: Any) -> tuple[str, Any, Any]:
    """Dotted name of the first value that differs between two nested settings, and both values."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key, value in now.items():
            if value != then.get(key):
                return _first_difference(f"{name}.{key}", then.get(key), value)
    return name, then, now


def check_finite(metrics: Mapping[str, Tensor], stage: str, update: int) -> None:
    """Refuse an update whose loss or gradient is not finite.

    Raises:
        NonFiniteError: names every term that is not finite, the update and the stage.
    """
    if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad/global_norm"]):
        return
    terms = [name for name, value in metrics.items() if not math.isfinite(value)]
    raise not_finite(terms, stage, update)


def not_finite(terms: Sequence[str], stage: str, update: int) -> NonFiniteError:
    """The error of an update whose metrics of these names are not finite."""
    return NonFiniteError(
        f"update {update} ({stage}): expected finite losses and gradients, not finite: "
        f"{', '.join(terms)}; the last checkpoint before it is kept: lower the learning rate, or check "
        "the data",
        terms=list(terms),
        update=update,
        stage=stage,
    )
