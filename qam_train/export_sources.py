# SPDX-License-Identifier: Apache-2.0
"""Where a policy comes from: checkpoint, dataset, source revision."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qam_ros.contract.errors import ArtifactError
from qam_train.checkpoint import latest_checkpoint

PLACE = "dataset"
"""Metadata key of a checkpoint: where its data lay; what they are says their hash."""


FILES = "dataset_files"
"""Metadata key of a checkpoint trained on several files: the hash of each; any of them gives probes."""


def source_commit() -> str:
    """Commit of the checkout this module lies in, 'unknown' outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def find_checkpoint(path: Path) -> Path:
    """A checkpoint file, or the newest one of a run directory.

    Raises:
        ArtifactError: there is none.
    """
    if path.is_file():
        return path
    for directory in (path / "checkpoints", path):
        newest = latest_checkpoint(directory)
        if newest is not None:
            return newest
    raise ArtifactError(
        f"{path}: expected a checkpoint or a run directory with checkpoints, found none"
    )


def find_data(checkpoint: Path, metadata: Mapping[str, Any]) -> Path:
    """Dataset that a checkpoint was trained on: as it says itself, or that of its demo.

    Raises:
        ArtifactError: it says nothing and is part of no demo, or the dataset is not there any more.
    """
    recorded = metadata.get(PLACE, "")
    beside = checkpoint.parent.parent.parent / "dataset"
    if recorded and Path(recorded).exists():
        return Path(recorded)
    if "dataset_hash" in metadata and beside.exists():  # another one has another hash
        return beside
    said = f"says {recorded}, which is not there" if recorded else "does not say"
    raise ArtifactError(
        f"{checkpoint}: the checkpoint {said} where its data lie; give the dataset with --dataset"
    )
