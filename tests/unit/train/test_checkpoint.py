# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: round trip, damage, and interruption."""

import json
import os

import pytest
import safetensors.torch
import torch

from qam_train import checkpoint
from qam_train.checkpoint import (
    CheckpointError,
    checkpoint_path,
    go_on_drawing,
    read_checkpoint,
    write_checkpoint,
)


def _tensors():
    return {
        "a": torch.randn(3, 4, dtype=torch.float64),
        "b/c": torch.arange(5, dtype=torch.uint8),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros((0, 3)),
        "strided": torch.randn(4, 3).mT,
    }


def test_tensors_and_metadata_come_back_unchanged(tmp_path):
    tensors, metadata = (
        _tensors(),
        {"update": 3, "clip_norm": float("inf"), "names": ["a", "b"]},
    )
    path = checkpoint_path(tmp_path / "new", 3)
    write_checkpoint(path, tensors, metadata)
    held = read_checkpoint(path)
    assert held.metadata == {**metadata, "format_version": 1}
    assert held.tensors.keys() == tensors.keys()
    assert all(
        torch.equal(held.tensors[name], value) for name, value in tensors.items()
    )


def test_a_generator_goes_on_where_the_stored_one_was():
    first, second = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    go_on_drawing(second, first.get_state())
    draws = [torch.rand(3, generator=generator) for generator in (first, second)]
    assert torch.equal(*draws)


def test_random_numbers_of_another_kind_of_device_are_refused_in_words():
    state = torch.zeros(16, dtype=torch.uint8)  # as large as that of a GPU's generator
    with pytest.raises(CheckpointError, match=r"another kind of device .*--device"):
        go_on_drawing(torch.Generator(), state)


def test_truncated_file_is_refused(tmp_path):
    path = checkpoint_path(tmp_path, 1)
    write_checkpoint(path, _tensors(), {})
    data = path.read_bytes()
    for size in (0, 4, 100, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match="complete safetensors file"):
            read_checkpoint(path)


def test_altered_number_is_refused(tmp_path):
    path = checkpoint_path(tmp_path, 1)
    write_checkpoint(path, _tensors(), {})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="do not match their SHA-256"):
        read_checkpoint(path)


def test_newer_format_is_refused(tmp_path, monkeypatch):
    path = checkpoint_path(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "CHECKPOINT_VERSION", 2)
        write_checkpoint(path, _tensors(), {})
    with pytest.raises(
        CheckpointError, match="format version 2, this program reads up to 1"
    ):
        read_checkpoint(path)


def test_missing_file_and_foreign_safetensors_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="found no file"):
        read_checkpoint(tmp_path / "none.safetensors")
    safetensors.torch.save_file(
        {"a": torch.zeros(1)}, tmp_path / "weights.safetensors", {"x": json.dumps(1)}
    )
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_checkpoint(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_interrupted_write_leaves_the_older_checkpoint_as_newest(
    tmp_path, monkeypatch, step
):
    write_checkpoint(checkpoint_path(tmp_path, 1), _tensors(), {"update": 1})

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "fsync":
            patch.setattr(os, "fsync", killed)
        else:
            patch.setattr(checkpoint.Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(checkpoint_path(tmp_path, 2), _tensors(), {"update": 2})
    newest = checkpoint.latest_checkpoint(tmp_path)
    assert newest is not None
    assert read_checkpoint(newest).metadata["update"] == 1
    checkpoint.remove_old(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == [newest.name]


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for update in (900, 1000, 20):
        write_checkpoint(checkpoint_path(tmp_path, update), {"a": torch.zeros(1)}, {})
    checkpoint.remove_old(tmp_path, 0)
    assert len(checkpoint.checkpoints(tmp_path)) == 3
    checkpoint.remove_old(tmp_path, 2)
    assert checkpoint.checkpoints(tmp_path) == [
        checkpoint_path(tmp_path, u) for u in (900, 1000)
    ]


def test_directory_without_checkpoints_has_no_newest(tmp_path):
    (tmp_path / "checkpoint-1.safetensors").touch()
    assert checkpoint.latest_checkpoint(tmp_path) is None
    assert checkpoint.latest_checkpoint(tmp_path / "none") is None
