# SPDX-License-Identifier: Apache-2.0
"""Chunk batches and the flat dataset they are sampled from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ChunkBatch:
    """One training batch; each row is a chunk of h consecutive control periods.

    Args:
        observations: (B, O), raw (not normalised), at the start of the chunk.
        actions: (B, h, A), executed actions, normalised to [-1, 1].
        rewards: (B,), discounted return R_h inside the chunk.
        masks: (B,), 0 where a goal or terminated end inside the chunk stops the bootstrap.
        valid: (B,), 1 where the chunk lies inside one segment of trusted rows.
        next_observations: (B, O), raw, where the bootstrap value is taken.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    masks: Tensor
    valid: Tensor
    next_observations: Tensor
