# SPDX-License-Identifier: Apache-2.0
"""RQL's own way to draw chunks: an episode uniformly, then a start inside it.

A row past the end of the episode repeats its last row. The chunk's mask is that of its last action
alone, and a chunk that ends with the episode bootstraps at the last observation, not at the one
after it (all as in the official code of RQL). Against FlatDataset.sample, short episodes are drawn
more often.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qam_ros.contract.errors import DatasetError
from qam_train.data.dataset import ChunkBatch, FlatDataset, discount_powers


@dataclass(frozen=True)
class SegmentBatch(ChunkBatch):
    """A batch that knows which of its actions were executed.

    Args:
        inside: (B, h), 1 for actions up to the episode's last, 0 for repeated ones.
    """

    inside: Tensor


@dataclass(frozen=True)
class SegmentWindows:
    """Rows start .. start+h of some episodes, time first, the last row repeated past the end.

    Args:
        observations: (h+1, B, O).
        actions: (h+1, B, A).
        rewards, terminals, masks: (h+1, B).
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminals: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Segments:
    """Episodes of a dataset; S of them.

    Args:
        first, last: (S,), first and last row of each.
        long: (L,), those of two rows or more.
    """

    first: Tensor
    last: Tensor
    long: Tensor

    @classmethod
    def of(cls, data: FlatDataset) -> Segments:
        """Episodes end at the rows with terminal = 1; rows after the last end belong to none."""
        return cls(data.first_rows, data.last_rows, data.long_segments)

    def starts(self) -> tuple[Tensor, Tensor]:
        """Every (episode, row) that may be drawn: all rows but the last of each episode."""
        count = self.last - self.first
        episode = torch.arange(len(count), device=count.device).repeat_interleave(count)
        offset = count.cumsum(0) - count
        row = torch.arange(len(episode), device=count.device) - offset[episode]
        return episode, self.first[episode] + row

    def draw(
        self, batch_size: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Episodes (B,), uniform over those of two rows or more, and a start in each.

        Raises:
            DatasetError: no episode has two rows.
        """
        if len(self.long) == 0:
            raise DatasetError("dataset: expected an episode of two rows, got none")
        draws = torch.randint(
            len(self.long), (batch_size,), generator=generator, device=generator.device
        )
        episode = self.long[draws]
        share = torch.rand(batch_size, generator=generator, device=generator.device)
        span = self.last[episode] - self.first[episode]
        step = (share * span).long().clamp(max=span - 1)
        return episode, self.first[episode] + step


def segment_windows(
    data: FlatDataset, segments: Segments, episode: Tensor, start: Tensor, h: int
) -> SegmentWindows:
    """Rows start .. start+h of the episodes; episode and start (B,)."""
    steps = torch.arange(h + 1, device=start.device)[:, None]
    rows = torch.minimum(start + steps, segments.last[episode])  # (h+1, B)
    return SegmentWindows(
        observations=data.observations[rows],
        actions=data.actions[rows],
        rewards=data.rewards[rows],
        terminals=data.terminals[rows],
        masks=data.masks[rows],
    )


def segment_batch(window: SegmentWindows, discount: float) -> SegmentBatch:
    """Training batch of h = len - 1 actions; a chunk that crosses the episode's end is not valid."""
    h = len(window.rewards) - 1
    ended = torch.zeros_like(window.terminals)
    ended[1:] = window.terminals[:-1]  # (h+1, B), 1 on repeated rows
    weights = discount_powers(discount, h, ended)
    inside = 1.0 - ended[:h]
    return SegmentBatch(
        observations=window.observations[0],
        actions=window.actions[:h].transpose(0, 1),
        rewards=(window.rewards[:h] * weights[:, None] * inside).sum(0),
        masks=window.masks[h - 1],
        valid=(ended.sum(0) <= 1.0).to(ended.dtype),
        next_observations=window.observations[h],
        inside=inside.T,
    )


@dataclass(frozen=True)
class SegmentChunks:
    """Chunks of uniform episodes; a chunk that touches an untrusted row weighs nothing.

    Args:
        h: steps.
        discount: gamma per step.
    """

    h: int
    discount: float

    def places(self, data: FlatDataset) -> int:
        """Episodes that may be drawn; the one that still goes on is none."""
        return len(data.long_segments)

    def draw(
        self, data: FlatDataset, batch_size: int, generator: torch.Generator
    ) -> SegmentBatch:
        """Draw B chunks.

        Raises:
            DatasetError: no episode has two rows.
        """
        segments = Segments.of(data)
        episode, start = segments.draw(batch_size, generator)
        window = segment_windows(data, segments, episode, start, self.h)
        batch = segment_batch(window, self.discount)
        steps = torch.arange(self.h, device=start.device)
        rows = torch.minimum(start[:, None] + steps, segments.last[episode, None])
        trusted = data.valid[rows].amin(1)  # (B,)
        return replace(
            batch,
            valid=batch.valid * trusted,
            inside=batch.inside * trusted[:, None],
        )
