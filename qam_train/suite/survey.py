# SPDX-License-Identifier: Apache-2.0
"""A look at all files of a cell before it starts: manifests and lists of columns, no rows.

It costs less than a tenth of a second a file, and finds what would otherwise stop a training after hours: a file that
is missing a part, of another world, robot or kind, or not the one that a killed cell began with. Rows
are read, and their sha256 checked, when their turn comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from zipfile import ZipFile, ZipInfo

import numpy as np

from qam_ros.contract.archives import MAX_HEADER, UNREADABLE, open_archive
from qam_ros.contract.columns import COLUMNS
from qam_ros.contract.dataset import ROWS, DatasetManifest, read_dataset_manifest
from qam_ros.contract.errors import DatasetError
from qam_ros.contract.robot_interface import check_same_semantics

_BAD_HEADER = (SyntaxError, TypeError, TokenError)  # what numpy raises, too


def survey(files: Sequence[Path], world: str) -> tuple[DatasetManifest, ...]:
    """Manifests of dataset directories that replace each other.

    Args:
        files: the directories.
        world: that the cell plays in.

    Raises:
        DatasetError: a file is missing, truncated, of another world or number of rows, or has other
            columns than the first.
        InterfaceError: a file is of another robot than the first.
    """
    manifests = tuple(read_dataset_manifest(path) for path in files)
    columns: dict[Path, set[str]] = {}
    for path, manifest in zip(files, manifests, strict=True):
        check_world(path, manifest, world)
        check_same_semantics(
            manifest.interface, manifests[0].interface, f"dataset {path}"
        )
        columns[path] = _check_columns(path / ROWS, manifest)
    for path in files:
        if columns[path] != columns[files[0]]:
            differing = ", ".join(sorted(columns[path] ^ columns[files[0]]))
            raise DatasetError(
                f"{path}: expected the columns of {files[0]}, they differ in {differing}; make or import "
                "all files of a set in the same way"
            )
    return manifests


def check_world(path: Path, manifest: DatasetManifest, world: str) -> None:
    """Refuse rows of another world.

    Raises:
        DatasetError: names both.
    """
    found = manifest.meta.get("world")
    if found != world:
        raise DatasetError(
            f"{path}: made in world '{found}', the cell plays in '{world}'; "
            "give the dataset of this world",
            found=found,
            expected=world,
        )


def combined_sha256(manifests: Sequence[DatasetManifest]) -> str:
    """Hash (hex) of all rows in their order; of a single file, the one its manifest says."""
    hashes = [manifest.sha256 for manifest in manifests]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _check_columns(rows: Path, manifest: DatasetManifest) -> set[str]:
    """Names of the columns, once each is there and as long as the manifest says."""
    if not rows.is_file():
        raise DatasetError(
            f"{rows}: no such file; the dataset is incomplete, make it again"
        )
    try:
        with open_archive(rows, str(rows), DatasetError) as archive:
            shapes = {
                entry.filename.removesuffix(".npy"): _shape(archive, entry)
                for entry in archive.infolist()
            }
    except (*UNREADABLE, *_BAD_HEADER) as error:
        raise DatasetError(
            f"{rows}: not a readable npz file ({error}); it is truncated or damaged, make or copy it "
            "again"
        ) from error
    for name, expected in _expected_shapes(manifest).items():
        if shapes.get(name) != expected:
            raise DatasetError(
                f"{rows}: column '{name}' has the shape {shapes.get(name)}, its manifest says {expected}; "
                "the two do not belong together, make or copy the dataset again"
            )
    return set(shapes)


def _shape(archive: ZipFile, entry: ZipInfo) -> tuple[int, ...]:
    """Shape of a column, by its header alone."""
    with archive.open(entry) as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError(f"'{entry.filename}' is in a format that is not read")
        shape, _, _ = np.lib.format.read_array_header_1_0(
            member, max_header_size=MAX_HEADER
        )
    return tuple(shape)


def _expected_shapes(manifest: DatasetManifest) -> dict[str, tuple[int, ...]]:
    rows, interface = manifest.rows, manifest.interface
    return {
        **dict.fromkeys(COLUMNS, (rows,)),
        "observations": (rows, interface.observation_size),
        "actions": (rows, interface.action_size),
        "end_observations": (manifest.segments, interface.observation_size),
    }
