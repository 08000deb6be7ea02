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
    """Actions of the current chunk; all that are left, or ``replan_every`` of them, are to be used.

    Args:
        chunk_length: h, actions in a chunk.
        replan_every: actions used of each chunk; None for all of them (open loop).
    """

    def __init__(self, chunk_length: int, replan_every: int | None = None) -> None:
        self.skipped = 0
        self._length = chunk_length
        self._use = chunk_length if replan_every is None else replan_every
        self._limit = 0
        self._chunk: Float32Array | None = None
        self._index = 0
        self._version = 0
        self._next_id = 0

    @property
    def at_boundary(self) -> bool:
        """All actions to be used were used: a new chunk is needed, so weights may change now."""
        return self.left <= 0

    @property
    def left(self) -> int:
        """Actions still to be used; those after ``replan_every`` only count as a reserve."""
        return 0 if self._chunk is None else self._limit - self._index

    @property
    def empty(self) -> bool:
        """Nothing of the chunk is left, the reserve included."""
        return self._chunk is None or self._index >= self._length

    def push(self, chunk: Float32Array, version: int, skip: int = 0) -> None:
        """Start on a new chunk.

        Args:
            chunk: (h, A), normalised.
            version: policy version that proposed it.
            skip: actions at its start whose time has passed.
        """
        self._chunk = chunk
        self._index = skip
        self._limit = min(skip + self._use, self._length)
        self._version = version
        self._next_id += 1
        self.skipped += min(skip, self._length)

    def seek(self, index: int) -> None:
        """Go forward to the action with this index, whose time it is."""
        if self._chunk is not None and index > self._index:
            self.skipped += min(index, self._length) - min(self._index, self._length)
            self._index = index

    def pop(self) -> ChunkStep:
        """The action that is due; call only when not ``empty``."""
        assert self._chunk is not None
        step = ChunkStep(
            self._chunk[self._index], self._next_id - 1, self._index, self._version
        )
        self._index += 1
        return step

    def clear(self) -> None:
        """Drop what is left of the chunk."""
        self._chunk = None
