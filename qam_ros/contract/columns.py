# SPDX-License-Identifier: Apache-2.0
"""Columns of a training dataset: rows of consecutive control periods, in segments.

    row            0    1    2  |  3    4     N = 5 rows, S = 2 segments
    observations   s0   s1   s2 |  s4   s5    the next observation is the next row's ...
    terminals      0    0    1  |  0    1     ... but not on the last row of a segment:
    end_observations         s3 |       s6    there it is stored here, one per segment

A segment ends where the next row is not the next control period: an episode's end or a gap. That
alone never stops the bootstrap; masks do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qam_ros.contract.errors import DatasetError, check_shape, nearest
from qam_ros.contract.robot_interface import RobotInterface

EXTRAS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "proposed": "<f4",
        "qpos": "<f4",
        "qvel": "<f4",
        "button_states": "<i8",
        "episode": "<u8",
        "step": "<u4",
        "session": "|u1",
        "seq": "<u8",
        "observation_stamp_ns": "<i8",
        "action_stamp_ns": "<i8",
        "source": "|u1",
        "policy_version": "<u8",
        "chunk_id": "<u8",
        "chunk_index": "<u2",
        "guard_mode": "|u1",
        "limit_bits": "<u4",
    }
)
"""Optional columns, one entry per row, and their types."""

COLUMNS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "observations": "<f4",
        "actions": "<f4",
        "rewards": "<f4",
        "masks": "<f4",
        "terminals": "|u1",
        "valid": "|u1",
        "end_observations": "<f4",
    }
)
"""Columns of every dataset, and their types."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows to train on; N rows in S segments.

    Args:
        observations: (N, O) float32, as the policy sees them, not normalised.
        actions: (N, A) float32, executed, normalised to [-1, 1].
        rewards: (N,) float32.
        masks: (N,) float32, 0 where the task ended or its goal was reached, else 1.
        terminals: (N,) uint8, 1 on the last row of a segment, however it ended.
        valid: (N,) uint8, 0 on rows that must not be trained on.
        end_observations: (S, O) float32, what followed the last row of each segment.
        extras: optional columns by name, (N, ...), see EXTRAS.
    """

    observations: npt.NDArray[np.float32]
    actions: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float32]
    masks: npt.NDArray[np.float32]
    terminals: npt.NDArray[np.uint8]
    valid: npt.NDArray[np.uint8]
    end_observations: npt.NDArray[np.float32]
    extras: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        """N, number of rows."""
        return len(self.observations)

    @property
    def segments(self) -> int:
        """S, number of segments."""
        return len(self.end_observations)


def validate_dataset(dataset: Dataset, interface: RobotInterface, where: str) -> None:
    """Refuse a dataset that no one should train on.

    Args:
        dataset: the dataset.
        interface: its robot.
        where: directory, for the messages.

    Raises:
        DatasetError: no rows, a wrong shape or type, NaN, an action outside the box, flags that are
            neither 0 nor 1, an open last segment, or an unknown extra column.
    """
    rows, segments = len(dataset), int(np.sum(dataset.terminals))
    if rows == 0:
        raise DatasetError(
            f"{where}: the dataset has no rows; record or generate some first"
        )
    sizes = {
        "observations": (rows, interface.observation_size),
        "actions": (rows, interface.action_size),
        "end_observations": (segments, interface.observation_size),
    }
    for name, dtype in COLUMNS.items():
        array = getattr(dataset, name)
        check_shape(name, array, sizes.get(name, (rows,)), where, DatasetError)
        _check_dtype(name, array, dtype, where)
    for name, array in dataset.extras.items():
        if name not in EXTRAS:
            raise DatasetError(
                f"{where}: unknown column '{name}'; {nearest(name, EXTRAS)}"
            )
        check_shape(name, array, (rows, *array.shape[1:]), where, DatasetError)
        _check_dtype(name, array, EXTRAS[name], where)
    for name in ("observations", "actions", "rewards", "end_observations"):
        _check_rows(np.isfinite(getattr(dataset, name)), name, "must be finite", where)
    _check_rows(np.abs(dataset.actions) <= 1.0, "actions", "must lie in [-1, 1]", where)
    for name in ("masks", "terminals", "valid"):
        _check_rows(
            np.isin(getattr(dataset, name), (0, 1)), name, "must be 0 or 1", where
        )
    if dataset.terminals[-1] != 1:
        raise DatasetError(
            f"{where}: 'terminals' is 0 on the last row; the last segment must be closed and its "
            "end observation given"
        )


def _check_dtype(name: str, array: npt.NDArray[Any], dtype: str, where: str) -> None:
    if array.dtype != np.dtype(dtype):
        raise DatasetError(
            f"{where}: '{name}' has type {array.dtype}, expected {np.dtype(dtype)}; convert it"
        )


def _check_rows(good: npt.NDArray[np.bool_], name: str, rule: str, where: str) -> None:
    if not good.all():
        place = tuple(int(index) for index in np.argwhere(~good)[0])
        raise DatasetError(
            f"{where}: '{name}' {rule}; it does not at {place} "
            f"({int((~good).sum())} such values in all)",
            name=name,
            place=place,
        )
