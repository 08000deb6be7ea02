# SPDX-License-Identifier: Apache-2.0
"""Where a fine-tuning run in one process continues: all of it as it was at the last checkpoint.

What came after the checkpoint (rows, versions, verdicts) is taken back, because the run will play
the same episodes again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qam_ros.contract.artifact import Artifact
from qam_ros.contract.errors import ConfigError
from qam_ros.contract.robot_interface import RobotInterface
from qam_ros.runtime.store import TransitionStore
from qam_train.checkpoint import latest_checkpoint, read_checkpoint
from qam_train.learner import REPLAY_LOG
from qam_train.online_trainer import check_unchanged
from qam_train.versions import VersionFolder

_COPY_ROWS = 4096


@dataclass(frozen=True)
class ResumePoint:
    """State between two episodes; JSON values of a checkpoint's metadata.

    Args:
        episode: index of the next episode.
        running_version: version the policy runs.
        newest_version: newest version made.
        outstanding: version that waits for its verdict; 0: none.
    """

    episode: int
    running_version: int
    newest_version: int
    outstanding: int = 0


def return_to_checkpoint(
    run_dir: Path, artifact: Artifact, world: Mapping[str, Any], *, resume: bool
) -> ResumePoint:
    """Make a run directory as it was at its newest checkpoint (at the start where it has none).

    Args:
        run_dir: the run; need not exist.
        artifact: the policy it started with.
        world: settings of world and robot; they must be those of the checkpoint.
        resume: whether there may be anything in it.

    Raises:
        ConfigError: there is a run already and resume is not set, or it had other settings.
    """
    log = run_dir / REPLAY_LOG
    if log.exists() and not resume:
        raise ConfigError(
            f"{run_dir}: holds a run already; resume it or choose another directory"
        )
    version = artifact.manifest.policy_version
    point, rows = ResumePoint(0, version, version), 0
    newest = latest_checkpoint(run_dir / "checkpoints")
    if newest is not None:
        metadata: dict[str, Any] = read_checkpoint(newest).metadata
        check_unchanged(world, metadata["world"])
        point, rows = ResumePoint(**metadata["resume_point"]), int(metadata["rows"])
    if log.exists():
        _keep_rows(log, artifact.interface, rows)
    folder = VersionFolder(run_dir / "versions", version)
    folder.drop_after(point.newest_version)
    if point.outstanding:
        record = folder.records[point.outstanding]
        folder.note(replace(record, accepted=None, reason=""))
    return point


def artifact_of_version(
    artifact: Artifact, folder: VersionFolder, number: int
) -> Artifact:
    """The artifact as if it had been exported with the weights of a version."""
    manifest = artifact.manifest
    if number == manifest.policy_version:
        return artifact
    weights, chunks = folder.weights(number)
    return Artifact(
        replace(
            manifest, policy_version=number, parent_version=manifest.policy_version
        ),
        artifact.onnx_bytes,
        weights,
        replace(artifact.golden, chunks=chunks),
    )


def _keep_rows(log: Path, interface: RobotInterface, count: int) -> None:
    """Keep the first rows of a replay log: a new file takes its place, so a kill does no harm."""
    shorter = log.with_name(f".{log.name}.shorter")
    for path in _files(shorter):
        path.unlink(missing_ok=True)
    with (
        TransitionStore(log, interface) as before,
        TransitionStore(shorter, interface) as after,
    ):
        if before.last_position <= count:
            return
        position = 0
        while position < count:
            first, rows = before.read(position, min(_COPY_ROWS, count - position))
            after.append(rows)
            position = first + rows.size - 1
    for path in _files(log)[1:]:
        path.unlink(missing_ok=True)
    shorter.replace(log)


def _files(log: Path) -> list[Path]:
    """The files of a SQLite database in WAL mode."""
    return [log, log.with_name(log.name + "-wal"), log.with_name(log.name + "-shm")]
