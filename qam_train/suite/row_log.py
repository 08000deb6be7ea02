# SPDX-License-Identifier: Apache-2.0
"""Rows of the online phase on disk: a file for each evaluation interval, never rewritten.

`rows-<last row>.safetensors` holds the rows since the file before it. A checkpoint names how many
rows belong to it; what was written after it is ignored and overwritten.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qam_ros.contract.errors import DatasetError
from qam_train.checkpoint import read_checkpoint, write_checkpoint
from qam_train.data.replay import OnlineRows

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class StoredRows(OnlineRows):
    """Rows as they are stored and appended."""

    def to(self, device: torch.device) -> OnlineRows:
        """The same rows on another device."""
        return OnlineRows(*(getattr(self, f.name).to(device) for f in fields(self)))


class RowLog:
    """Rows of one cell, those not yet written in memory.

    Args:
        directory: created with the first file.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._written = 0
        self._pending: list[StoredRows] = []

    def add(
        self,
        observation: Floats,
        action: Floats,
        reward: float,
        *,
        terminated: bool,
        following: Floats | None,
    ) -> None:
        """Add one row.

        Args:
            observation: (O,).
            action: (A,), executed.
            reward: of this step.
            terminated: stops the bootstrap.
            following: (O,), the next observation where this row ends its segment, else None.
        """
        ends = np.zeros((0, len(observation)), np.float32)
        self._pending.append(
            StoredRows(
                observations=torch.as_tensor(observation)[None],
                actions=torch.as_tensor(action)[None],
                rewards=torch.tensor([reward], dtype=torch.float32),
                masks=torch.tensor([0.0 if terminated else 1.0]),
                terminals=torch.tensor([0.0 if following is None else 1.0]),
                valid=torch.ones(1),
                next_observations=torch.as_tensor(
                    ends if following is None else following[None]
                ),
            )
        )

    def newest(self, device: torch.device) -> OnlineRows:
        """The row added last."""
        return self._pending[-1].to(device)

    def write(self) -> None:
        """Write what is pending."""
        if not self._pending:
            return
        rows = joined(self._pending)
        tensors = {f.name: getattr(rows, f.name) for f in fields(rows)}
        first, self._written = self._written, self._written + len(self._pending)
        write_checkpoint(self._path(self._written), tensors, {"first": first})
        self._pending = []

    def read(self, count: int) -> list[StoredRows]:
        """Rows 0 .. count-1, file by file; write() goes on after them.

        Raises:
            DatasetError: there are not as many, or a file is missing.
            CheckpointError: a file is damaged.
        """
        parts, last = [], count
        while last > 0:
            held = read_checkpoint(self._path(last))
            parts.append(StoredRows(**held.tensors))
            first = int(held.metadata["first"])
            if last - first != len(parts[-1].rewards):
                raise DatasetError(
                    f"{self._path(last)}: expected {last - first} rows, "
                    f"found {len(parts[-1].rewards)}; remove the cell's folder and run it again"
                )
            last = first
        self._written, self._pending = count, []
        return parts[::-1]

    def _path(self, last: int) -> Path:
        return self._directory / f"rows-{last:09d}.safetensors"


def joined(parts: list[StoredRows]) -> StoredRows:
    """Rows one after another."""
    columns: dict[str, Tensor] = {
        f.name: torch.cat([getattr(part, f.name) for part in parts])
        for f in fields(StoredRows)
    }
    return StoredRows(**columns)
