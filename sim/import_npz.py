# SPDX-License-Identifier: Apache-2.0
"""OGBench's npz files to our datasets and back.

OGBench stores one row more than there are transitions: the last observation of a trajectory has a
row of its own, whose action means nothing.

    npz      observations  s0 s1 s2 s3 | s4 s5 s6     terminals  0 0 0 1 | 0 0 1
    dataset  observations  s0 s1 s2    | s4 s5        terminals  0 0 1   | 0 1
             end_observations          s3 |    s6
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qam_ros.contract.dataset import Dataset, DatasetManifest, validate_dataset
from qam_ros.contract.errors import DatasetError, check_shape
from qam_ros.contract.files import atomic_file, read_npz
from qam_ros.contract.interface import RobotInterface
from sim.labels import LABEL_KEYS, label
from sim.store import dataset_of, interface_for, save
from sim.worlds import WORLDS

MAX_FILE_BYTES = (
    64 * 2**30
)  # after decompression; the largest official file has a few GiB
_NEEDED = ("observations", "actions", "terminals")


def import_npz(
    sources: Sequence[Path],
    output: Path,
    *,
    world: str | None = None,
    task: int = 1,
    robot: str | None = None,
    sparse: bool = False,
) -> DatasetManifest:
    """Import OGBench files, labelled for one task.

    Args:
        sources: npz files, or folders whose npz files are taken in order of name, those that end in
            `-val.npz` left out.
        output: folder of the dataset to write.
        world: key of `WORLDS`; None reads it from the first file's name.
        task: 1..5: rewards and masks are those of this task.
        robot: robot interface (default: the world's).
        sparse: -1 for every unfinished state in place of minus the number of unmet sub-goals.

    Raises:
        DatasetError: a file is missing, damaged, not of this layout, or does not fit the robot.
    """
    files = npz_files(sources)
    world = world or world_of(files[0])
    interface = interface_for(world, robot)
    parts = [_read(file, interface) for file in files]
    _check_same_arrays(files, parts)
    dataset = _concatenate(parts)
    rewards, masks = label(world, task, dict(dataset.extras), sparse=sparse)
    labelled = dataset_of(
        {
            "observations": dataset.observations,
            "actions": dataset.actions,
            "rewards": rewards,
            "masks": masks,
            **dataset.extras,
        },
        segment_lengths(dataset),
        dataset.end_observations,
    )
    how = {"imported": [file.name for file in files], "sparse": sparse}
    return save(output, labelled, interface, world, task, how)


def export_npz(dataset: Dataset, output: Path) -> None:
    """Write a dataset as one npz file in OGBench's layout.

    The added last row of a trajectory repeats the last action and recorded state: OGBench's loader
    drops it. Rewards and masks are not part of that layout.

    Raises:
        DatasetError: the output exists.
    """
    lengths = segment_lengths(dataset)
    ends = np.cumsum(lengths)
    arrays: dict[str, NDArray[Any]] = {
        "observations": np.insert(
            dataset.observations, ends, dataset.end_observations, axis=0
        ),
        "actions": np.insert(dataset.actions, ends, dataset.actions[ends - 1], axis=0),
        "terminals": np.insert(np.zeros(len(dataset), dtype=bool), ends, values=True),
    }
    for key in LABEL_KEYS:
        if key in dataset.extras:
            column = dataset.extras[key]
            arrays[key] = np.insert(column, ends, column[ends - 1], axis=0)
    with (
        atomic_file(output, DatasetError, replace=False) as temporary,
        temporary.open("wb") as file,
    ):
        np.savez_compressed(file, allow_pickle=False, **arrays)


def segment_lengths(dataset: Dataset) -> NDArray[np.int64]:
    """Rows of each segment, (S,)."""
    ends = np.flatnonzero(dataset.terminals) + 1
    return np.diff(ends, prepend=0)


def npz_files(sources: Sequence[Path]) -> list[Path]:
    """The files that are meant by files and folders.

    Raises:
        DatasetError: a path does not exist, or a folder holds no npz file.
    """
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            found = sorted(source.glob("*.npz"))
            found = [file for file in found if not file.stem.endswith("-val")]
            if not found:
                raise DatasetError(f"{source} holds no .npz file to import")
            files += found
        elif source.is_file():
            files.append(source)
        else:
            raise DatasetError(f"{source}: no such file or folder")
    if not files:
        raise DatasetError("name at least one .npz file or folder to import")
    return files


def world_of(file: Path) -> str:
    """World that an official file name starts with, e.g. cube-single-play-v0.npz.

    Raises:
        DatasetError: no known world.
    """
    for world in sorted(WORLDS, key=len, reverse=True):
        if file.name.startswith(world + "-"):
            return world
    raise DatasetError(
        f"{file.name}: cannot tell the world from the name; give --world "
        f"({', '.join(sorted(WORLDS))})"
    )


def _read(file: Path, interface: RobotInterface) -> Dataset:
    """One file as a dataset whose labels are still empty."""
    where = str(file)
    arrays = read_npz(file, MAX_FILE_BYTES, where, DatasetError)
    for key in _NEEDED:
        if key not in arrays:
            raise DatasetError(
                f"{where}: array '{key}' is missing; it has {', '.join(sorted(arrays))}"
            )
    rows = len(arrays["terminals"])
    check_shape(
        "observations",
        arrays["observations"],
        (rows, interface.observation_size),
        f"{where} for robot {interface.robot}",
        DatasetError,
    )
    check_shape(
        "actions",
        arrays["actions"],
        (rows, interface.action_size),
        f"{where} for robot {interface.robot}",
        DatasetError,
    )
    last = arrays["terminals"].astype(bool)
    if rows < 2 or not last[-1] or np.any(last[1:] & last[:-1]) or last[0]:
        raise DatasetError(
            f"{where}: 'terminals' must be 1 on the last row of each trajectory, and every "
            "trajectory needs at least two rows"
        )
    extras = _states(arrays, rows, where)
    dataset = dataset_of(
        {
            "observations": arrays["observations"][~last].astype(np.float32),
            "actions": arrays["actions"][~last].astype(np.float32),
            "rewards": np.zeros(rows - int(last.sum()), dtype=np.float32),
            "masks": np.ones(rows - int(last.sum()), dtype=np.float32),
            **{key: array[~last] for key, array in extras.items()},
        },
        np.diff(np.flatnonzero(last) + 1, prepend=0) - 1,
        arrays["observations"][last].astype(np.float32),
    )
    validate_dataset(dataset, interface, where)
    return dataset


def _states(
    arrays: Mapping[str, NDArray[Any]], rows: int, where: str
) -> dict[str, NDArray[Any]]:
    states = {}
    for key in LABEL_KEYS:
        if key in arrays:
            check_shape(key, arrays[key], (rows, None), where, DatasetError)
            states[key] = arrays[key].astype(
                np.int64 if key == "button_states" else np.float32
            )
    return states


def _check_same_arrays(files: Sequence[Path], parts: Sequence[Dataset]) -> None:
    for file, part in zip(files, parts, strict=True):
        if set(part.extras) != set(parts[0].extras):
            raise DatasetError(
                f"{file} records {sorted(part.extras)}, {files[0]} {sorted(parts[0].extras)}; "
                "import them separately"
            )


def _concatenate(parts: Sequence[Dataset]) -> Dataset:
    if len(parts) == 1:  # the largest published files fill gigabytes: no copy of them
        return parts[0]
    columns = ("observations", "actions", "rewards", "masks")
    rows = {
        key: np.concatenate([getattr(part, key) for part in parts]) for key in columns
    }
    for key in LABEL_KEYS:
        if key in parts[0].extras:
            rows[key] = np.concatenate([part.extras[key] for part in parts])
    return dataset_of(
        rows,
        np.concatenate([segment_lengths(part) for part in parts]),
        np.concatenate([part.end_observations for part in parts]),
    )
