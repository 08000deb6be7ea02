# SPDX-License-Identifier: Apache-2.0
"""The cloned flow that cells of the same data and cloning settings start from, made once.

It lies in <out>/<protocol>/behaviour/<hash>. Whoever comes first clones it and holds a lock
meanwhile; the others wait. Its evaluation on a task is kept beside it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qam_train.checkpoint import (
    checkpoint_path,
    latest_checkpoint,
    read_checkpoint,
    remove_old,
    write_checkpoint,
)
from qam_train.config import to_mapping
from qam_train.finite import check_parameters
from qam_train.offline_config import clone_settings
from qam_train.offline_trainer import BEHAVIOUR, OfflineTrainer
from qam_train.suite.cell_config import CellConfig
from qam_train.suite.data import CellData
from qam_train.suite.folder import Row, read_json, write_json
from qam_train.suite.world import Rollouts

CLONE = "clone.safetensors"


def clone_behaviour(
    trainer: OfflineTrainer,
    config: CellConfig,
    data: CellData,
    rollouts: Rollouts,
    out: Path,
    advance: Callable[[int], None],
) -> Row:
    """Bring a new trainer behind its behaviour stage; returns the clone's evaluation.

    Args:
        trainer: new, with a behaviour stage.
        config: the cell.
        data: its rows.
        rollouts: of its task.
        out: folder of all results.
        advance: called with the number of updates done.

    Raises:
        NonFiniteError: cloning diverged; the last checkpoint is kept.
        CheckpointError: the stored clone is damaged.
    """
    device = trainer.dataset.rewards.device.type
    identity = _identity(config, data.sha256, device)
    folder = out / config.protocol / "behaviour" / _hash(identity)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / CLONE).is_file():
            trainer.restore(read_checkpoint(folder / CLONE))
        else:
            write_json(folder / "settings.json", identity)
            _clone(trainer, config, data, folder, advance)
        return _evaluation(trainer, config, rollouts, folder)


def _identity(config: CellConfig, dataset: str, device: str) -> dict[str, Any]:
    """Everything a clone depends on; generators of a GPU and a CPU have different states."""
    return {
        "protocol": config.protocol,
        "domain": config.domain,
        "seed": config.seed,
        "world": config.world,
        "data": {k: v for k, v in to_mapping(config.data).items() if k != "sparse"},
        "dataset": dataset,
        "stage": to_mapping(config.behaviour),
        "agent": to_mapping(clone_settings(config.agent)),
        "standardise": config.standardise,
        "pad_terminated": config.pad_terminated,
        "matmul_precision": config.matmul_precision,
        "device": device,
    }


def _hash(identity: dict[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _clone(
    trainer: OfflineTrainer,
    config: CellConfig,
    data: CellData,
    folder: Path,
    advance: Callable[[int], None],
) -> None:
    checkpoints = folder / "checkpoints"
    newest = latest_checkpoint(checkpoints)
    if newest is not None:
        trainer.restore(read_checkpoint(newest))
    while trainer.stage == BEHAVIOUR:
        following = trainer.updates + 1
        trainer.dataset = data.at(following)
        count = trainer.until(config.evaluate_every)
        trainer.update(min(count, data.serves(following)))
        advance(trainer.updates)
        if trainer.updates % config.evaluate_every == 0 and trainer.stage == BEHAVIOUR:
            check_parameters(trainer.agent, BEHAVIOUR, trainer.updates)
            path = checkpoint_path(checkpoints, trainer.updates)
            write_checkpoint(path, *trainer.checkpoint())
            remove_old(checkpoints, 1)
    assert trainer.behaviour is not None
    check_parameters(trainer.behaviour, BEHAVIOUR, trainer.updates)
    write_checkpoint(folder / CLONE, *trainer.behaviour_checkpoint())
    for path in checkpoints.glob("checkpoint-*.safetensors"):
        path.unlink()


def _evaluation(
    trainer: OfflineTrainer, config: CellConfig, rollouts: Rollouts, folder: Path
) -> Row:
    """Evaluation of the clone on the cell's task, the stored one where there is one."""
    clone = trainer.behaviour
    assert clone is not None
    length = config.max_episode_steps
    sparse = "sparse" if config.data.sparse else "dense"
    name = f"task{config.task}-{config.episodes}x{length}-{sparse}.json"
    row = read_json(folder / name)
    if row is None:
        row = rollouts.evaluate(clone, 0, config.episodes)
        write_json(folder / name, row)
    return row
