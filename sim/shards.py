# SPDX-License-Identifier: Apache-2.0
"""Shards: the episodes that one unit of work made, in one npz file each, written at once."""

from __future__ import annotations

import json
import os
import re
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qam_ros.contract.errors import DatasetError
from sim.episodes import Episode

SETTINGS = "settings.json"
_NAME = re.compile(r"^shard_(\d{8})\.npz$")
_BASIC = ("observations", "actions", "rewards", "masks")


@dataclass(frozen=True)
class Shard:
    """Consecutive episodes, concatenated.

    Attributes:
        first: index of the first episode.
        lengths: (E,) rows of each episode.
        targets: (E,) targets of each episode that were over.
        reached: (E,) those of them that were reached.
        rows: observations, actions, rewards, masks and the recorded states, (sum of lengths, ...).
        end_observations: (E, O) float32.
    """

    first: int
    lengths: NDArray[np.int64]
    targets: NDArray[np.int64]
    reached: NDArray[np.int64]
    rows: dict[str, NDArray[Any]]
    end_observations: NDArray[np.float32]

    @classmethod
    def of(cls, episodes: list[Episode]) -> Shard:
        """Concatenate episodes with consecutive indices."""
        rows: dict[str, NDArray[Any]] = {
            key: np.concatenate([getattr(episode, key) for episode in episodes])
            for key in _BASIC
        }
        for key in episodes[0].extras:
            rows[key] = np.concatenate([episode.extras[key] for episode in episodes])
        return cls(
            first=episodes[0].index,
            lengths=np.array(
                [len(episode.rewards) for episode in episodes], dtype=np.int64
            ),
            targets=np.array([episode.targets for episode in episodes], np.int64),
            reached=np.array([episode.reached for episode in episodes], np.int64),
            rows=rows,
            end_observations=np.stack(
                [episode.end_observation for episode in episodes]
            ),
        )

    def head(self, episodes: int) -> Shard:
        """The first `episodes` episodes."""
        end = int(self.lengths[:episodes].sum())
        return Shard(
            first=self.first,
            lengths=self.lengths[:episodes],
            targets=self.targets[:episodes],
            reached=self.reached[:episodes],
            rows={key: array[:end] for key, array in self.rows.items()},
            end_observations=self.end_observations[:episodes],
        )


def shard_path(folder: Path, first: int) -> Path:
    """File of the shard that starts with episode `first`."""
    return folder / f"shard_{first:08d}.npz"


def write_shard(folder: Path, shard: Shard) -> None:
    """Write a shard under a temporary name, then rename: a file that is there is whole."""
    path = shard_path(folder, shard.first)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    arrays: dict[str, Any] = {
        "first": np.int64(shard.first),
        "lengths": shard.lengths,
        "targets": shard.targets,
        "reached": shard.reached,
        "end_observations": shard.end_observations,
    } | {f"rows/{key}": array for key, array in shard.rows.items()}
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_shard(path: Path) -> Shard:
    """Read a shard.

    Raises:
        DatasetError: the file is damaged.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        return Shard(
            first=int(arrays["first"]),
            lengths=arrays["lengths"],
            targets=arrays["targets"],
            reached=arrays["reached"],
            rows={
                key.removeprefix("rows/"): array
                for key, array in arrays.items()
                if key.startswith("rows/")
            },
            end_observations=arrays["end_observations"],
        )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"shard {path} is damaged ({error}); delete it and run again"
        ) from error


def read_lengths(path: Path) -> list[int]:
    """Rows of each episode of a shard, without reading the rest."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return [int(length) for length in file["lengths"]]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"shard {path} is damaged ({error}); delete it and run again"
        ) from error


def leading_shards(folder: Path) -> list[Path]:
    """Files of the shards that follow each other from episode 0 on."""
    paths: list[Path] = []
    first = 0
    while (path := shard_path(folder, first)).exists():
        paths.append(path)
        first += len(read_lengths(path))
    return paths


def join(paths: list[Path], episodes: int) -> Shard:
    """The first episodes of consecutive shards, read one by one into arrays of their final size.

    Args:
        paths: shards that follow each other, from episode 0 on.
        episodes: how many; the shards have at least so many.
    """
    lengths = [length for path in paths for length in read_lengths(path)][:episodes]
    total, row = sum(lengths), 0
    rows: dict[str, NDArray[Any]] = {}
    parts: list[Shard] = []
    for path in paths:
        shard = read_shard(path)
        shard = shard.head(episodes - shard.first)
        count = int(shard.lengths.sum())
        for key, array in shard.rows.items():
            if key not in rows:
                rows[key] = np.empty((total, *array.shape[1:]), array.dtype)
            rows[key][row : row + count] = array
        row += count
        parts.append(replace(shard, rows={}))
        if shard.first + len(shard.lengths) >= episodes:
            break
    return Shard(
        first=0,
        lengths=np.array(lengths, dtype=np.int64),
        targets=np.concatenate([part.targets for part in parts]),
        reached=np.concatenate([part.reached for part in parts]),
        rows=rows,
        end_observations=np.concatenate([part.end_observations for part in parts]),
    )


def open_shards(folder: Path, settings: dict[str, Any]) -> dict[int, int]:
    """Open the folder of an unfinished run, or start one.

    Args:
        folder: where the shards lie.
        settings: everything the episodes depend on; must equal that of the unfinished run.

    Returns:
        First episode -> rows, of each whole shard found.

    Raises:
        DatasetError: the folder belongs to a run with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS
    if path.exists():
        found = json.loads(path.read_text())
        if found != settings:
            differ = sorted(
                k for k in settings | found if settings.get(k) != found.get(k)
            )
            raise DatasetError(
                f"{folder} holds an unfinished run with other settings ({', '.join(differ)} "
                "differ); delete the folder or choose another output"
            )
    else:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(settings, indent=1, sort_keys=True))
        temporary.replace(path)
    done = {}
    for file in sorted(folder.iterdir()):
        if match := _NAME.match(file.name):
            done[int(match[1])] = sum(read_lengths(file))
        elif file.suffix == ".tmp":
            file.unlink()
    return done
