# SPDX-License-Identifier: Apache-2.0
"""Turning streamed transitions into a training dataset; the learner's stream and bags share it."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qam_ros.contract.columns import Dataset
from qam_ros.contract.errors import TransitionError
from qam_ros.contract.robot_interface import RobotInterface
from qam_ros.contract.transition import Rows, validate_transitions

_EXTRAS: Final = (
    *("proposed", "episode", "step", "session", "seq", "observation_stamp_ns"),
    *("action_stamp_ns", "source", "policy_version", "chunk_id", "chunk_index"),
    *("guard_mode", "limit_bits"),
)


def from_transitions(rows: Rows, interface: RobotInterface) -> Dataset:
    """Dataset of all transitions, in the order in which they happened.

    Rows are ordered by session (the earliest observation first) and seq, whatever order
    they arrived in. A segment ends where the row carries its next observation, terminates,
    is truncated, or is not followed by the row of the same episode with the next seq, more
    than 0 and less than 1.5 control periods later, with a finite observation.

    Nothing is dropped: masked rows have valid = 0, and so has a last row whose next
    observation is unknown, unless it terminated (then nothing is read from it, and its own
    observation stands in). Numbers of invalid rows that are not finite are stored as 0.

    Args:
        rows: (N,) transitions with distinct keys.
        interface: their robot.

    Raises:
        TransitionError: see ``validate_transitions``; or a key comes twice.
    """
    validate_transitions(rows, interface)
    rows = rows[_order(rows)]
    same = _follows(rows, interface.control_period_s)
    explicit = rows["has_next"] == 1
    ends = explicit | (rows["terminated"] == 1) | (rows["truncated"] == 1) | ~same
    known = explicit | ~ends | (rows["terminated"] == 1)
    valid = (rows["masked"] == 0) & known
    observations = _clean(rows["observation"])
    end_observations = np.where(
        explicit[:, None], _clean(rows["next_observation"]), observations
    )
    return Dataset(
        observations=observations,
        actions=rows["executed"].copy(),
        rewards=_clean(rows["reward"]),
        masks=(1 - rows["terminated"]).astype(np.float32),
        terminals=ends.astype(np.uint8),
        valid=valid.astype(np.uint8),
        end_observations=end_observations[ends],
        extras={name: rows[name].copy() for name in _EXTRAS},
    )


def _order(rows: Rows) -> npt.NDArray[np.intp]:
    """Order by session, earliest first, then seq; refuses keys that come twice."""
    sessions, inverse = _sessions(rows)
    first = np.full(len(sessions), np.iinfo(np.int64).max)
    np.minimum.at(first, inverse, rows["observation_stamp_ns"])
    rank = np.empty(len(sessions), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(sessions))
    order = np.lexsort((rows["seq"], rank[inverse]))
    keys = np.stack([rank[inverse].astype(np.uint64), rows["seq"]], axis=1)[
        order
    ]  # (N, 2)
    twice = np.flatnonzero((keys[1:] == keys[:-1]).all(axis=1))
    if len(twice):
        row = rows[order[twice[0]]]
        raise TransitionError(
            f"transitions: session {bytes(row['session']).hex()} seq {row['seq']} comes twice; "
            "every key must come once",
            session=bytes(row["session"]).hex(),
            seq=int(row["seq"]),
        )
    return order


def _sessions(rows: Rows) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.intp]]:
    """Distinct sessions (S, 16) and which of them each row has (N,).

    Rows mostly come in long runs of one session, so only the head of each run is sorted.
    """
    changes = (rows["session"][1:] != rows["session"][:-1]).any(axis=1)
    heads = np.flatnonzero(np.concatenate([np.ones(min(1, len(rows)), bool), changes]))
    sessions, inverse = np.unique(rows["session"][heads], axis=0, return_inverse=True)
    lengths = np.diff(np.append(heads, len(rows)))
    return sessions, np.repeat(inverse.reshape(-1), lengths)


def _follows(rows: Rows, period_s: float) -> npt.NDArray[np.bool_]:
    """(N,) whether the next row is the next control period of the same episode."""
    follows = np.zeros(len(rows), dtype=np.bool_)
    head, tail = rows[:-1], rows[1:]
    elapsed_ns = tail["observation_stamp_ns"] - head["observation_stamp_ns"]
    follows[:-1] = (
        (head["session"] == tail["session"]).all(axis=1)
        & (head["seq"] + 1 == tail["seq"])
        & (head["episode"] == tail["episode"])
        & (elapsed_ns > 0)
        & (elapsed_ns < 1.5e9 * period_s)
        & np.isfinite(tail["observation"]).all(axis=1)
    )
    return follows


def _clean(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return np.where(np.isfinite(values), values, 0).astype(np.float32)
