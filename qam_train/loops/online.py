# SPDX-License-Identifier: Apache-2.0
"""Command line of fine-tuning in simulation: 'qam finetune'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from qam_ros.contract.artifact import read_artifact
from qam_ros.contract.dataset import read_dataset
from qam_ros.contract.errors import ConfigError
from qam_train.config import load_config, saved_settings
from qam_train.data.dataset import FlatDataset
from qam_train.export import Provenance, export_version, find_checkpoint
from qam_train.loops.finetune import FinetuneConfig, FinetuneLoop
from qam_train.restore import restore_trained
from qam_train.versions import VersionFolder


@dataclass(frozen=True)
class FinetuneArguments:
    """Fine-tune a policy in simulation, in one process."""

    artifact: tyro.conf.Positional[Path]
    """Policy artifact after offline training."""
    checkpoint: Path
    """Its checkpoint, or the run directory of offline training."""
    dataset: Path
    """Dataset of offline training."""
    run_dir: Path
    """Directory of the run; created."""
    config: Path | None = None
    """YAML settings. With --resume: the run's own config.yaml."""
    world: str = ""
    """World to play in, e.g. pointmaze-medium, in place of the settings' own."""
    task: int | None = None
    """Its task, 1 to 5."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Override of one setting, dotted.key=value, e.g. learner.utd=2; may be repeated."""
    resume: bool = False
    """Continue from the newest checkpoint."""
    quiet: bool = False
    """No progress display."""


def command(argv: Sequence[str]) -> int:
    """Fine-tune a policy in simulation, in one process."""
    arguments = tyro.cli(FinetuneArguments, prog="qam finetune", args=list(argv))
    path = arguments.config
    if path is None and arguments.resume:
        path = saved_settings(arguments.run_dir, given=bool(arguments.set))
    named = {"world": arguments.world or None, "task": arguments.task}
    words = [f"{name}={value}" for name, value in named.items() if value is not None]
    config = load_config(FinetuneConfig, path, (*arguments.set, *words))
    torch.set_num_threads(config.learner.threads)
    torch.set_float32_matmul_precision(config.learner.matmul_precision)
    agent = restore_trained(find_checkpoint(arguments.checkpoint))
    interface = read_artifact(arguments.artifact).interface
    offline = FlatDataset.from_contract(read_dataset(arguments.dataset, interface))
    loop = FinetuneLoop(
        config,
        agent,
        arguments.artifact,
        offline,
        arguments.run_dir,
        resume=arguments.resume,
    )
    loop.run(progress=not arguments.quiet)
    exported = export_last_version(arguments.artifact, arguments.run_dir)
    print(f"{arguments.run_dir}: {loop.episode} episodes, policy in {exported}")  # noqa: T201
    return 0


def export_last_version(artifact_path: Path, run_dir: Path) -> Path:
    """Write the newest version the robot accepted as an artifact; returns where.

    Raises:
        ConfigError: no version was accepted.
    """
    folder = VersionFolder(run_dir / "versions", 0)
    if not folder.accepted:
        reasons = {record.reason for record in folder.records.values()}
        raise ConfigError(
            f"{run_dir}: no version was accepted ({'; '.join(sorted(reasons))})"
        )
    newest = folder.accepted[-1]
    manifest = read_artifact(artifact_path).manifest
    weights, chunks = folder.weights(newest)
    provenance = Provenance(
        run_dir.name, manifest.dataset_hash, newest, manifest.policy_version
    )
    out = run_dir / "artifact"
    export_version(
        artifact_path, weights, chunks, out, provenance, replace_existing=True
    )
    return out
