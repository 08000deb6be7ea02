# SPDX-License-Identifier: Apache-2.0
"""Chunk sampler against the recorded batches of the official one."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from qam_train.data.dataset import FlatDataset
from qam_train.parity.recording import Comparison, Recording, absolute, largest


def compare_sampler(recording: Recording) -> Iterator[Comparison]:
    """Every legal start of the recorded dataset and of the recorded replay buffer."""
    data = _rows(recording, "data")
    discount = float(recording.meta()["discount"])
    for horizon in recording.meta()["horizons"]:
        yield from _compare_windows(recording, data, f"h{horizon}", horizon, discount)
    size = int(recording.array("replay/size")[-1])
    buffer = _rows(recording, "replay/buffer_after", size)
    yield from _compare_windows(recording, buffer, "replay/h3", 3, discount)


def _rows(recording: Recording, prefix: str, size: int | None = None) -> FlatDataset:
    names = (
        "observations",
        "actions",
        "rewards",
        "masks",
        "terminals",
        "next_observations",
    )
    return FlatDataset.from_arrays(
        *(recording.tensor(f"{prefix}/{name}")[:size] for name in names)
    )


def _compare_windows(
    recording: Recording, data: FlatDataset, prefix: str, horizon: int, discount: float
) -> Iterator[Comparison]:
    start = torch.from_numpy(recording.array(f"{prefix}/start"))
    legal = 0.0 if data.starts(horizon) == len(start) else float("inf")
    window = data.windows(start, horizon, discount)
    yield recording.row(
        f"rewards: {prefix}",
        absolute(window.rewards, recording.array(f"{prefix}/rewards")),
    )
    fields = {
        "observations": window.observations,
        "actions": window.actions,
        "masks": window.masks,
        "terminals": window.terminals,
        "valid": window.valid,
        "next_observations": data.next_observations(window.last_rows),
    }
    worst = largest(
        absolute(value, recording.array(f"{prefix}/{name}"))
        for name, value in fields.items()
    )
    yield recording.row(f"other fields: {prefix}", largest([worst, legal]))
