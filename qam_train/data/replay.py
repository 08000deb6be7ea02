# SPDX-License-Identifier: Apache-2.0
"""Replay: a fixed offline dataset and a growing online part, sampled together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qam_ros.contract.errors import DatasetError
from qam_train.data.dataset import ChunkBatch, FlatDataset
from qam_train.data.sampling import Sampler, UniformChunks


@dataclass(frozen=True)
class OnlineRows:
    """Consecutive rows to append; n rows, fields as in FlatDataset.

    Args:
        observations: (n, O), raw.
        actions: (n, A), executed, normalised.
        rewards: (n,).
        masks: (n,), 0 where a goal or terminated end stops the bootstrap.
        terminals: (n,), 1 on the last row of a segment, also before a gap in the stream.
        valid: (n,), 0 on rows that must not be trained on.
        next_observations: (m, O), next observations of the m rows with terminal = 1, in order.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    masks: Tensor
    terminals: Tensor
    valid: Tensor
    next_observations: Tensor


class GrowingRows:
    """Append-only rows whose storage doubles when full; view() is a FlatDataset without a copy."""

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Start empty; O and A as in FlatDataset."""
        self.size = 0
        self.ends = 0
        self._store = FlatDataset(
            observations=torch.zeros((0, observation_size), device=device),
            actions=torch.zeros((0, action_size), device=device),
            rewards=torch.zeros(0, device=device),
            masks=torch.zeros(0, device=device),
            terminals=torch.zeros(0, device=device),
            valid=torch.zeros(0, device=device),
            end_observations=torch.zeros((0, observation_size), device=device),
            end_index=torch.zeros(0, dtype=torch.int64, device=device),
        )

    def append(self, rows: OnlineRows) -> None:
        """Append rows that follow the ones already held.

        Raises:
            DatasetError: the number of next observations is not the number of segment ends.
        """
        count = rows.rewards.shape[0]
        ended = rows.terminals > 0
        ends = int(ended.sum())
        if rows.next_observations.shape[0] != ends:
            raise DatasetError(
                f"replay: expected one next observation for each of the {ends} segment ends, "
                f"got {rows.next_observations.shape[0]}"
            )
        self._grow(self.size + count, self.ends + ends)
        at, store = slice(self.size, self.size + count), self._store
        for name in (
            "observations",
            "actions",
            "rewards",
            "masks",
            "terminals",
            "valid",
        ):
            getattr(store, name)[at] = getattr(rows, name)
        store.end_observations[self.ends : self.ends + ends] = rows.next_observations
        store.end_index[at] = torch.where(ended, self.ends + ended.cumsum(0) - 1, -1)
        self.size += count
        self.ends += ends

    def view(self) -> FlatDataset:
        """Rows held now."""
        store, n = self._store, self.size
        return FlatDataset(
            observations=store.observations[:n],
            actions=store.actions[:n],
            rewards=store.rewards[:n],
            masks=store.masks[:n],
            terminals=store.terminals[:n],
            valid=store.valid[:n],
            end_observations=store.end_observations[: self.ends],
            end_index=store.end_index[:n],
        )

    def _grow(self, rows: int, ends: int) -> None:
        def enlarged(tensor: Tensor, needed: int) -> Tensor:
            if needed <= tensor.shape[0]:
                return tensor
            larger = tensor.new_zeros(
                (max(needed, 2 * tensor.shape[0], 1024), *tensor.shape[1:])
            )
            larger[: tensor.shape[0]] = tensor
            return larger

        store = self._store
        self._store = FlatDataset(
            observations=enlarged(store.observations, rows),
            actions=enlarged(store.actions, rows),
            rewards=enlarged(store.rewards, rows),
            masks=enlarged(store.masks, rows),
            terminals=enlarged(store.terminals, rows),
            valid=enlarged(store.valid, rows),
            end_observations=enlarged(store.end_observations, ends),
            end_index=enlarged(store.end_index, rows),
        )


class Replay:
    """Offline rows followed by online rows, sampled with a fixed or a proportional share."""

    def __init__(
        self, offline: FlatDataset, online_fraction: float | None = None
    ) -> None:
        """Start with no online rows.

        Args:
            offline: fixed rows.
            online_fraction: share of online rows in a batch, rounded to whole rows; None: every row
                is equally likely (official code).
        """
        if online_fraction is not None and not 0.0 <= online_fraction <= 1.0:
            raise DatasetError(
                f"replay: expected an online fraction in [0, 1], got {online_fraction}"
            )
        self.offline = offline
        self.online = GrowingRows(
            offline.observation_size, offline.action_size, offline.observations.device
        )
        self.online_fraction = online_fraction

    def __len__(self) -> int:
        """Rows held, offline and online."""
        return len(self.offline) + self.online.size

    def append(self, rows: OnlineRows) -> None:
        """Append online rows."""
        self.online.append(rows)

    def sample(
        self,
        batch_size: int,
        h: int,
        discount: float,
        generator: torch.Generator,
        *,
        pad_terminated: bool = False,
    ) -> ChunkBatch:
        """Draw chunks; arguments as in FlatDataset.sample."""
        return self.draw(
            UniformChunks(h, discount, pad_terminated), batch_size, generator
        )

    def draw(
        self, sampler: Sampler, batch_size: int, generator: torch.Generator
    ) -> ChunkBatch:
        """Draw chunks from both parts; rows come in random order.

        Args:
            sampler: how chunks are drawn from one part.
            batch_size: B.
            generator: source of the draws, on the rows' device.

        Raises:
            DatasetError: neither part has the rows of one chunk.
        """
        online = self.online.view()
        count = self._online_count(
            batch_size, sampler.places(self.offline), sampler.places(online), generator
        )
        parts = [
            sampler.draw(part, rows, generator)
            for part, rows in ((self.offline, batch_size - count), (online, count))
            if rows > 0
        ]
        if len(parts) == 1:
            return parts[0]
        order = torch.randperm(batch_size, generator=generator, device=generator.device)
        return type(parts[0]).concatenate(*parts).rows(order)

    def _online_count(
        self, batch_size: int, offline: int, online: int, generator: torch.Generator
    ) -> int:
        """Online rows of this batch, given how many places each part offers."""
        if online == 0:
            return 0
        if offline == 0:
            return batch_size
        if self.online_fraction is not None:
            return round(self.online_fraction * batch_size)
        draws = torch.randint(
            offline + online,
            (batch_size,),
            generator=generator,
            device=generator.device,
        )
        return int((draws >= offline).sum())
