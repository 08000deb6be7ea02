# SPDX-License-Identifier: Apache-2.0
"""One cell from its data to its last evaluation; may be killed at any time and goes on.

A checkpoint is written with every evaluation and holds the evaluations so far, from which
evaluations.csv is made anew when the cell goes on. On the CPU a cell that was killed gives the same
numbers as one that was not.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from typing import Any

from torch import Tensor

from qam_ros.contract.errors import ConfigError, DatasetError, QamError
from qam_train.agents.adjoint_family import AdjointAgent
from qam_train.checkpoint import (
    Checkpoint,
    checkpoint_path,
    checkpoints,
    latest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from qam_train.export_sources import FILES
from qam_train.finite import check_parameters
from qam_train.offline_config import OfflineConfig
from qam_train.offline_trainer import OFFLINE, OfflineTrainer
from qam_train.restore import Agent, restore_agent
from qam_train.suite.behaviour import clone_behaviour
from qam_train.suite.cell_config import CellConfig
from qam_train.suite.data import CellData
from qam_train.suite.folder import CellFolder, Row, config_hash
from qam_train.suite.hardware import device_name, find_device, numerics
from qam_train.suite.online import OnlinePhase
from qam_train.suite.reporter import Reporter
from qam_train.suite.world import Rollouts
from sim.worlds import split_name

ONLINE = "online"
LOGS_PER_INTERVAL = 10
# Worlds of an evaluation: on a GPU a call of the policy costs as much for ten rows as for one.
GPU_ENVIRONMENTS, CPU_ENVIRONMENTS = 10, 4


@dataclass(frozen=True)
class RunSettings:
    """Where a cell finds and leaves its files, and what it runs on.

    Args:
        out: folder of all results.
        data: folder of all datasets.
        device: "auto", "cpu" or "cuda[:index]"; "auto": as the cell says.
        environments: worlds of an evaluation; 0: ten on a GPU, four on a CPU.
    """

    out: Path
    data: Path
    device: str = "auto"
    environments: int = 0


def run_cell(config: CellConfig, settings: RunSettings) -> dict[str, Any]:
    """Run a cell, or what is left of it; returns what done.json holds.

    Raises:
        ConfigError: its folder holds another cell, or the data are missing.
        NonFiniteError: training diverged; the last checkpoint is kept.
        QamError: anything else a user can mend. All but a foreign folder are noted in failed.json.
    """
    folder = CellFolder(settings.out / config.folder)
    folder.claim(config)
    with folder.locked():
        finished = folder.done
        if finished is not None:
            return finished
        folder.clear_failure()
        try:
            with numerics(config.threads, config.matmul_precision):
                return _Cell(config, settings, folder).run()
        except QamError as error:
            folder.fail(_reason(error, folder))
            raise


class _Cell:
    """What the phases share."""

    def __init__(
        self, config: CellConfig, settings: RunSettings, folder: CellFolder
    ) -> None:
        self.config = config
        self.settings = settings
        self.folder = folder
        wanted = config.device if settings.device == "auto" else settings.device
        self.device = find_device(wanted)
        newest = latest_checkpoint(folder.checkpoints)
        self.held = None if newest is None else read_checkpoint(newest)
        suite: Mapping[str, Any] = (
            {} if self.held is None else self.held.metadata["suite"]
        )
        self.rows: list[Row] = list(suite.get("evaluations", []))
        self.reporter = Reporter(
            folder,
            max(1, config.evaluate_every // LOGS_PER_INTERVAL),
            suite.get("step"),
            suite.get("seconds", 0.0),
        )
        if self.rows:
            self.reporter.success = self.rows[-1]["success"]
        self.phase: str = suite.get("phase", OFFLINE)

    def run(self) -> dict[str, Any]:
        """All phases."""
        self.folder.write_evaluations(self.rows)
        config = self.config
        with (
            self.reporter,
            CellData(config, self.settings.data, self.device) as self.data,
        ):
            gpu = self.device.type == "cuda"
            default = GPU_ENVIRONMENTS if gpu else CPU_ENVIRONMENTS
            self.rollouts = Rollouts(
                config.world,
                config.task,
                config.seed,
                count=self.settings.environments or default,
                sparse=config.data.sparse,
                max_episode_steps=config.max_episode_steps,
            )
            self._check_data()
            if self.phase == OFFLINE:
                agent = self._offline()
                self.held = None
            else:
                assert self.held is not None
                agent = restore_agent(self.held, self.device)
            if config.online_steps > 0:
                self._online(agent, self.held)
            return self._finish()

    def _check_data(self) -> None:
        found = self.data.observation_size
        expected = self.rollouts.observation_size
        if found != expected:
            raise DatasetError(
                f"{self.data.files[0]}: observations have {found} numbers, world "
                f"'{self.config.world}' gives {expected}; give a dataset of this world"
            )
        if self.held is None:
            return
        before = self.held.metadata["dataset_hash"]
        if before != self.data.sha256:
            first, *more = self.data.files
            where = f"{first.parent}: all {len(more) + 1} files" if more else f"{first}"
            raise DatasetError(
                f"{where}: sha256 of the rows is {self.data.sha256}, the cell began with {before}; bring "
                f"that dataset back, or remove {self.folder.path}"
            )

    def _offline(self) -> Agent:
        config, reporter = self.config, self.reporter
        trainer = OfflineTrainer(offline_config(config), self.data.at(1))
        cloning = config.behaviour_updates
        if self.held is not None:
            trainer.restore(self.held)
        elif cloning:
            reporter.begin("behaviour", 0, cloning)
            row = clone_behaviour(
                trainer,
                config,
                self.data,
                self.rollouts,
                self.settings.out,
                reporter.advance,
            )
            self._add_row(0, "behaviour", row)
        done = trainer.updates - cloning
        reporter.begin(OFFLINE, 0, config.offline_updates, done)
        while not trainer.complete:
            trainer.dataset = self.data.at(done + 1)
            count = trainer.until(config.evaluate_every, reporter.every, done=done)
            metrics = trainer.update(min(count, self.data.serves(done + 1)))
            done = trainer.updates - cloning
            reporter.log(done, metrics, trainer.learning_rate)
            reporter.advance(done)
            if done % config.evaluate_every == 0 or trainer.complete:
                check_parameters(trainer.agent, OFFLINE, done)
                self._evaluate(trainer.agent, done, done, OFFLINE)
                self._save(done, OFFLINE, *trainer.checkpoint())
        return trainer.agent

    def _online(self, agent: Agent, held: Checkpoint | None) -> None:
        config, reporter = self.config, self.reporter
        first = config.offline_updates
        phase = OnlinePhase(config, agent, self.data, self.folder.online)
        if held is not None:
            phase.restore(held)
        reporter.begin(ONLINE, first, config.online_steps, phase.steps)
        while not phase.complete:
            metrics = phase.step()
            done = phase.steps
            reporter.log(done, metrics, config.offline_lr_end)
            reporter.advance(done)
            if done % config.evaluate_every == 0 or phase.complete:
                check_parameters(agent, ONLINE, done)
                self._evaluate(agent, done, first + done, ONLINE)
                self._save(first + done, ONLINE, *phase.checkpoint())

    def _evaluate(self, agent: Agent, done: int, step: int, phase: str) -> None:
        """Play the episodes of this evaluation; each has its own."""
        self.reporter.evaluating(done)
        block = 1 + sum(row["phase"] != "behaviour" for row in self.rows)
        row = self.rollouts.evaluate(agent, block, self.config.episodes)
        self._add_row(step, phase, row)

    def _add_row(self, step: int, phase: str, row: Row) -> None:
        self.rows.append({"step": step, "phase": phase, **row})
        self.folder.write_evaluations(self.rows)
        self.reporter.success = row["success"]

    def _save(
        self, step: int, phase: str, tensors: dict[str, Tensor], metadata: Row
    ) -> None:
        """One checkpoint with the evaluations so far; older ones go."""
        suite = {
            "phase": phase,
            "step": step,
            "evaluations": self.rows,
            "seconds": self.reporter.seconds,
        }
        directory = self.folder.checkpoints
        write_checkpoint(
            checkpoint_path(directory, step),
            tensors,
            {
                **metadata,
                "suite": suite,
                "dataset_hash": self.data.sha256,
                FILES: self.data.hashes,
            },
        )
        for path in checkpoints(directory)[:-1]:
            if path != checkpoint_path(directory, self.config.offline_updates):
                path.unlink()

    def _finish(self) -> dict[str, Any]:
        config = self.config
        last = {row["phase"]: row["success"] for row in self.rows}
        figures = {
            "config_hash": config_hash(config),
            "success": self.rows[-1]["success"] if self.rows else None,
            "success_by_phase": last,
            "evaluations": len(self.rows),
            "seconds": self.reporter.seconds,
            "dataset_hash": self.data.sha256,
            "device": device_name(self.device),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "mujoco", "ogbench")},
            },
        }
        self.folder.finish(figures)
        if self.folder.online.is_dir():
            rmtree(self.folder.online)
        return figures


def offline_config(config: CellConfig) -> OfflineConfig:
    """The part of a cell that the offline trainer reads."""
    return OfflineConfig(
        method=config.algorithm or config.method,
        seed=config.seed,
        pad_terminated=config.pad_terminated,
        standardise=config.standardise,
        matmul_precision=config.matmul_precision,
        behaviour=config.behaviour,
        offline=config.offline,
        agent=config.agent,
    )


def check_settings(config: CellConfig) -> None:
    """Refuse settings of which training would complain later.

    Raises:
        ConfigError: a stage that the method does not have, a world that is not known here, or an
            online budget that its trust region cannot aim at.
    """
    try:
        offline_config(config)
        split_name(config.world, config.task)
        _check_budget(config)
    except ConfigError as error:
        raise ConfigError(f"{config.method} on {config.domain}: {error}") from error


def _check_budget(config: CellConfig) -> None:
    """Aim at the online budget, which training does only after the whole offline phase."""
    kind = config.trains.agent
    if config.online_budget is None or not issubclass(kind, AdjointAgent):
        return
    try:
        kind.parts.temperature.aimed_at(config.agent, config.online_budget)
    except ConfigError as error:
        raise ConfigError(f"online_budget: {error}") from error


def _reason(error: QamError, folder: CellFolder) -> dict[str, Any]:
    """What failed.json holds."""
    progress = folder.progress
    return {
        "error": type(error).__name__,
        "message": str(error),
        "phase": error.details.get("stage", progress.phase if progress else "load"),
        "step": error.details.get("update", progress.step if progress else 0),
        "terms": error.details.get("terms", []),
    }
