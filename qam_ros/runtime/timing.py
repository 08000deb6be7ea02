# SPDX-License-Identifier: Apache-2.0
"""Timing of ticks: preallocated rings, quantiles for diagnostics, one npz file at the end of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LATE: Final = 5
"""A tick is late when it has published more than a period / LATE behind its deadline."""


class TimingRing:
    """The last ``capacity`` values of one series; appending allocates nothing.

    Args:
        capacity: values kept; older ones are overwritten.
    """

    def __init__(self, capacity: int) -> None:
        self._values: IntArray = np.zeros(capacity, dtype=np.int64)
        self.count = 0

    def append(self, value: int) -> None:
        """Add one value."""
        self._values[self.count % len(self._values)] = value
        self.count += 1

    def values(self, last: int | None = None) -> IntArray:
        """Kept values in order of time.

        Args:
            last: only so many of the newest; None for all.

        Returns:
            A copy, (n,) int64.
        """
        capacity = len(self._values)
        size = min(self.count, capacity if last is None else min(last, capacity))
        index = np.arange(self.count - size, self.count) % capacity
        return self._values[index]  # (n,)


def quantiles(values: npt.NDArray[np.number]) -> dict[str, float]:
    """Median, 99 % quantile and maximum of a series, as {p50, p99, max}; empty for no values."""
    if len(values) == 0:
        return {}
    p50, p99, top = np.quantile(np.asarray(values, dtype=np.float64), (0.5, 0.99, 1.0))
    return {"p50": float(p50), "p99": float(p99), "max": float(top)}


def periods(stamps_ns: IntArray) -> IntArray:
    """Time between consecutive stamps [ns]; (n,) -> (n - 1,)."""
    return np.diff(stamps_ns)  # (n - 1,)


def write_timing(path: Path, series: Mapping[str, npt.NDArray[np.number]]) -> None:
    """Write named series to an npz file, atomically.

    Args:
        path: file to write.
        series: name -> (n,) values; the unit is part of the name, e.g. ``lateness_ns``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **dict(series))
    temporary.replace(path)


def read_timing(path: Path) -> dict[str, npt.NDArray[np.number]]:
    """Read the series that ``write_timing`` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
