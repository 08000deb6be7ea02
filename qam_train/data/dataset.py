# SPDX-License-Identifier: Apache-2.0
"""Flat dataset in memory and the chunk sampler over it.

Rows of all segments lie one after another. A chunk is h consecutive rows; what it may read past
the end of a segment is decided here and nowhere else: padding is the sampler's view, never a row.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from qam_ros.contract.errors import DatasetError

if TYPE_CHECKING:
    from qam_ros.contract.dataset import Dataset
    from qam_train.data.sampling import Sampler


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

    def rows(self, index: Tensor) -> Self:
        """Select or reorder rows."""
        return type(self)(
            *(getattr(self, f.name)[index] for f in dataclasses.fields(self))
        )

    @classmethod
    def concatenate(cls, first: ChunkBatch, second: ChunkBatch) -> Self:
        """Rows of both batches, which are of this class."""
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(*(torch.cat([getattr(first, n), getattr(second, n)]) for n in names))


@dataclass(frozen=True)
class ChunkWindows:
    """Chunks with every intermediate step, as the official sampler returns them.

    Args:
        observations: (B, O), at the start.
        actions: (B, h, A).
        rewards: (B, h), discounted sum up to and including step i; stops after a segment end.
        masks: (B, h), running minimum.
        terminals: (B, h), running maximum.
        valid: (B, h), 0 from the first step after a segment end or at an untrusted row.
        last_rows: (B, h), row whose next observation belongs to step i: the row itself, after an
            end the last row of the segment.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    masks: Tensor
    terminals: Tensor
    valid: Tensor
    last_rows: Tensor


@dataclass(frozen=True)
class FlatDataset:
    """Rows of consecutive control periods; N rows, S explicit next observations.

    Args:
        observations: (N, O), raw.
        actions: (N, A), executed, normalised to [-1, 1].
        rewards: (N,).
        masks: (N,), 0 where a goal or terminated end stops the bootstrap.
        terminals: (N,), 1 on the last row of a segment, however it ended.
        valid: (N,), 0 on rows that must not be trained on (masked or missing).
        end_observations: (S, O), next observations that are not the next row's observation.
        end_index: (N,), row of end_observations; -1: the next observation is the next row's.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    masks: Tensor
    terminals: Tensor
    valid: Tensor
    end_observations: Tensor
    end_index: Tensor

    @classmethod
    def from_contract(
        cls, dataset: Dataset, device: torch.device | str = "cpu"
    ) -> FlatDataset:
        """Take over a training dataset as the contract stores it (arrays are shared on the CPU)."""
        terminals = torch.as_tensor(dataset.terminals, dtype=torch.float32)
        ended = terminals > 0
        end_index = torch.where(ended, ended.cumsum(0) - 1, -1)

        def floats(array: object) -> Tensor:
            return torch.as_tensor(array, dtype=torch.float32).to(device)

        return cls(
            observations=floats(dataset.observations),
            actions=floats(dataset.actions),
            rewards=floats(dataset.rewards),
            masks=floats(dataset.masks),
            terminals=terminals.to(device),
            valid=floats(dataset.valid),
            end_observations=floats(dataset.end_observations),
            end_index=end_index.to(device),
        )

    @classmethod
    def from_arrays(
        cls,
        observations: Tensor,
        actions: Tensor,
        rewards: Tensor,
        masks: Tensor,
        terminals: Tensor,
        next_observations: Tensor,
        valid: Tensor | None = None,
    ) -> FlatDataset:
        """Take rows that each carry their next observation (N, O); repeated ones are dropped."""
        explicit = torch.ones_like(terminals, dtype=torch.bool)
        explicit[:-1] = (next_observations[:-1] != observations[1:]).any(-1)
        return cls(
            observations=observations,
            actions=actions,
            rewards=rewards,
            masks=masks,
            terminals=terminals,
            valid=torch.ones_like(rewards) if valid is None else valid,
            end_observations=next_observations[explicit],
            end_index=torch.where(explicit, explicit.cumsum(0) - 1, -1),
        )

    def __len__(self) -> int:
        """N, number of rows."""
        return self.rewards.shape[0]

    @cached_property
    def last_rows(self) -> Tensor:
        """(S,), the last row of every segment."""
        return torch.nonzero(self.terminals > 0).flatten()

    @cached_property
    def first_rows(self) -> Tensor:
        """(S,), the first row of every segment."""
        last = self.last_rows
        return torch.cat([last.new_zeros(1), last[:-1] + 1])

    @cached_property
    def long_segments(self) -> Tensor:
        """(L,), the segments of two rows or more."""
        return torch.nonzero(self.last_rows > self.first_rows).flatten()

    @cached_property
    def ends_known(self) -> bool:
        """Whether the newest row's next observation is known."""
        return len(self) > 0 and int(self.end_index[-1]) >= 0

    @property
    def observation_size(self) -> int:
        """O."""
        return self.observations.shape[1]

    @property
    def action_size(self) -> int:
        """A."""
        return self.actions.shape[1]

    def starts(self, h: int) -> int:
        """Number of rows a chunk of h steps may start at: 0 .. N-h.

        One less while the newest row's next observation is not known yet.
        """
        return max(0, len(self) - h + (1 if self.ends_known else 0))

    def indexed(self) -> Self:
        """These rows, once the indices into them are worked out: drawing then asks no device."""
        self._tensors()
        _ = self.ends_known
        return self

    def clone(self) -> Self:
        """A copy of all rows."""
        fields = dataclasses.fields(self)
        return type(self)(*(getattr(self, f.name).clone() for f in fields))

    def overwrite(self, other: FlatDataset) -> bool:
        """Copy other rows over these, in place; False, and nothing is changed, for other sizes."""
        mine, theirs = self._tensors(), other._tensors()
        if [x.shape for x in mine] != [x.shape for x in theirs]:
            return False
        if self.ends_known != other.ends_known:
            return False
        for old, new in zip(mine, theirs, strict=True):
            old.copy_(new)
        return True

    def _tensors(self) -> list[Tensor]:
        """All rows, and the indices into them that are kept."""
        rows = [getattr(self, f.name) for f in dataclasses.fields(self)]
        return [*rows, self.last_rows, self.first_rows, self.long_segments]

    def windows(self, start: Tensor, h: int, discount: float) -> ChunkWindows:
        """Chunks of h rows from given starts, step by step.

        Rewards stop after a segment end but go on after a goal inside the segment; masks are a
        running minimum over all rows read (official code).

        Args:
            start: (B,), first rows, each below starts(h).
            h: steps.
            discount: gamma per step.
        """
        steps = torch.arange(h, device=start.device)
        rows = start[:, None] + steps  # (B, h)
        terminals = self.terminals[rows].cummax(1).values
        inside = torch.ones_like(terminals)
        inside[:, 1:] = 1.0 - terminals[:, :-1]
        weights = discount_powers(discount, h, terminals)
        return ChunkWindows(
            observations=self.observations[start],
            actions=self.actions[rows],
            rewards=(self.rewards[rows] * weights * inside).cumsum(1),
            masks=self.masks[rows].cummin(1).values,
            terminals=terminals,
            valid=inside * self.valid[rows].cummin(1).values,
            last_rows=start[:, None] + inside.cumsum(1).long() - 1,
        )

    def next_observations(self, rows: Tensor) -> Tensor:
        """Observations one period after the given rows, (..., O)."""
        ends = self.end_index[rows]
        following = self.observations[(rows + 1).clamp(max=len(self) - 1)]
        if self.end_observations.shape[0] == 0:
            return following
        return torch.where(
            (ends >= 0).unsqueeze(-1),
            self.end_observations[ends.clamp(min=0)],
            following,
        )

    def chunks(
        self, start: Tensor, h: int, discount: float, padding: Tensor | None = None
    ) -> ChunkBatch:
        """Training batch of chunks from given starts.

        Args:
            start: (B,), first rows, each below starts(h).
            h: steps.
            discount: gamma per step.
            padding: (B,), first rows of the chunks whose actions stand in after a terminated end;
                None: chunks that cross an end weigh 0 (official code).
        """
        window = self.windows(start, h, discount)
        actions, valid = window.actions, window.valid[:, -1]
        last = window.last_rows[:, -1]
        if padding is not None:
            after = (start[:, None] + torch.arange(h, device=start.device)) > last[
                :, None
            ]  # (B, h)
            actions = torch.where(
                after.unsqueeze(-1), self.actions[_window(padding, h)], actions
            )
            trusted = (torch.where(after, 1.0, self.valid[_window(start, h)])).amin(1)
            crosses = after[:, -1] & (self.masks[last] == 0)
            valid = torch.where(crosses, trusted, valid)
        return ChunkBatch(
            observations=window.observations,
            actions=actions,
            rewards=window.rewards[:, -1],
            masks=window.masks[:, -1],
            valid=valid,
            next_observations=self.next_observations(last),
        )

    def draw(
        self, sampler: Sampler, batch_size: int, generator: torch.Generator
    ) -> ChunkBatch:
        """Batch of B chunks as a sampler draws them."""
        return sampler.draw(self, batch_size, generator)

    def sample(
        self,
        batch_size: int,
        h: int,
        discount: float,
        generator: torch.Generator,
        *,
        pad_terminated: bool = False,
    ) -> ChunkBatch:
        """Draw chunks with starts uniform over 0 .. N-h.

        Args:
            batch_size: B.
            h: steps.
            discount: gamma per step.
            generator: source of the draws, on the dataset's device.
            pad_terminated: keep chunks that cross a terminated end; the actions after the end are
                those of other chunks, so that the critic learns that they do not matter.

        Raises:
            DatasetError: fewer rows than one chunk needs.
        """
        count = self.starts(h)
        if count == 0:
            raise DatasetError(
                f"dataset: a chunk needs {h} rows, got {len(self)}; record more or shorten the chunk"
            )
        shape = (2 if pad_terminated else 1, batch_size)
        draws = torch.randint(
            count, shape, generator=generator, device=generator.device
        )
        return self.chunks(draws[0], h, discount, draws[1] if pad_terminated else None)


def discount_powers(discount: float, h: int, like: Tensor) -> Tensor:
    """(h,), gamma^0 .. gamma^(h-1), without any number from the host; rounded once."""
    exponents = torch.arange(h, dtype=torch.float64, device=like.device)
    return torch.pow(discount, exponents).to(like.dtype)


def _window(start: Tensor, h: int) -> Tensor:
    return start[:, None] + torch.arange(h, device=start.device)  # (B, h)
