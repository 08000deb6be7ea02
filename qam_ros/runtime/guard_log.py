# SPDX-License-Identifier: Apache-2.0
"""The guard's own log of what it executed: the reference that replay is compared with.

A JSON header line, then packed records of ``LOG_DTYPE``: one for each row (kind ROW) and each episode
event (kinds START, END, ABORT). Written by a thread; a tick only appends to a bounded queue. Where it
cannot be written the log ends with a ``problem``; the guard goes on without it.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qam_ros.contract.errors import StreamError
from qam_ros.contract.messages import EpisodeEvent, EpisodeKind, GuardReport

GUARD_LOG_VERSION: Final = 1
ROW: Final = 0
KINDS: Final = {EpisodeKind.START: 1, EpisodeKind.END: 2, EpisodeKind.ABORT: 3}
"""Record kind of each episode event; its stamp stands in ``observation_stamp_ns``."""

LOG_DTYPE: Final = np.dtype(
    [
        ("kind", "u1"),
        ("session", "u1", (16,)),
        ("seq", "<u8"),
        ("tick", "<u8"),
        ("observation_stamp_ns", "<i8"),
        ("episode", "<u8"),
        ("step", "<u4"),
        ("mode", "u1"),
        ("source", "u1"),
        ("masked", "u1"),
    ]
)
_HEADER: Final = (
    json.dumps(
        {
            "format": "qam guard log",
            "version": GUARD_LOG_VERSION,
            "dtype": LOG_DTYPE.descr,
        }
    )
    + "\n"
).encode()


class GuardLog:
    """Appends to a guard log; several sessions may follow each other in one file.

    Args:
        path: file, created with its folder where it does not exist.
        period_s: longest time a record waits to be written [s].
        capacity: records that may wait; more are dropped and counted.
    """

    def __init__(
        self, path: Path, period_s: float = 0.1, capacity: int = 100_000
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.dropped = 0
        self.problem = ""
        self._queue: queue.Queue[tuple[Any, ...]] = queue.Queue(capacity)
        self._file = path.open("ab")
        if self._file.tell() == 0:
            self._file.write(_HEADER)
        else:  # a writer killed in the middle of a record leaves a stump
            stump = (self._file.tell() - len(_HEADER)) % LOG_DTYPE.itemsize
            self._file.truncate(self._file.tell() - stump)
        self._period_s = period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guard_log", daemon=True)
        self._thread.start()

    def row(self, report: GuardReport) -> None:
        """Log a tick that is a row."""
        self._put(
            (
                ROW,
                np.frombuffer(report.session, np.uint8),
                report.seq,
                report.tick,
                report.observation_stamp_ns,
                report.episode,
                report.step,
                report.mode,
                report.source,
                report.masked,
            )
        )

    def event(self, event: EpisodeEvent, session: bytes) -> None:
        """Log an episode event."""
        kind = KINDS[EpisodeKind(event.kind)]
        stamp = event.stamp_ns
        session_bytes = np.frombuffer(session, np.uint8)
        self._put(
            (kind, session_bytes, 0, 0, stamp, event.episode, event.steps, 0, 0, 0)
        )

    def close(self) -> None:
        """Write what waits and close the file."""
        self._stop.set()
        self._thread.join()
        try:
            self._file.close()
        except OSError as problem:  # what was never written is tried once more
            self._end(problem)

    def _put(self, record: tuple[Any, ...]) -> None:
        if self.problem:
            self.dropped += 1
            return
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._period_s):
                self._write_waiting()
            self._write_waiting()
        except Exception as problem:  # noqa: BLE001
            # Whatever it is: no robot is left without control for want of a log, nor silently.
            self._end(problem)

    def _end(self, problem: Exception) -> None:
        self.problem = f"the guard log ended: {type(problem).__name__}: {problem}"
        sys.stderr.write(f"{self.problem}\n")

    def _write_waiting(self) -> None:
        records = [self._queue.get_nowait() for _ in range(self._queue.qsize())]
        if records:
            self._file.write(np.array(records, dtype=LOG_DTYPE).tobytes())
            self._file.flush()


def read_guard_log(path: Path) -> npt.NDArray[np.void]:
    """Read a guard log; a record cut off at the end by a crash is left out.

    Returns:
        (n,) structured array of ``LOG_DTYPE``.

    Raises:
        StreamError: not a guard log, or of another version.
    """
    data = path.read_bytes()
    end = data.find(b"\n") + 1
    if data[:end] != _HEADER:
        raise StreamError(
            f"{path}: not a guard log of version {GUARD_LOG_VERSION}; it starts with {data[:60]!r}"
        )
    count = (len(data) - end) // LOG_DTYPE.itemsize
    return np.frombuffer(data, dtype=LOG_DTYPE, count=count, offset=end).copy()


def executed_keys(records: npt.NDArray[np.void]) -> set[tuple[bytes, int]]:
    """Keys (session, seq) of the rows inside their episode: start <= stamp < end.

    Args:
        records: from ``read_guard_log``.
    """
    spans: dict[
        tuple[bytes, int], dict[str, int]
    ] = {}  # by session: episodes count anew
    for record in records[records["kind"] != ROW]:
        name = "start" if record["kind"] == KINDS[EpisodeKind.START] else "end"
        owner = (record["session"].tobytes(), int(record["episode"]))
        spans.setdefault(owner, {})[name] = int(record["observation_stamp_ns"])
    keys = set()
    for row in records[records["kind"] == ROW]:
        span = spans.get((row["session"].tobytes(), int(row["episode"])), {})
        stamp_ns = int(row["observation_stamp_ns"])
        if span.get("start", stamp_ns + 1) <= stamp_ns < span.get("end", stamp_ns + 1):
            keys.add((row["session"].tobytes(), int(row["seq"])))
    return keys
