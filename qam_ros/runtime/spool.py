# SPDX-License-Identifier: Apache-2.0
"""Writes rows to the spool on a thread of its own, so that no disk ever holds up a tick.

Rows wait in a bounded queue. When the disk is full or cannot be written, the thread keeps what it
has, says so and tries again; what no longer fits into the queue is dropped and counted. Recording
follows behind the spool: a bag gets the rows that the spool has, and where it stopped is kept, so
that a restart goes on where the last bag ended.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from qam_ros.contract.errors import QamError, StreamError
from qam_ros.contract.interface import RobotInterface
from qam_ros.contract.transition import Rows
from qam_ros.runtime.store import TransitionStore

logger = logging.getLogger(__name__)


class Recorder(Protocol):
    """What records rows; see ``recording.BagWriter``."""

    def write(self, rows: Rows) -> None:
        """Record rows so that they survive the death of the process."""

    def close(self) -> None:
        """Finish the recording."""


@dataclass(frozen=True, slots=True)
class SpoolConfig:
    """Bounds and times of the spool.

    Args:
        queue_rows: rows that may wait for the disk; more are dropped and counted.
        keep_rows: acknowledged rows that are kept, so that what the topics' history brings back
            after a restart is recognised.
        max_rows: unacknowledged rows at most; more are dropped and counted.
        record_period_s: rows reach the bag, flushed, at least this often [s].
        tidy_period_s: how often acknowledged rows are trimmed [s].
        retry_s: pause after a failed write [s].
        wait_for_ack: whether rows stay until they are acknowledged; False without a learner.
    """

    queue_rows: int = 65536
    keep_rows: int = 20000
    max_rows: int = 5_000_000
    record_period_s: float = 0.5
    tidy_period_s: float = 1.0
    retry_s: float = 0.5
    wait_for_ack: bool = True


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """State of the spool for diagnostics; ``problem`` is empty while all is well."""

    last_position: int
    acked: int
    recorded: int
    queued: int
    dropped: int
    problem: str


class SpoolWriter:
    """The thread that appends, records, trims.

    Args:
        path: spool file.
        interface: what the rows are made of.
        config: bounds and times.
        open_recorder: makes a new recording; called again after a recording has failed.

    Attributes:
        failed: the thread ended by an error that no retry cures; the process must be restarted.

    Raises:
        StreamError: the spool cannot be opened.
    """

    def __init__(
        self,
        path: str | Path,
        interface: RobotInterface,
        config: SpoolConfig | None = None,
        open_recorder: Callable[[], Recorder] | None = None,
    ) -> None:
        self.config = config or SpoolConfig()
        self.store = TransitionStore(path, interface)
        self._open_recorder = open_recorder
        self._recorder: Recorder | None = None
        self._queue: deque[Rows] = deque()
        self._queued = 0
        self._wake = threading.Condition()
        self._stopping = False
        self._dropped = 0
        self._problems: dict[str, str] = {}
        self.failed = False
        self._acked = self._kept_acked = self.store.meta("acked")
        self._last = self.store.last_position
        self._recorded = self._begin_recording()
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)

    def start(self) -> None:
        """Begin writing."""
        self._thread.start()

    def put(self, rows: Rows) -> None:
        """Hand rows over; never waits for the disk."""
        if not rows.size:
            return
        with self._wake:
            if self._queued + rows.size > self.config.queue_rows:
                self._dropped += rows.size
                return
            self._queue.append(rows)
            self._queued += rows.size
            self._wake.notify()

    def acknowledge(self, position: int) -> None:
        """Note up to which position the learner has committed the spool.

        Less than before when the learner has lost rows: a restart must go on from there.
        """
        self._acked = position

    def stop(self, timeout_s: float) -> bool:
        """Write what is queued, finish the recording and end; False if that took too long."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def status(self) -> SpoolStatus:
        """Counters for diagnostics."""
        return SpoolStatus(
            last_position=self._last,
            acked=self._acked,
            recorded=self._recorded,
            queued=self._queued,
            dropped=self._dropped,
            problem="; ".join(self._problems.values()),
        )

    def _begin_recording(self) -> int:
        """Position behind which to record: where the last life stopped, if it recorded too."""
        recorded = self.store.meta("recorded", -1)
        wanted = self._open_recorder is not None
        if wanted != (recorded >= 0):
            recorded = self._last if wanted else -1
            self.store.set_meta("recorded", recorded)
        return max(recorded, 0)

    # On the thread.

    def _run(self) -> None:
        """Work until stopped. What no disk explains ends the thread, and is never passed over."""
        try:
            self._work()
        except Exception as error:
            self._problems["spool thread"] = f"spool thread ended: {error!r}"
            self.failed = True
            logger.exception(
                "the spool thread ended with %d rows in its queue", self._queued
            )
        finally:
            self.store.close()

    def _work(self) -> None:
        next_tidy = time.monotonic()
        next_record = math.inf if self._open_recorder is None else next_tidy
        while True:
            self._wait(min(next_record, next_tidy) - time.monotonic())
            stopping = self._stopping
            written = self._attempt("spool", self._append_queued)
            now = time.monotonic()
            if now >= next_record or (stopping and self._open_recorder is not None):
                next_record = now + self.config.record_period_s
                self._attempt("recording", self._record)
            if now >= next_tidy or stopping:
                next_tidy = now + self.config.tidy_period_s
                self._attempt("spool tidy", self._tidy)
            if stopping:
                break
            if not written:
                time.sleep(self.config.retry_s)
        self._finish()

    def _wait(self, timeout_s: float) -> None:
        with self._wake:
            self._wake.wait_for(
                lambda: bool(self._queue) or self._stopping, max(timeout_s, 0.0)
            )

    def _attempt(self, what: str, action: Callable[[], None]) -> bool:
        """Do something that a disk can refuse; keep and log the problem until it is gone."""
        try:
            action()
        except (QamError, OSError) as error:
            if what not in self._problems:
                logger.error(
                    "%s: %s; trying again every %.1f s",
                    what,
                    error,
                    self.config.retry_s,
                )
            self._problems[what] = f"{what}: {error}"
            return False
        if self._problems.pop(what, None) is not None:
            logger.warning("%s works again", what)
        return True

    def _append_queued(self) -> None:
        with self._wake:
            waiting = list(self._queue)
        if not waiting:
            return
        rows = np.concatenate(waiting)
        depth = self._last - min(self._acked, self._last)
        if self.config.wait_for_ack and depth + rows.size > self.config.max_rows:
            self._take(waiting)
            self._dropped += rows.size
            raise StreamError(
                f"{self.store.path} holds {depth} rows that no learner has acknowledged, "
                f"{self.config.max_rows} are allowed; start the learner or raise max_rows"
            )
        self.store.append(rows)
        self._take(waiting)
        self._last = self.store.last_position

    def _take(self, waiting: list[Rows]) -> None:
        """Remove rows from the queue, only now that they are on disk."""
        with self._wake:
            for rows in waiting:
                self._queue.popleft()
                self._queued -= rows.size

    def _record(self) -> None:
        while self._recorded < self._last:
            first, rows = self.store.read(self._recorded, 4096)
            if not rows.size:
                break
            if self._recorder is None and self._open_recorder is not None:
                self._recorder = self._open_recorder()
            if self._recorder is not None:
                recorder, self._recorder = self._recorder, None
                recorder.write(
                    rows
                )  # a recording that fails is left; the next try opens another
                self._recorder = recorder
            self._recorded = first + rows.size - 1
            self.store.set_meta("recorded", self._recorded)

    def _tidy(self) -> None:
        acked = min(self._acked, self._last) if self.config.wait_for_ack else self._last
        if acked != self._kept_acked:
            self.store.set_meta("acked", acked)
            self._kept_acked = acked
        needless = acked if self._open_recorder is None else min(acked, self._recorded)
        if needless - self.config.keep_rows >= self.store.first_position:
            self.store.trim(needless - self.config.keep_rows)

    def _finish(self) -> None:
        if self._queued:
            self._dropped += self._queued
            logger.error(
                "%d rows could not be written to %s", self._queued, self.store.path
            )
        if self._recorder is not None:
            self._attempt("recording", self._recorder.close)
