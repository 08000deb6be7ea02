# SPDX-License-Identifier: Apache-2.0
"""Data sets of many files: OUT/000, OUT/001, ... each a dataset with a seed of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from qam_ros.contract.dataset import DatasetManifest, read_dataset_manifest
from qam_ros.contract.errors import ConfigError, DatasetError
from sim.generate import Generation, Progress, Target, generate, generator_settings
from sim.import_npz import import_npz, npz_files
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
        path.parent.mkdir(parents=True, exist_ok=True)
        made.append(
            generate(
                path,
                recipe,
                target,
                seed=own_seed,
                workers=workers,
                robot=robot,
                progress=_after(made, progress),
                how=dict(how or {}) | {"file": {"index": index, "run_seed": seed}},
            )
        )
    return _total(made)


def import_files(
    sources: Sequence[Path],
    output: Path,
    *,
    world: str | None = None,
    task: int = 1,
    robot: str | None = None,
    sparse: bool = False,
) -> list[DatasetManifest]:
    """Import every npz file as a dataset of its own; files that are there already are kept.

    Args:
        sources: npz files or folders of them, see `import_npz`.
        output: folder of the set.
        world: key of `WORLDS`; None reads it from each file's name.
        task: 1..5: rewards and masks are those of this task.
        robot: robot interface (default: the world's).
        sparse: see `import_npz`.

    Raises:
        DatasetError: a file that is there has other settings, or see `import_npz`.
    """
    output.mkdir(parents=True, exist_ok=True)
    manifests = []
    for index, source in enumerate(npz_files(sources)):
        path = file_path(output, index)
        if path.exists():
            wanted = {"imported": [source.name], "task": task, "sparse": sparse}
            _check_settings(path, wanted)
            manifests.append(read_dataset_manifest(path))
            continue
        manifests.append(
            import_npz(
                [source], path, world=world, task=task, robot=robot, sparse=sparse
            )
        )
    return manifests


def _after(made: Sequence[Generation], progress: Progress | None) -> Progress | None:
    """Report the progress of one file as that of the set."""
    if progress is None:
        return None
    rows, episodes = sum(g.rows for g in made), sum(g.episodes for g in made)
    return lambda more, further: progress(rows + more, episodes + further)


def _there(path: Path, settings: Mapping[str, Any], target: Target) -> Generation:
    """A finished file, after checking that it is the one that was asked for."""
    _check_settings(path, settings)
    manifest = read_dataset_manifest(path)
    if target.rows > manifest.rows or target.episodes not in (0, manifest.segments):
        raise DatasetError(
            f"{path} has {manifest.rows} rows in {manifest.segments} episodes, not what was asked "
            f"for ({target}); choose another output or delete it"
        )
    return Generation(
        rows=manifest.rows,
        episodes=manifest.segments,
        **manifest.meta["figures"],
        made_rows=0,
        cpu_s=0.0,
        wall_s=0.0,
    )


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    meta = read_dataset_manifest(path).meta
    differ = [key for key, value in settings.items() if meta.get(key) != value]
    if differ:
        raise DatasetError(
            f"{path} was made with other settings ({', '.join(differ)} differ); choose another "
            "output or delete it"
        )


def _total(parts: Iterable[Generation]) -> Generation:
    parts = list(parts)
    names = [field.name for field in fields(Generation)]
    return Generation(**{n: sum(getattr(part, n) for part in parts) for n in names})
