# SPDX-License-Identifier: Apache-2.0
"""Replay of the released code: the dataset followed by new rows in a ring of fixed capacity.

Bounded memory, one list, every row equally likely. A chunk may straddle the write position and then
joins the newest row with the oldest (official code); Replay never does that.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from qam_ros.contract.errors import DatasetError
from qam_train.data.dataset import ChunkBatch, FlatDataset
from qam_train.data.sampling import Sampler


@dataclass(frozen=True)
class RingRows:
    """Rows that each carry their next observation; n rows.

    Args:
        observations, next_observations: (n, O), raw.
        actions: (n, A), normalised.
        rewards, masks, terminals: (n,).
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    masks: Tensor
    terminals: Tensor
    next_observations: Tensor


class RingReplay:
    """Fixed store; `size` rows may be drawn, the next one is written at `pointer`."""

    def __init__(self, initial: RingRows, capacity: int) -> None:
        """Start with a dataset's rows.

        Args:
            initial: fewer rows than the capacity.
            capacity: rows of the store.

        Raises:
            DatasetError: the dataset does not fit.
        """
        count = len(initial.rewards)
        if count >= capacity:
            raise DatasetError(
                f"ring: capacity {capacity} must exceed the {count} rows it starts with"
            )
        self.capacity = capacity
        self.size = self.pointer = count
        self.rows = RingRows(
            *(self._room(getattr(initial, f.name)) for f in fields(initial))
        )
        self._index = torch.arange(capacity, device=initial.rewards.device)

    def _room(self, initial: Tensor) -> Tensor:
        store = initial.new_zeros((self.capacity, *initial.shape[1:]))
        store[: len(initial)] = initial
        return store

    def append(self, row: RingRows) -> None:
        """Write one row, a RingRows of length 1.

        When the pointer wraps, size stays at capacity - 1 for good: the last row of the store is
        never drawn again (official code).
        """
        for f in fields(row):
            getattr(self.rows, f.name)[self.pointer] = getattr(row, f.name)[0]
        self.pointer = (self.pointer + 1) % self.capacity
        self.size = max(self.pointer, self.size)

    def draw(
        self, sampler: Sampler, batch_size: int, generator: torch.Generator
    ) -> ChunkBatch:
        """Batch of B chunks as a sampler draws them."""
        return sampler.draw(self.view(), batch_size, generator)

    def view(self) -> FlatDataset:
        """Rows that may be drawn, without a copy."""
        rows, n = self.rows, self.size
        return FlatDataset(
            observations=rows.observations[:n],
            actions=rows.actions[:n],
            rewards=rows.rewards[:n],
            masks=rows.masks[:n],
            terminals=rows.terminals[:n],
            valid=torch.ones_like(rows.rewards[:n]),
            end_observations=rows.next_observations[:n],
            end_index=self._index[:n],
        )
