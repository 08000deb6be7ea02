# SPDX-License-Identifier: Apache-2.0
"""Offline training into a run directory: files, display and resuming around OfflineTrainer.

Leaves config.yaml, metrics.csv/.jsonl, checkpoints/checkpoint-*.safetensors, and
behaviour.safetensors, the cloned flow where there is a stage that clones one. On the CPU a resumed
run equals an uninterrupted one bit for bit.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qam_ros.contract.errors import ConfigError
from qam_train.agents.flow_bc import FlowBCAgent
from qam_train.checkpoint import (
    Checkpoint,
    checkpoint_path,
    latest_checkpoint,
    read_checkpoint,
    remove_old,
    write_checkpoint,
)
from qam_train.config import save_config
from qam_train.data.dataset import FlatDataset
from qam_train.export_sources import PLACE
from qam_train.finite import check_parameters
from qam_train.loops.progress import StageProgress
from qam_train.metrics import MetricsWriter
from qam_train.offline_config import OfflineConfig
from qam_train.offline_trainer import BEHAVIOUR, OFFLINE, OfflineTrainer
from qam_train.restore import Agent, restore_agent

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OfflineResult:
    """The trained agent and the cloned flow it started from (None without that stage)."""

    agent: Agent
    behaviour: FlowBCAgent | None


@dataclass(frozen=True)
class _Run:
    """What both stages share."""

    trainer: OfflineTrainer
    directory: Path
    metrics: MetricsWriter
    progress: bool
    provenance: Mapping[str, Any]

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
        provenance: JSON values written into every checkpoint, e.g. the dataset's hash; a resumed run
            must have the same.

    Raises:
        ConfigError: the directory holds another run, or settings or data differ from the resumed run.
        NonFiniteError: a loss or gradient is not finite; the last good checkpoint stays.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    newest = latest_checkpoint(run_dir / "checkpoints")
    if newest is not None and not resume:
        raise ConfigError(
            f"{run_dir}: already holds checkpoints; resume it or choose another directory"
        )
    with _numerics(config):
        trainer = OfflineTrainer(config, dataset)
        if newest is not None:
            held = read_checkpoint(newest)
            _check_provenance(newest, held, provenance or {})
            trainer.restore(held)
            logger.info("resuming from %s", newest)
        save_config(config, run_dir / "config.yaml")
        with MetricsWriter(run_dir, trainer.updates if resume else None) as metrics:
            run = _Run(trainer, run_dir, metrics, progress, provenance or {})
            _train(run, started=newest is not None)
    return OfflineResult(trainer.agent, trainer.behaviour)


def _train(run: _Run, *, started: bool) -> None:
    """Do the updates that are left; a run without any leaves its fresh agent."""
    trainer = run.trainer
    if trainer.config.behaviour.updates > 0 and trainer.stage == OFFLINE:
        _restore_behaviour(run)
    for name in (BEHAVIOUR, OFFLINE):
        if trainer.stage == name and not trainer.complete:
            _train_stage(run, name)
    if not started and trainer.config.total_updates == 0:
        _save(run)


def _train_stage(run: _Run, name: str) -> None:
    trainer, config, started = run.trainer, run.trainer.config, time.perf_counter()
    first = 0 if name == BEHAVIOUR else config.behaviour.updates
    stage = config.behaviour if name == BEHAVIOUR else config.offline
    last = first + stage.updates
    with StageProgress(
        name, stage.updates, trainer.updates - first, enabled=run.progress
    ) as display:
        while trainer.updates < last:
            before = trainer.updates
            count = trainer.until(config.log_every, config.checkpoint_every)
            metrics = trainer.update(count)
            done = trainer.updates
            display.advance(metrics["loss"], done - before)
            if done % config.log_every == 0 or done == last:
                seconds = time.perf_counter() - started
                row: dict[str, float | str] = {
                    "stage": name,
                    "lr": trainer.learning_rate,
                    "seconds": seconds,
                    **{key: float(value) for key, value in metrics.items()},
                }
                run.metrics.write(done, row)
            if name == BEHAVIOUR and done == last:
                _save_behaviour(run)
            if done % config.checkpoint_every == 0 or done == last:
                _save(run)


def _save(run: _Run) -> None:
    trainer = run.trainer
    check_parameters(trainer.agent, trainer.stage, trainer.updates)
    tensors, metadata = trainer.checkpoint()
    path = checkpoint_path(run.checkpoints, trainer.updates)
    write_checkpoint(path, tensors, {**run.provenance, **metadata})
    remove_old(run.checkpoints, trainer.config.keep_checkpoints)


def _save_behaviour(run: _Run) -> None:
    """Before the checkpoint after the stage, which does not hold the clone."""
    assert run.trainer.behaviour is not None
    check_parameters(run.trainer.behaviour, BEHAVIOUR, run.trainer.updates)
    tensors, metadata = run.trainer.behaviour_checkpoint()
    write_checkpoint(run.behaviour_path, tensors, {**run.provenance, **metadata})


def _restore_behaviour(run: _Run) -> None:
    """The clone of a run that is past its first stage already."""
    agent = restore_agent(run.behaviour_path)
    assert isinstance(agent, FlowBCAgent)
    run.trainer.behaviour = agent


def _check_provenance(path: Path, held: Checkpoint, now: Mapping[str, Any]) -> None:
    """Refuse to go on with other data than the run was made with; they may lie elsewhere now."""
    for key, value in now.items():
        if key == PLACE:
            continue
        then = held.metadata.get(key, value)
        if then != value:
            raise ConfigError(
                f"{path}: the run was made with {key} {then}, now it is {value}; give the dataset it was "
                "started with, or start in another directory"
            )


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
