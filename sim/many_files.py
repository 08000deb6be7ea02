# SPDX-License-Identifier: Apache-2.0
"""Data sets of many files: OUT/000, OUT/001, ... each a dataset with a seed of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from qam_ros.contract.dataset import read_dataset_manifest
from qam_ros.contract.errors import ConfigError, DatasetError
from sim.generate import Generation, Progress, Target, generate, generator_settings
from sim.recipes import Recipe

_FILE_SEEDS = (
    0x66696C65  # keeps seeds of files apart from all other uses of a run's seed
)


def file_path(output: Path, index: int) -> Path:
    """Folder of one file of a set."""
    return output / f"{index:03d}"


def file_seed(seed: int, index: int) -> int:
    """Seed of one file, a function of (run seed, index) alone: 10 files are the first of 100."""
    sequence = np.random.SeedSequence([_FILE_SEEDS, seed, index])
    return int(sequence.generate_state(1)[0])


def generate_files(
    output: Path,
    recipe: Recipe,
    target: Target,
    files: int,
    *,
    seed: int = 0,
    workers: int = 1,
    robot: str | None = None,
    progress: Progress | None = None,
    how: Mapping[str, Any] | None = None,
) -> Generation:
    """Generate a set of many files; files that are there already are kept.

    Args:
        output: folder of the set.
        recipe: how episodes are played.
        target: how much for each file.
        files: number of files.
        seed: seed of the run; see `file_seed`.
        workers: worker processes.
        robot: robot interface (default: the world's).
        progress: called with rows and episodes of the whole set.
        how: further entries of each manifest's metadata.

    Returns:
        Sums over all files, those that were there already included.

    Raises:
        DatasetError: a file that is there has other settings, or see `generate`.
    """
    if files < 1:
        raise ConfigError(f"files must be at least 1, found {files}")
    made: list[Generation] = []
    for index in range(files):
        path, own_seed = file_path(output, index), file_seed(seed, index)
        if path.exists():
            settings = generator_settings(recipe, own_seed)
            made.append(_there(path, settings, target.of(recipe)))
            continue
        rows, episodes = (sum(g.rows for g in made), sum(g.episodes for g in made))

        def report(
            more: int, further: int, rows: int = rows, done: int = episodes
        ) -> None:
            if progress is not None:
                progress(rows + more, done + further)

        path.parent.mkdir(parents=True, exist_ok=True)
        made.append(
            generate(
                path,
                recipe,
                target,
                seed=own_seed,
                workers=workers,
                robot=robot,
                progress=report,
                how=dict(how or {}) | {"file": {"index": index, "run_seed": seed}},
            )
        )
    return _total(made)


def _there(path: Path, settings: Mapping[str, Any], target: Target) -> Generation:
    """A finished file, after checking that it is the one that was asked for."""
    manifest = read_dataset_manifest(path)
    differ = [key for key, value in settings.items() if manifest.meta.get(key) != value]
    if target.rows > manifest.rows or target.episodes not in (0, manifest.segments):
        differ.append("size")
    if differ:
        raise DatasetError(
            f"{path} was made with other settings ({', '.join(differ)} differ); choose another "
            "output or delete it"
        )
    return Generation(
        rows=manifest.rows,
        episodes=manifest.segments,
        **manifest.meta["figures"],
        made_rows=0,
        cpu_s=0.0,
        wall_s=0.0,
    )


def _total(parts: Iterable[Generation]) -> Generation:
    parts = list(parts)
    names = [field.name for field in fields(Generation)]
    return Generation(**{n: sum(getattr(part, n) for part in parts) for n in names})
