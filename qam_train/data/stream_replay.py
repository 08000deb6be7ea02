# SPDX-License-Identifier: Apache-2.0
"""Transitions in the order of the stream -> consecutive rows of the replay.

The stream delivers each row once, but rows may pass each other (a late label holds back only its
own). The chunk sampler wants the rows of one guard session in order of their seq. So rows wait
until their predecessors are there; a row without a stored next observation waits for its successor
too, because only then is it known whether the segment goes on. After `reorder_window` newer rows a
hole counts as a gap: the segment ends there, and a chunk that reaches the hole has valid = 0.

What is released depends on the order of arrival only, never on time: reading the log of a run again
rebuilds the same replay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from qam_train.data.replay import OnlineRows, Replay

Rows = npt.NDArray[np.void]
Flags = npt.NDArray[np.bool_]


@dataclass
class StreamCounters:
    """What became of the rows that came in.

    Attributes:
        received: rows that came in.
        masked: rows among them that are never trained on.
        gaps: holes in a session's seq that were given up.
        late: rows that came after their hole had been given up; kept as segments of their own.
        unplayed: environment steps without a row, seen as jumps of the step inside an episode.
    """

    received: int = 0
    masked: int = 0
    gaps: int = 0
    late: int = 0
    unplayed: int = 0


class StreamReplay:
    """Feeds the online part of a Replay from transitions; see the module's text.

    Args:
        replay: where rows go, in order.
        reorder_window: newer rows of a session that a missing row is waited for.
    """

    def __init__(self, replay: Replay, reorder_window: int = 256) -> None:
        self.replay = replay
        self.counters = StreamCounters()
        self._window = reorder_window
        self._session = b""
        self._closed: set[bytes] = set()
        self._expected = 0
        self._pending: Rows | None = None
        self._last_step = (-1, -1)  # episode, step

    def extend(self, rows: Rows) -> None:
        """Take over rows, (N,) of the transition layout, whose keys were never taken over before."""
        for run in _session_runs(rows):
            self.counters.received += run.size
            self.counters.masked += int((run["masked"] != 0).sum())
            self._extend_session(run)

    def _extend_session(self, rows: Rows) -> None:
        session = rows["session"][0].tobytes()
        if session in self._closed:
            self._append_late(rows)
            return
        if session != self._session:
            self._close_session()
            self._session = session
        late = rows["seq"] < self._expected
        if late.any():
            self._append_late(rows[late])
        pending = (
            rows[~late]
            if self._pending is None
            else np.concatenate([self._pending, rows[~late]])
        )
        self._release(pending[np.argsort(pending["seq"], kind="stable")])

    def _release(self, pending: Rows) -> None:
        """Append what is contiguous; give a hole up once the window behind it is full."""
        while pending.size:
            run = self._contiguous(pending)
            holed = run < pending.size
            give_up = holed and pending.size - run > self._window
            undecided = run > 0 and not pending["has_next"][run - 1] and not give_up
            count = run - 1 if undecided else run
            self._append(pending[:count], pending[count:run])
            pending = pending[count:]
            self._expected += count
            if not give_up:
                break
            self.counters.gaps += 1
            self._expected = int(pending["seq"][0])
        self._pending = pending

    def _contiguous(self, pending: Rows) -> int:
        """Length of the run of sorted rows that begins at the expected seq."""
        wanted = self._expected + np.arange(pending.size, dtype=np.uint64)
        differs = np.flatnonzero(pending["seq"] != wanted)
        return int(differs[0]) if differs.size else pending.size

    def _close_session(self) -> None:
        """Release everything of the session before: its guard does not run any more."""
        pending = self._pending
        while pending is not None and pending.size:
            self._expected = int(pending["seq"][0])
            run = self._contiguous(pending)
            self._append(pending[:run], pending[:0])
            pending = pending[run:]
        if self._session:
            self._closed.add(self._session)
        self._expected, self._pending = 0, None

    def _append_late(self, rows: Rows) -> None:
        self.counters.late += rows.size
        for row in range(rows.size):
            self._append(rows[row : row + 1], rows[:0])

    def _append(self, rows: Rows, successor: Rows) -> None:
        """Append a contiguous run; successor is the row after it, or nothing if that is lost."""
        if not rows.size:
            return
        self._count_unplayed(rows)
        stored = rows["has_next"] != 0
        terminated = rows["terminated"] != 0
        ends = (
            stored | terminated | (rows["truncated"] != 0) | ~_goes_on(rows, successor)
        )
        valid = (rows["masked"] == 0) & _finite(rows) & (stored | terminated | ~ends)
        following = np.where(
            stored[:, None], rows["next_observation"], rows["observation"]
        )
        self.replay.append(
            OnlineRows(
                observations=_floats(rows["observation"]),
                actions=_floats(rows["executed"]),
                rewards=_floats(rows["reward"]),
                masks=_floats(~terminated),
                terminals=_floats(ends),
                valid=_floats(valid),
                next_observations=_floats(following[ends]),
            )
        )

    def _count_unplayed(self, rows: Rows) -> None:
        episodes, steps = (
            rows["episode"].astype(np.int64),
            rows["step"].astype(np.int64),
        )
        before = np.concatenate([[self._last_step[1]], steps[:-1]])
        new = np.concatenate([[self._last_step[0]], episodes[:-1]]) != episodes
        jumps = steps - np.where(new, -1, before) - 1
        self.counters.unplayed += int(np.clip(jumps, 0, None).sum())
        self._last_step = (int(episodes[-1]), int(steps[-1]))


def _goes_on(rows: Rows, successor: Rows) -> Flags:
    """Whether the next seq is the next control period of the same episode (as the contract has it).

    Its observation must be finite: a row that nothing usable follows has no next observation.
    """
    following = np.concatenate([rows[1:], successor[:1]])
    same = np.zeros(rows.size, dtype=bool)
    same[: following.size] = (
        following["episode"] == rows["episode"][: following.size]
    ) & np.isfinite(following["observation"]).all(axis=1)
    return same


def _finite(rows: Rows) -> Flags:
    """(N,) whether everything that training reads of a row is finite."""
    following = np.isfinite(rows["next_observation"]).all(axis=1)
    finite: Flags = (
        np.isfinite(rows["observation"]).all(axis=1)
        & np.isfinite(rows["executed"]).all(axis=1)
        & np.isfinite(rows["reward"])
        & (following | (rows["has_next"] == 0))
    )
    return finite


def _session_runs(rows: Rows) -> Iterator[Rows]:
    """Split rows where the guard session changes."""
    if not rows.size:
        return
    changes = np.flatnonzero((rows["session"][1:] != rows["session"][:-1]).any(-1)) + 1
    yield from np.split(rows, changes)


def _floats(values: npt.NDArray[np.generic]) -> torch.Tensor:
    """Float32 tensor; what is not finite (only untrusted rows may hold it) becomes 0."""
    finite = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return torch.from_numpy(np.ascontiguousarray(finite))
