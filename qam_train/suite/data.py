# SPDX-License-Identifier: Apache-2.0
"""Rows that a cell learns from: loaded, labelled for its task, clipped, file after file."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch

from qam_ros.contract.columns import Dataset
from qam_ros.contract.dataset import MANIFEST, read_dataset, read_dataset_manifest
from qam_ros.contract.errors import ConfigError, DatasetError
from qam_train.data.dataset import FlatDataset
from qam_train.suite.cell_config import CellConfig, DataConfig
from sim.labels import LABEL_KEYS, label, sparse_reward
from sim.presets import presets

ACTION_BOUND = 1.0 - 1e-5  # official code: where a tanh can still reach


class CellData:
    """The dataset of a cell, or its folder of files of which one at a time is in memory.

    Args:
        config: the cell.
        root: folder of all datasets, <root>/<name>.
        device: where the rows live.

    Attributes:
        files: dataset directories, in order.
        sha256: of the first file's rows.

    Raises:
        ConfigError: there is no such dataset, or it has fewer files than the cell asks for.
        DatasetError: damaged, or of another world.
    """

    def __init__(
        self, config: CellConfig, root: Path, device: torch.device | str = "cpu"
    ) -> None:
        self._config = config
        self._device = device
        self.files = dataset_files(config.data, root)
        self.sha256 = read_dataset_manifest(self.files[0]).sha256
        self._index = -1
        self._rows: FlatDataset | None = None
        self.at(0)

    def at(self, step: int) -> FlatDataset:
        """Rows of step 1, 2, ...: the next file takes over every `replace_every` steps, in a ring.

        The first file serves one step less than the others (official code: it is replaced at step
        replace_every itself).
        """
        index = (step // self._config.data.replace_every) % len(self.files)
        if self._rows is None or index != self._index:
            self._rows = load(self._config, self.files[index], self._device)
            self._index = index
        return self._rows

    def serves(self, step: int) -> int:
        """Steps, from this one on, that all learn from the rows of at(step)."""
        every = self._config.data.replace_every
        return every - step % every if len(self.files) > 1 else sys.maxsize


def dataset_files(data: DataConfig, root: Path) -> list[Path]:
    """Dataset directories of a cell, in order.

    Raises:
        ConfigError: missing; says how to make them.
    """
    folder = root / data.dataset
    if data.files == 1:
        found = [folder] if (folder / MANIFEST).is_file() else []
    else:
        found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if len(found) < data.files:
        raise ConfigError(
            f"{folder}: expected {data.files} dataset(s), found {len(found)}; "
            f"{_source(data, folder)}, or give another --data"
        )
    return found[: data.files]


def _source(data: DataConfig, folder: Path) -> str:
    """Where a dataset comes from, in words."""
    if data.dataset in presets():
        return f"make them with qam data generate {folder} --preset {data.dataset}"
    each = " --each" if data.files > 1 else ""
    return (
        f"there is no preset of this name: import files with qam data import FILES --output "
        f"{folder}{each}, or make your own with qam data generate {folder}"
    )


def load(config: CellConfig, path: Path, device: torch.device | str) -> FlatDataset:
    """One dataset with rewards and masks of the cell's task.

    Raises:
        DatasetError: damaged, of another world, or of another task without the states to label it.
    """
    dataset = _labelled(config, path)
    actions = np.clip(dataset.actions, -ACTION_BOUND, ACTION_BOUND)
    rows = dataclasses.replace(dataset, actions=actions)
    return FlatDataset.from_contract(rows, device)


def _labelled(config: CellConfig, path: Path) -> Dataset:
    meta = read_dataset_manifest(path).meta
    dataset = read_dataset(path)
    world = meta.get("world")
    if world != config.world:
        raise DatasetError(
            f"{path}: made in world '{world}', the cell plays in '{config.world}'; "
            "give the dataset of this world",
            found=world,
            expected=config.world,
        )
    sparse = bool(meta.get("sparse", False))
    if meta.get("task") == config.task and (config.data.sparse or not sparse):
        rewards, masks = dataset.rewards, dataset.masks
        if config.data.sparse:
            rewards = sparse_reward(rewards)
    else:
        states = {k: dataset.extras[k] for k in LABEL_KEYS if k in dataset.extras}
        rewards, masks = label(
            config.world, config.task, states, sparse=config.data.sparse
        )
    return dataclasses.replace(dataset, rewards=rewards, masks=masks)
