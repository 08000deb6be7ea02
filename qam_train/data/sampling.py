# SPDX-License-Identifier: Apache-2.0
"""How a method draws its chunks, and what they may be drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from qam_train.data.dataset import ChunkBatch, FlatDataset


class Sampler(Protocol):
    """A way to draw training chunks from consecutive rows."""

    def places(self, data: FlatDataset) -> int:
        """How many places there are to draw from, by which parts of a replay are weighed."""

    def draw(
        self, data: FlatDataset, batch_size: int, generator: torch.Generator
    ) -> ChunkBatch:
        """Draw B chunks.

        Raises:
            DatasetError: there is no place to draw from.
        """


@dataclass(frozen=True)
class UniformChunks:
    """Chunks whose starts are uniform over all rows (FlatDataset.sample).

    Args:
        h: steps.
        discount: gamma per step.
        pad_terminated: keep chunks that cross a terminated end.
    """

    h: int
    discount: float
    pad_terminated: bool = False

    def places(self, data: FlatDataset) -> int:
        """Rows a chunk may start at."""
        return data.starts(self.h)

    def draw(
        self, data: FlatDataset, batch_size: int, generator: torch.Generator
    ) -> ChunkBatch:
        """FlatDataset.sample."""
        return data.sample(
            batch_size,
            self.h,
            self.discount,
            generator,
            pad_terminated=self.pad_terminated,
        )


class Source(Protocol):
    """Rows that training draws from: a dataset or a replay."""

    def draw(
        self, sampler: Sampler, batch_size: int, generator: torch.Generator
    ) -> ChunkBatch:
        """Batch of B chunks as a sampler draws them."""
