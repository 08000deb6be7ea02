# SPDX-License-Identifier: Apache-2.0
"""Chunk queue: which action of which chunk is due, and when a new chunk is needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ChunkStep:
    """One action out of a chunk.

    Args:
        action: (A,), normalised.
        chunk_id: counter of chunks, from 0.
        index: position of the action inside its chunk.
        version: policy version that proposed the chunk.
    """

    action: Float32Array
    chunk_id: int
    index: int
    version: int


class ChunkQueue:
    """Actions of the current chunk; the whole chunk, or its first ``replan_every`` actions, are used.

    Args:
        chunk_length: h, actions in a chunk.
        replan_every: actions used of each chunk; None for all of them (open loop).
    """

    def __init__(self, chunk_length: int, replan_every: int | None = None) -> None:
        self._limit = (
            chunk_length if replan_every is None else min(replan_every, chunk_length)
        )
        self._chunk: Float32Array | None = None
        self._index = 0
        self._version = 0
        self._next_id = 0

    @property
    def at_boundary(self) -> bool:
        """A new chunk is needed, so weights may change now."""
        return self._chunk is None or self._index >= self._limit

    def push(self, chunk: Float32Array, version: int) -> None:
        """Start on a new chunk.

        Args:
            chunk: (h, A), normalised.
            version: policy version that proposed it.
        """
        self._chunk = chunk
        self._index = 0
        self._version = version
        self._next_id += 1

    def pop(self) -> ChunkStep:
        """The action that is due; call only when not ``at_boundary``."""
        assert self._chunk is not None
        step = ChunkStep(
            self._chunk[self._index], self._next_id - 1, self._index, self._version
        )
        self._index += 1
        return step

    def clear(self) -> None:
        """Drop what is left of the chunk."""
        self._chunk = None
