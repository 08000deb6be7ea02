# SPDX-License-Identifier: Apache-2.0
"""Datasets on disk: round trip, the committed sample, and every damage with its message."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from qam_ros.contract.dataset import (
    Dataset,
    from_transitions,
    read_dataset,
    read_dataset_manifest,
    write_dataset,
)
from qam_ros.contract.errors import DatasetError, InterfaceError
from qam_ros.contract.interface import RobotInterface, load_interface


@pytest.fixture
def dataset(samples: ModuleType, interface: RobotInterface) -> Dataset:
    return from_transitions(samples.sample_rows(interface), interface)


@pytest.fixture
def copied(data: Path, tmp_path: Path) -> Path:
    """A copy of the sample that may be damaged."""
    return Path(shutil.copytree(data / "dataset_v1", tmp_path / "dataset"))


def edit_manifest(directory: Path, **changes: Any) -> None:
    file = directory / "manifest.yaml"
    mapping = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(mapping | changes, sort_keys=False))


def assert_equal(found: Dataset, expected: Dataset) -> None:
    for field in dataclasses.fields(Dataset):
        if field.name != "extras":
            np.testing.assert_array_equal(
                getattr(found, field.name), getattr(expected, field.name)
            )
    assert set(found.extras) == set(expected.extras)
    for name, array in expected.extras.items():
        np.testing.assert_array_equal(found.extras[name], array)
        assert found.extras[name].dtype == array.dtype


def test_sample_of_format_1_still_loads_with_its_meaning(
    data: Path, interface: RobotInterface, dataset: Dataset
) -> None:
    loaded = read_dataset(data / "dataset_v1", interface)
    assert_equal(loaded, dataset)
    assert loaded.masks.tolist() == [1, 1, 1, 0, 1, 1]
    assert loaded.terminals.tolist() == [0, 0, 0, 1, 0, 1]
    assert loaded.valid.tolist() == [1, 1, 1, 1, 1, 0]
    np.testing.assert_array_equal(loaded.end_observations[0], np.full(4, 4.5))
    manifest = read_dataset_manifest(data / "dataset_v1")
    assert (manifest.rows, manifest.segments) == (6, 2)
    assert manifest.meta == {"made_by": "make_samples"}
    assert manifest.interface == interface


def test_dataset_survives_writing_and_reading(
    tmp_path: Path, interface: RobotInterface, dataset: Dataset
) -> None:
    extras = {
        "qpos": np.ones((6, 9), np.float32),
        "button_states": np.ones((6, 2), np.int64),
        "policy_version": np.arange(6, dtype=np.uint64),
    }
    full = dataclasses.replace(dataset, extras=extras)
    meta = {
        "generator": {"noise": 0.1, "goal_share": 0.2},
        "versions": {"mujoco": "4.0.0"},
    }
    manifest = write_dataset(tmp_path / "deep" / "dataset", full, interface, meta)
    assert_equal(read_dataset(tmp_path / "deep" / "dataset"), full)
    assert read_dataset_manifest(tmp_path / "deep" / "dataset") == manifest


def test_equal_datasets_have_equal_hashes(
    tmp_path: Path, interface: RobotInterface, dataset: Dataset
) -> None:
    first = write_dataset(tmp_path / "a", dataset, interface, {})
    second = write_dataset(tmp_path / "b", dataset, interface, {"other": 1})
    assert first.sha256 == second.sha256


def test_existing_directory_is_kept_unless_replaced(
    tmp_path: Path, interface: RobotInterface, dataset: Dataset
) -> None:
    target = tmp_path / "dataset"
    write_dataset(target, dataset, interface, {"made": 1})
    with pytest.raises(
        DatasetError, match=r"dataset: already exists; remove it or choose another"
    ):
        write_dataset(target, dataset, interface, {"made": 2})
    assert read_dataset_manifest(target).meta == {"made": 1}
    write_dataset(target, dataset, interface, {"made": 2}, replace=True)
    assert read_dataset_manifest(target).meta == {"made": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]


def test_failed_write_leaves_nothing_behind(
    tmp_path: Path, interface: RobotInterface, dataset: Dataset
) -> None:
    with pytest.raises(
        DatasetError, match=r"YAML cannot hold .*convert it to a plain number"
    ):
        write_dataset(tmp_path / "dataset", dataset, interface, {"seed": np.int64(3)})
    assert list(tmp_path.iterdir()) == []


def test_truncated_rows_are_refused(copied: Path) -> None:
    rows = copied / "rows.npz"
    rows.write_bytes(rows.read_bytes()[:-100])
    with pytest.raises(
        DatasetError, match=r"rows.npz: sha256 is \w+, the manifest says .*truncated"
    ):
        read_dataset(copied)


def test_one_changed_byte_is_noticed(copied: Path) -> None:
    rows = copied / "rows.npz"
    content = bytearray(rows.read_bytes())
    content[1000] ^= 1
    rows.write_bytes(bytes(content))
    with pytest.raises(DatasetError, match="sha256"):
        read_dataset(copied)


def test_truncated_rows_with_a_matching_hash_are_refused(copied: Path) -> None:
    import hashlib

    rows = copied / "rows.npz"
    rows.write_bytes(rows.read_bytes()[:-100])
    edit_manifest(copied, sha256=hashlib.sha256(rows.read_bytes()).hexdigest())
    with pytest.raises(DatasetError, match=r"rows.npz: not a readable npz file"):
        read_dataset(copied)


@pytest.mark.parametrize("name", ["rows.npz", "manifest.yaml"])
def test_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(DatasetError, match=rf"{name}: no such file"):
        read_dataset(copied)


def test_newer_version_is_refused(copied: Path) -> None:
    edit_manifest(copied, format_version=2)
    match = r"dataset format 2 is newer than this program, which reads up to 1; update qam_ros"
    with pytest.raises(DatasetError, match=match):
        read_dataset(copied)


def test_unknown_key_of_the_manifest_is_refused(copied: Path) -> None:
    edit_manifest(copied, row=6)
    with pytest.raises(
        DatasetError, match=r"manifest.yaml: unknown key 'row'; did you mean 'rows'"
    ):
        read_dataset(copied)


def test_wrong_count_in_the_manifest_is_refused(copied: Path) -> None:
    edit_manifest(copied, rows=7)
    with pytest.raises(
        DatasetError, match=r"6 rows in 2 segments, the manifest says 7 in 2"
    ):
        read_dataset(copied)


def test_wrong_interface_hash_is_refused(copied: Path) -> None:
    edit_manifest(copied, semantic_hash="0" * 64)
    with pytest.raises(DatasetError, match=r"semantic_hash is 0+, its interface has"):
        read_dataset(copied)


def test_dataset_of_another_robot_is_refused_in_words(copied: Path) -> None:
    with pytest.raises(
        InterfaceError, match=r"robot is sample_arm against mobile_base"
    ) as caught:
        read_dataset(copied, load_interface("mobile_base"))
    assert "made for another robot interface" in str(caught.value)


def _with(name: str, value: float, place: Any = 2) -> Callable[[Dataset], Dataset]:
    def spoil(dataset: Dataset) -> Dataset:
        array = getattr(dataset, name).copy()
        array[place] = value
        return dataclasses.replace(dataset, **{name: array})

    return spoil


REFUSED: dict[str, tuple[Callable[[Dataset], Dataset], str]] = {
    "NaN observation": (
        _with("observations", np.nan),
        r"'observations' must be finite; .*\(2, 0\)",
    ),
    "NaN reward": (_with("rewards", np.nan), r"'rewards' must be finite"),
    "NaN end observation": (
        _with("end_observations", np.nan, 0),
        r"'end_observations' must be finite",
    ),
    "action out of the box": (
        _with("actions", -1.01, (2, 1)),
        r"'actions' must lie in \[-1, 1\]; it does not at \(2, 1\) \(1 such values in all\)",
    ),
    "mask of a half": (_with("masks", 0.5), r"'masks' must be 0 or 1"),
    "open last segment": (
        lambda dataset: dataclasses.replace(
            _with("terminals", 0, 5)(dataset),
            end_observations=dataset.end_observations[:1],
        ),
        r"'terminals' is 0 on the last row; the last segment must be closed",
    ),
    "missing end observation": (
        lambda dataset: dataclasses.replace(
            dataset, end_observations=dataset.end_observations[:1]
        ),
        r"'end_observations' has shape \(1, 4\), expected \(2, 4\)",
    ),
    "short column": (
        lambda dataset: dataclasses.replace(dataset, rewards=dataset.rewards[:5]),
        r"'rewards' has shape \(5,\), expected \(6,\)",
    ),
    "double precision": (
        lambda dataset: dataclasses.replace(
            dataset, actions=dataset.actions.astype(np.float64)
        ),
        r"'actions' has type float64, expected float32; convert it",
    ),
    "unknown column": (
        lambda dataset: dataclasses.replace(
            dataset, extras={"qpo": np.zeros(6, np.float32)}
        ),
        r"unknown column 'qpo'; did you mean 'qpos'",
    ),
    "extra of another length": (
        lambda dataset: dataclasses.replace(
            dataset, extras={"qpos": np.zeros(5, np.float32)}
        ),
        r"'qpos' has shape \(5,\), expected \(6,\)",
    ),
    "no rows": (
        lambda dataset: Dataset(
            **{
                field.name: getattr(dataset, field.name)[:0]
                for field in dataclasses.fields(Dataset)
                if field.name != "extras"
            }
        ),
        r"the dataset has no rows; record or generate some first",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_dataset_that_cannot_be_trained_on_is_not_written(
    tmp_path: Path, interface: RobotInterface, dataset: Dataset, case: str
) -> None:
    spoil, message = REFUSED[case]
    with pytest.raises(DatasetError, match=message):
        write_dataset(tmp_path / "dataset", spoil(dataset), interface, {})
    assert list(tmp_path.iterdir()) == []


def test_objects_in_the_rows_are_never_unpickled(copied: Path) -> None:
    import hashlib

    rows = copied / "rows.npz"
    np.savez(rows, observations=np.array([{"a": 1}], dtype=object))
    edit_manifest(copied, sha256=hashlib.sha256(rows.read_bytes()).hexdigest())
    with pytest.raises(
        DatasetError, match=r"not a readable npz file \(Object arrays cannot be loaded"
    ):
        read_dataset(copied)
