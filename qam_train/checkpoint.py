# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: one safetensors file each, written atomically, verified when read.

A file appears under its name only when it is complete and on disk, so a checkpoint survives a kill
at any instant. The header carries JSON metadata and a SHA-256 over metadata and tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from qam_ros.contract.errors import QamError

CHECKPOINT_VERSION = 1
HEADER = "qam_checkpoint"
_NAME = re.compile(r"checkpoint-(\d{9})\.safetensors")


class CheckpointError(QamError):
    """A checkpoint is missing, damaged or of another version."""


@dataclass(frozen=True)
class Checkpoint:
    """What one file holds: named tensors, and metadata that JSON can express."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def checkpoint_path(directory: Path, update: int) -> Path:
    """File of the checkpoint after a number of updates."""
    return directory / f"checkpoint-{update:09d}.safetensors"


def write_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write a file, force it to disk, then give it its name.

    Args:
        path: final name; its directory is created.
        tensors: flat names to tensors of any dtype and device.
        metadata: JSON values; 'format_version' is added.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(
        {"format_version": CHECKPOINT_VERSION, **metadata}, sort_keys=True
    )
    # one header entry: safetensors writes several in no fixed order
    header = json.dumps({"metadata": text, "sha256": _digest(text, plain)})
    data = safetensors.torch.save(plain, {HEADER: header})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_directory(path.parent)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a file.

    Raises:
        CheckpointError: missing, truncated, altered, or written by a newer version.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            entry = (file.metadata() or {}).get(HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: expected a checkpoint, found no file"
        ) from error
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path}: expected a complete safetensors file: {error}; use an earlier checkpoint"
        ) from error
    if entry is None:
        raise CheckpointError(
            f"{path}: a safetensors file, but no checkpoint (no '{HEADER}' in its header)"
        )
    header = json.loads(entry)
    if _digest(header["metadata"], tensors) != header["sha256"]:
        raise CheckpointError(
            f"{path}: contents do not match their SHA-256; use an earlier checkpoint"
        )
    metadata = json.loads(header["metadata"])
    if metadata["format_version"] > CHECKPOINT_VERSION:
        raise CheckpointError(
            f"{path}: format version {metadata['format_version']}, this program reads up to "
            f"{CHECKPOINT_VERSION}; upgrade it"
        )
    return Checkpoint(tensors, metadata)


def checkpoints(directory: Path) -> list[Path]:
    """Numbered checkpoints of a directory, oldest first; unfinished files are not listed."""
    return sorted(
        path
        for path in directory.glob("checkpoint-*.safetensors")
        if _NAME.fullmatch(path.name)
    )


def latest_checkpoint(directory: Path) -> Path | None:
    """Newest checkpoint of a directory, None where there is none."""
    found = checkpoints(directory)
    return found[-1] if found else None


def remove_old(directory: Path, keep: int) -> None:
    """Remove all but the newest checkpoints, and what an interrupted write left; 0 keeps all."""
    for partial in directory.glob(".*.partial"):
        partial.unlink()
    if keep > 0:
        for path in checkpoints(directory)[:-keep]:
            path.unlink()


def go_on_drawing(generator: torch.Generator, state: Tensor) -> None:
    """Set a generator to a stored state.

    Raises:
        CheckpointError: it is that of a generator on another kind of device.
    """
    expected = generator.get_state().numel()
    if state.numel() != expected:
        raise CheckpointError(
            f"checkpoint: random numbers were drawn on another kind of device (a state of {state.numel()} "
            f"bytes, on {generator.device.type} it has {expected}); go on with --device as it began, or "
            "start anew"
        )
    generator.set_state(state)


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
