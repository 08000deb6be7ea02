# SPDX-License-Identifier: Apache-2.0
"""Chunk sampler against the recorded batches of the official one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import torch

from qam_train.data.dataset import FlatDataset
from qam_train.data.ring import RingReplay, RingRows
from qam_train.data.segments import Segments, segment_windows
from qam_train.parity.recording import Comparison, Recording, absolute, largest

FIELDS = (
    "observations",
    "actions",
    "rewards",
    "masks",
    "terminals",
    "next_observations",
)


def compare_sampler(recording: Recording) -> Iterator[Comparison]:
    """Every legal start of the recorded dataset and of the recorded replay buffer."""
    data = _rows(recording, "data")
    discount = float(recording.meta()["discount"])
    horizons = sorted({*recording.meta()["horizons"], *recording.numbers("h")})
    for horizon in horizons:
        yield from _compare_windows(recording, data, f"h{horizon}", horizon, discount)
    if "replay/capacity" in recording:
        yield from _compare_ring(recording, discount)
    for horizon in recording.numbers("rql/h"):
        yield from _compare_segments(recording, data, horizon)


def _compare_ring(recording: Recording, discount: float) -> Iterator[Comparison]:
    """Replay in a ring: size, write position and content after every addition, then its chunks."""
    ring = RingReplay(
        _ring_rows(recording, "data"), int(recording.array("replay/capacity"))
    )
    added = _ring_rows(recording, "replay/added")
    found = [(ring.size, ring.pointer)]
    for index in range(len(added.rewards)):
        one = slice(index, index + 1)
        ring.append(RingRows(*(getattr(added, name)[one] for name in FIELDS)))
        found.append((ring.size, ring.pointer))
    sizes, pointers = (np.array(column) for column in zip(*found, strict=True))
    errors = [
        float(np.abs(sizes - recording.array("replay/size")).max()),
        float(np.abs(pointers - recording.array("replay/pointer")).max()),
    ]
    errors += [
        absolute(
            getattr(ring.rows, name), recording.array(f"replay/buffer_after/{name}")
        )
        for name in FIELDS
    ]
    yield recording.row("other fields: replay", largest(errors))
    for horizon in recording.numbers("replay/h"):
        yield from _compare_windows(
            recording, ring.view(), f"replay/h{horizon}", horizon, discount
        )


def _compare_segments(
    recording: Recording, data: FlatDataset, horizon: int
) -> Iterator[Comparison]:
    """RQL's own sampler: every legal start of every episode."""
    prefix = f"rql/h{horizon}"
    segments = Segments.of(data)
    episode, start = segments.starts()
    window = segment_windows(data, segments, episode, start, horizon)
    pairs = [(episode, "episode"), (start, "start")]
    pairs += [(getattr(window, f.name), f.name) for f in fields(window)]
    errors = [absolute(v, recording.array(f"{prefix}/{name}")) for v, name in pairs]
    yield recording.row(f"other fields: {prefix}", largest(errors))


def _ring_rows(recording: Recording, prefix: str) -> RingRows:
    return RingRows(*(recording.tensor(f"{prefix}/{name}") for name in FIELDS))


def _rows(recording: Recording, prefix: str) -> FlatDataset:
    return FlatDataset.from_arrays(
        *(recording.tensor(f"{prefix}/{name}") for name in FIELDS)
    )


def _compare_windows(
    recording: Recording, data: FlatDataset, prefix: str, horizon: int, discount: float
) -> Iterator[Comparison]:
    start = torch.from_numpy(recording.array(f"{prefix}/start"))
    legal = 0.0 if data.starts(horizon) == len(start) else float("inf")
    window = data.windows(start, horizon, discount)
    reference = recording.array(f"{prefix}/rewards")
    size = max(1.0, float(np.abs(reference).max(initial=0.0)))
    error = absolute(window.rewards, reference) / size
    yield recording.row(f"rewards: {prefix}", error)
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
