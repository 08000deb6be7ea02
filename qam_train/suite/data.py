# SPDX-License-Identifier: Apache-2.0
"""Rows that a cell learns from: loaded, labelled for its task, clipped, file after file."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

from qam_ros.contract.columns import Dataset
from qam_ros.contract.dataset import (
    MANIFEST,
    DatasetManifest,
    read_dataset,
    read_dataset_manifest,
)
from qam_ros.contract.errors import ConfigError, DatasetError
from qam_train.data.dataset import FlatDataset
from qam_train.suite.cell_config import CellConfig, DataConfig
from qam_train.suite.prefetch import Prefetch
from qam_train.suite.survey import check_world, combined_sha256, survey
from sim.labels import LABEL_KEYS, label, sparse_reward
from sim.presets import presets


class CellData:
    """The dataset of a cell, or its folder of files of which one at a time is trained on.

    The next file is read and verified in a background thread meanwhile, so two are in memory. It is
    labelled and goes to the device in the caller's thread: OGBench labels by way of numpy's global
    generator, from which worlds are reset, and another thread's allocation would break the recording
    of a CUDA graph.

    Args:
        config: the cell.
        root: folder of all datasets, <root>/<name>.
        device: where the rows live.

    Attributes:
        files: dataset directories, in order.
        sha256: of the rows of all files.
        hashes: sha256 of the rows of each file.
        observation_size: O.

    Raises:
        ConfigError: there is no such dataset, or it has fewer files than the cell asks for.
        DatasetError: a file is damaged, of another world, or has other columns than the first.
        InterfaceError: the files are of different robots.
    """

    def __init__(
        self, config: CellConfig, root: Path, device: torch.device | str = "cpu"
    ) -> None:
        self._config = config
        self._device = device
        self.files = dataset_files(config.data, root)
        self._manifests = survey(self.files, config.world)
        self.sha256 = combined_sha256(self._manifests)
        self.hashes = [manifest.sha256 for manifest in self._manifests]
        self.observation_size = self._manifests[0].interface.observation_size
        self._last = max(
            config.behaviour_updates, config.offline_updates + config.online_steps
        )
        self._prefetch = Prefetch(self._read)
        self._index = -1
        self._rows: FlatDataset | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._prefetch.close()

    def at(self, step: int) -> FlatDataset:
        """Rows of step 1, 2, ...: the next file takes over every `replace_every` steps, in a ring.

        The first file serves one step less than the others (official code: it is replaced at step
        replace_every itself).

        Raises:
            DatasetError: the file is damaged, or not the one that was there when the cell started.
        """
        every = self._config.data.replace_every
        index = (step // every) % len(self.files)
        if self._rows is None or index != self._index:
            self._rows = self._finish(index, self._prefetch.take(index))
            self._index = index
        elif len(self.files) > 1 and (step // every + 1) * every <= self._last:
            self._prefetch.begin((index + 1) % len(self.files))
        return self._rows

    def serves(self, step: int) -> int:
        """Steps, from this one on, that all learn from the rows of at(step)."""
        every = self._config.data.replace_every
        return every - step % every if len(self.files) > 1 else sys.maxsize

    def _read(self, index: int) -> Dataset:
        """Verified rows of a file, not labelled yet."""
        path, expected = self.files[index], self._manifests[index].sha256
        try:
            found = read_dataset_manifest(path).sha256
            if found != expected:
                raise DatasetError(
                    f"{path}: its manifest says sha256 {found}, when the cell started it was {expected}; "
                    "bring that file back and continue",
                    found=found,
                    expected=expected,
                )
            return read_dataset(path)
        except OSError as error:
            raise DatasetError(
                f"{path}: cannot be read: {error}; check the disk and continue"
            ) from error

    def _finish(self, index: int, dataset: Dataset) -> FlatDataset:
        path, manifest = self.files[index], self._manifests[index]
        return _finished(self._config, path, manifest, dataset, self._device)


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
    manifest = read_dataset_manifest(path)
    check_world(path, manifest, config.world)
    return _finished(config, path, manifest, read_dataset(path), device)


def _finished(
    config: CellConfig,
    path: Path,
    manifest: DatasetManifest,
    dataset: Dataset,
    device: torch.device | str,
) -> FlatDataset:
    """Rows labelled for the cell's task, clipped, on the device."""
    try:
        rows = _labelled(config, manifest, dataset)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}", **error.details) from error
    bound = config.data.clip
    if bound is not None:
        actions = np.clip(rows.actions, -bound, bound)
        rows = dataclasses.replace(rows, actions=actions)
    return FlatDataset.from_contract(rows, device)


def _labelled(
    config: CellConfig, manifest: DatasetManifest, dataset: Dataset
) -> Dataset:
    meta = manifest.meta
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
