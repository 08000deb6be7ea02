# SPDX-License-Identifier: Apache-2.0
"""Training datasets on disk: a manifest and one npz file. Format: docs/formats/dataset.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from qam_ros.contract.columns import COLUMNS, EXTRAS, Dataset, validate_dataset
from qam_ros.contract.conversion import from_transitions
from qam_ros.contract.errors import DatasetError, check_keys
from qam_ros.contract.files import atomic_directory, read_npz, sha256_file, write_file
from qam_ros.contract.interface_yaml import read_interface, write_interface
from qam_ros.contract.reading import dump_yaml, load_yaml, read_integer, read_text
from qam_ros.contract.robot_interface import RobotInterface, check_same_semantics

__all__ = [
    "DATASET_VERSION",
    "EXTRAS",
    "Dataset",
    "DatasetManifest",
    "from_transitions",
    "read_dataset",
    "read_dataset_manifest",
    "validate_dataset",
    "write_dataset",
]

DATASET_VERSION: Final = 1
MANIFEST: Final = "manifest.yaml"
ROWS: Final = "rows.npz"

_NPY_HEADER_BYTES: Final = 4096


@dataclass(frozen=True)
class DatasetManifest:
    """What a dataset's manifest says.

    Args:
        format_version: version of the format it was written in.
        interface: the robot interface of its rows.
        sha256: of rows.npz (hex); names the dataset wherever it is used.
        rows: N.
        segments: S.
        meta: how it was made (generator settings, simulator version, ...).
    """

    format_version: int
    interface: RobotInterface
    sha256: str
    rows: int
    segments: int
    meta: Mapping[str, Any]


def write_dataset(
    path: str | Path,
    dataset: Dataset,
    interface: RobotInterface,
    meta: Mapping[str, Any],
    *,
    replace: bool = False,
) -> DatasetManifest:
    """Write a dataset directory, whole or not at all.

    Args:
        path: the directory.
        dataset: what to write.
        interface: its robot.
        meta: how it was made; plain numbers, texts, lists and mappings.
        replace: take the place of an existing directory.

    Raises:
        DatasetError: the directory exists, or see ``validate_dataset``.
    """
    directory = Path(path)
    validate_dataset(dataset, interface, str(directory))
    with atomic_directory(directory, DatasetError, replace=replace) as temporary:
        columns = {name: getattr(dataset, name) for name in COLUMNS}
        columns |= {f"extra/{name}": array for name, array in dataset.extras.items()}
        np.savez(temporary / ROWS, **columns)
        manifest = DatasetManifest(
            format_version=DATASET_VERSION,
            interface=interface,
            sha256=sha256_file(temporary / ROWS),
            rows=len(dataset),
            segments=dataset.segments,
            meta=meta,
        )
        text = dump_yaml(
            _manifest_mapping(manifest), str(directory / MANIFEST), DatasetError
        )
        write_file(temporary / MANIFEST, text.encode("utf-8"))
    return manifest


def read_dataset(path: str | Path, interface: RobotInterface | None = None) -> Dataset:
    """Read a dataset directory after checking version, hash and, if given, the robot.

    Args:
        path: the directory.
        interface: the robot the data shall be used for, or None to take any.

    Raises:
        DatasetError: missing, truncated, damaged, newer than this program, or not trainable.
        InterfaceError: made for another robot interface; explained in words.
    """
    directory = Path(path)
    manifest = read_dataset_manifest(directory)
    if interface is not None:
        check_same_semantics(manifest.interface, interface, f"dataset {directory}")
    rows = directory / ROWS
    if not rows.is_file():
        raise DatasetError(
            f"{rows}: no such file; the dataset is incomplete, make it again"
        )
    found = sha256_file(rows)
    if found != manifest.sha256:
        raise DatasetError(
            f"{rows}: sha256 is {found}, the manifest says {manifest.sha256}; the file is truncated "
            "or was changed, make or copy the dataset again",
            found=found,
            expected=manifest.sha256,
        )
    limit = (
        rows.stat().st_size + _NPY_HEADER_BYTES
    )  # the columns are stored uncompressed
    columns = read_npz(rows, limit, str(rows), DatasetError)
    extras = {
        name.removeprefix("extra/"): columns.pop(name)
        for name in list(columns)
        if name.startswith("extra/")
    }
    check_keys(columns, tuple(COLUMNS), (), str(rows), DatasetError)
    dataset = Dataset(**columns, extras=extras)
    validate_dataset(dataset, manifest.interface, str(directory))
    if (len(dataset), dataset.segments) != (manifest.rows, manifest.segments):
        raise DatasetError(
            f"{directory}: {len(dataset)} rows in {dataset.segments} segments, the manifest says "
            f"{manifest.rows} in {manifest.segments}; make the dataset again"
        )
    return dataset


def read_dataset_manifest(path: str | Path) -> DatasetManifest:
    """Read the manifest of a dataset directory.

    Raises:
        DatasetError: missing, damaged, or newer than this program.
        InterfaceError: the interface inside is malformed.
    """
    file = Path(path) / MANIFEST
    mapping = load_yaml(file, DatasetError)
    where = str(file)
    version = read_integer(
        mapping.get("format_version"), f"{where}, format_version", 1, DatasetError
    )
    if version > DATASET_VERSION:
        raise DatasetError(
            f"{where}: dataset format {version} is newer than this program, which reads up to "
            f"{DATASET_VERSION}; update qam_ros",
            found=version,
            expected=DATASET_VERSION,
        )
    keys = (
        "format_version",
        "rows",
        "segments",
        "sha256",
        "semantic_hash",
        "meta",
        "interface",
    )
    check_keys(mapping, keys, (), where, DatasetError)
    interface = read_interface(mapping["interface"], f"{where}, interface")
    if interface.semantic_hash != mapping["semantic_hash"]:
        raise DatasetError(
            f"{where}: semantic_hash is {mapping['semantic_hash']}, its interface has "
            f"{interface.semantic_hash}; the manifest was changed by hand",
            found=mapping["semantic_hash"],
            expected=interface.semantic_hash,
        )
    return DatasetManifest(
        format_version=version,
        interface=interface,
        sha256=read_text(mapping["sha256"], f"{where}, sha256", DatasetError),
        rows=read_integer(mapping["rows"], f"{where}, rows", 1, DatasetError),
        segments=read_integer(
            mapping["segments"], f"{where}, segments", 1, DatasetError
        ),
        meta=mapping["meta"],
    )


def _manifest_mapping(manifest: DatasetManifest) -> dict[str, Any]:
    return {
        "format_version": manifest.format_version,
        "rows": manifest.rows,
        "segments": manifest.segments,
        "sha256": manifest.sha256,
        "semantic_hash": manifest.interface.semantic_hash,
        "meta": dict(manifest.meta),
        "interface": write_interface(manifest.interface),
    }
