# SPDX-License-Identifier: Apache-2.0
"""Offline training: behaviour cloning, then adjoint matching, from a fixed dataset.

Leaves in the run directory: config.yaml, metrics.csv/.jsonl, checkpoints/checkpoint-*.safetensors,
and behaviour.safetensors, the cloned base. On the CPU a resumed run equals an uninterrupted one bit
for bit.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qam_ros.contract.errors import ConfigError, QamError
from qam_train.agents.common import Normaliser
from qam_train.agents.flow_bc import FlowBCAgent
from qam_train.agents.qam import QAMAgent
from qam_train.agents.restore import Agent, agent_metadata, agent_tensors, restore_agent
from qam_train.checkpoint import (
    checkpoint_path,
    latest_checkpoint,
    read_checkpoint,
    remove_old,
    write_checkpoint,
)
from qam_train.config import (
    AgentConfig,
    OfflineConfig,
    StageConfig,
    save_config,
    to_mapping,
)
from qam_train.data.dataset import FlatDataset
from qam_train.loops.progress import StageProgress
from qam_train.metrics import MetricsWriter

logger = logging.getLogger(__name__)

GENERATOR = "generator/loop"
# Settings a resumed run may change: they touch neither the numbers nor the order of draws.
FREE_ON_RESUME = {"log_every", "checkpoint_every", "keep_checkpoints"}


class NonFiniteError(QamError):
    """Training produced NaN or infinity."""


@dataclass(frozen=True)
class OfflineResult:
    """The trained agent and the cloned base it started from (None without that stage)."""

    agent: QAMAgent
    behaviour: FlowBCAgent | None


@dataclass
class _Run:
    """What both stages share; 'update' counts over both."""

    config: OfflineConfig
    dataset: FlatDataset
    directory: Path
    generator: torch.Generator
    metrics: MetricsWriter
    progress: bool
    provenance: Mapping[str, Any]
    update: int = 0

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def behaviour_path(self) -> Path:
        return self.directory / "behaviour.safetensors"


def train_offline(
    config: OfflineConfig,
    dataset: FlatDataset,
    run_dir: Path,
    *,
    resume: bool = False,
    progress: bool = True,
    provenance: Mapping[str, Any] | None = None,
) -> OfflineResult:
    """Train on a dataset.

    Args:
        config: settings; saved as config.yaml.
        dataset: rows to train on.
        run_dir: directory of this run, created where missing.
        resume: continue from the newest checkpoint (from the start where there is none).
        progress: show a progress display.
        provenance: JSON values written into every checkpoint, e.g. the dataset's hash.

    Raises:
        ConfigError: the directory holds another run, or the settings differ from the resumed run.
        NonFiniteError: a loss or gradient is not finite; the last good checkpoint stays.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    newest = latest_checkpoint(run_dir / "checkpoints")
    if newest is not None and not resume:
        raise ConfigError(
            f"{run_dir}: already holds checkpoints; resume it or choose another directory"
        )
    generator = torch.Generator(device=dataset.rewards.device).manual_seed(config.seed)
    agent: Agent | None = None
    update = 0
    if newest is not None:
        agent, update = _restore(newest, config, generator)
    save_config(config, run_dir / "config.yaml")
    with (
        _numerics(config),
        MetricsWriter(run_dir, update if resume else None) as metrics,
    ):
        run = _Run(
            config,
            dataset,
            run_dir,
            generator,
            metrics,
            progress,
            provenance or {},
            update,
        )
        behaviour = _behaviour_stage(run, agent)
        return OfflineResult(_offline_stage(run, agent, behaviour), behaviour)


def _behaviour_stage(run: _Run, agent: Agent | None) -> FlowBCAgent | None:
    stage = run.config.behaviour
    if stage.updates == 0:
        return None
    if isinstance(agent, QAMAgent):
        restored = restore_agent(run.behaviour_path)
        assert isinstance(restored, FlowBCAgent)
        return restored
    if agent is None:
        agent = FlowBCAgent.init(*_init_arguments(run))
    _train(run, agent, stage, "behaviour", 0)
    write_checkpoint(
        run.behaviour_path,
        agent_tensors(agent),
        {**run.provenance, **agent_metadata(agent)},
    )
    return agent


def _offline_stage(
    run: _Run, agent: Agent | None, behaviour: FlowBCAgent | None
) -> QAMAgent:
    if not isinstance(agent, QAMAgent):
        agent = QAMAgent.init(*_init_arguments(run))
        if behaviour is not None:
            agent.warm_start(behaviour.parameters)
    _train(run, agent, run.config.offline, "offline", run.config.behaviour.updates)
    return agent


def _init_arguments(
    run: _Run,
) -> tuple[AgentConfig, int, int, torch.Generator, Normaliser]:
    data = run.dataset
    normaliser = (
        Normaliser.of(data.observations)
        if run.config.standardise
        else Normaliser.identity(data.observation_size, data.observations.device)
    )
    return (
        run.config.agent,
        data.observation_size,
        data.action_size,
        run.generator,
        normaliser,
    )


def _train(run: _Run, agent: Agent, stage: StageConfig, name: str, first: int) -> None:
    """Run the updates of one stage that are still to do."""
    config, started = run.config, time.perf_counter()
    with StageProgress(
        name, stage.updates, run.update - first, enabled=run.progress
    ) as display:
        last = first + stage.updates
        while run.update < last:
            rate = stage.learning_rate(run.update - first)
            metrics = _one_update(run, agent, rate)
            run.update += 1
            _check_finite(metrics, name, run.update)
            display.advance(metrics["loss"])
            if run.update % config.log_every == 0 or run.update == last:
                values = {key: float(value) for key, value in metrics.items()}
                seconds = time.perf_counter() - started
                row: dict[str, float | str] = {
                    "stage": name,
                    "lr": rate,
                    "seconds": seconds,
                    **values,
                }
                run.metrics.write(run.update, row)
            if run.update % config.checkpoint_every == 0 or run.update == last:
                _save(run, agent, name)


def _one_update(run: _Run, agent: Agent, learning_rate: float) -> dict[str, Tensor]:
    settings = run.config.agent
    batch = run.dataset.sample(
        settings.batch_size,
        settings.return_steps,
        settings.discount,
        run.generator,
        pad_terminated=run.config.pad_terminated,
    )
    if isinstance(agent, QAMAgent):
        return agent.update(
            batch, agent.draw_noise(settings.batch_size, run.generator), learning_rate
        )
    return agent.update(
        batch, agent.draw_noise(settings.batch_size, run.generator), learning_rate
    )


def _check_finite(metrics: Mapping[str, Tensor], stage: str, update: int) -> None:
    if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad/global_norm"]):
        return
    terms = [name for name, value in metrics.items() if not math.isfinite(value)]
    raise NonFiniteError(
        f"update {update} ({stage}): expected finite losses and gradients, not finite: {', '.join(terms)}; "
        "the last checkpoint before it is kept: lower lr or tau, or check the data",
        terms=terms,
        update=update,
    )


def _save(run: _Run, agent: Agent, stage: str) -> None:
    path = checkpoint_path(run.checkpoints, run.update)
    tensors = {**agent_tensors(agent), GENERATOR: run.generator.get_state()}
    metadata = {
        **run.provenance,
        **agent_metadata(agent),
        "stage": stage,
        "update": run.update,
        "config": to_mapping(run.config),
    }
    write_checkpoint(path, tensors, metadata)
    remove_old(run.checkpoints, run.config.keep_checkpoints)


def _restore(
    path: Path, config: OfflineConfig, generator: torch.Generator
) -> tuple[Agent, int]:
    held = read_checkpoint(path)
    now, then = to_mapping(config), held.metadata["config"]
    changed = [
        key for key in now if key not in FREE_ON_RESUME and now[key] != then.get(key)
    ]
    if changed:
        raise ConfigError(
            f"{path}: the run was made with other settings: {changed[0]} was {then.get(changed[0])}, "
            f"now {now[changed[0]]}; resume with the run's own config.yaml"
        )
    generator.set_state(held.tensors[GENERATOR])
    logger.info("resuming from %s", path)
    return restore_agent(held), int(held.metadata["update"])


@contextlib.contextmanager
def _numerics(config: OfflineConfig) -> Iterator[None]:
    """Threads and matmul precision of the run, set back afterwards."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision(config.matmul_precision)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
