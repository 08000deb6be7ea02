# SPDX-License-Identifier: Apache-2.0
"""The transition stream: spooled rows go out in batches, what the learner has committed comes back.

A ``spool`` is one life of an uplink; its positions count the rows sent from 1 without holes. The
acknowledgement is the highest position up to which the learner has committed every row; what lies
behind it is sent again after a silence (go-back-N). A restarted uplink is a new spool that begins
behind the last acknowledgement it kept. Rows that thereby travel twice are recognised by their
key, so the two ends together deliver each row exactly once whatever is lost, repeated, reordered or
killed on the way. docs/formats/stream.md
"""

from __future__ import annotations

import uuid
import zlib
from collections import deque
from dataclasses import dataclass

from qam_ros.contract.errors import StreamError
from qam_ros.contract.interface import RobotInterface
from qam_ros.contract.messages import TransitionAck, TransitionBatch
from qam_ros.contract.transition import (
    TRANSITION_VERSION,
    Rows,
    decode,
    encode,
    mask_unusable,
)
from qam_ros.runtime.store import Committed, TransitionStore


@dataclass(frozen=True, slots=True)
class UplinkConfig:
    """How rows are sent.

    Args:
        batch_rows: greatest number of rows in a batch.
        batch_bytes: greatest size of a batch, unless a single row is larger [byte].
        window_rows: greatest number of rows sent and not yet acknowledged.
        window_batches: the same for batches; below the depth of the topic, which would drop them.
        resend_s: silence after which everything behind the acknowledgement is sent again [s].
    """

    batch_rows: int = 256
    window_rows: int = 4096
    resend_s: float = 1.0
    batch_bytes: int = 1 << 19
    window_batches: int = 32


class Uplink:
    """Sending end: reads a spool and decides what goes out next.

    Args:
        store: the spool, for reading; ``meta("acked")`` says how far it was acknowledged before.
        robot: name that batches and acknowledgements carry.
        config: batch size, window and silence.
    """

    # Acknowledgements that lie further back than earlier ones, before they are believed.
    _BELIEVED = 3

    def __init__(
        self, store: TransitionStore, robot: str, config: UplinkConfig | None = None
    ) -> None:
        self.store = store
        self.robot = robot
        self.config = config or UplinkConfig()
        fitting = self.config.batch_bytes // store.dtype.itemsize
        self._batch_rows = max(1, min(self.config.batch_rows, fitting))
        self.resent = 0
        self.unavailable = 0
        self._progress_ns = 0
        self._renew(max(store.meta("acked"), store.first_position - 1))

    def _renew(self, base: int) -> None:
        """Begin a new spool behind a position of the store."""
        self.spool = uuid.uuid4().bytes
        self.acked = self.sent = self._base = base
        self._flying: deque[int] = deque()  # last position of each batch on its way
        self._regressions = 0
        self._regressed_ns = 0

    def poll(self, now_ns: int) -> list[TransitionBatch]:
        """Batches to send now.

        Args:
            now_ns: monotonic time [ns].
        """
        if (
            self.sent > self.acked
            and now_ns - self._progress_ns > self.config.resend_s * 1e9
        ):
            self.resent += self.sent - self.acked
            self.sent = self.acked
            self._flying.clear()
        while self._flying and self._flying[0] <= self.acked:
            self._flying.popleft()
        if self.sent == self.acked:
            self._progress_ns = now_ns
        batches = []
        while len(self._flying) < self.config.window_batches:
            room = self.config.window_rows - (self.sent - self.acked)
            limit = max(min(room, self._batch_rows), 0)
            first, rows = self.store.read(self.sent, limit)
            if not rows.size:
                break
            if first != self.sent + 1:
                raise StreamError(
                    f"{self.store.path}: rows {self.sent + 1} to {first - 1} are gone although "
                    "they were not acknowledged; was the file changed by another program?"
                )
            data = encode(rows)
            batches.append(
                TransitionBatch(
                    robot=self.robot,
                    spool=self.spool,
                    first_position=first - self._base,
                    count=rows.size,
                    format_version=TRANSITION_VERSION,
                    interface_hash=self.store.interface.semantic_hash,
                    crc32=zlib.crc32(data),
                    data=data,
                )
            )
            self.sent += rows.size
            self._flying.append(self.sent)
        return batches

    def acknowledge(self, ack: TransitionAck, now_ns: int) -> bool:
        """Take an acknowledgement.

        Args:
            ack: from the learner; one of another robot or of an earlier life is passed over.
            now_ns: monotonic time [ns].

        Returns:
            Whether the acknowledged position grew.

        Raises:
            StreamError: it acknowledges rows that were never sent.
        """
        if ack.robot != self.robot or ack.spool != self.spool:
            return False
        position = self._base + ack.committed
        if position > self.sent:
            # After going back, acknowledgements of the first sending still come in.
            if position > self.store.last_position:
                raise StreamError(
                    f"robot '{self.robot}': the learner acknowledges row {ack.committed} of a "
                    f"spool of {self.store.last_position - self._base}; is another robot of "
                    "that name streaming?",
                    committed=ack.committed,
                )
            self.sent = position
        if position < self.acked:
            self._regress(position, now_ns)
            return False
        self._regressions = 0
        grew = position > self.acked
        if grew:
            self._progress_ns = now_ns
            self.acked = position
        return grew

    def _regress(self, position: int, now_ns: int) -> None:
        """The learner has less than it said: after a few times it is believed and sent anew.

        One such message may be an old one that was overtaken; a learner whose replay log was
        lost or replaced goes on saying it.
        """
        if self._regressions == 0:
            self._regressed_ns = now_ns
        self._regressions += 1
        silent = now_ns - self._regressed_ns >= self.config.resend_s * 1e9
        if self._regressions >= self._BELIEVED and silent:
            base = max(position, self.store.first_position - 1)
            self.unavailable += base - position
            self._renew(base)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a batch brought.

    Args:
        ack: the answer to send.
        rows: (M,) the rows that were new, committed durably.
        gap: whether batches before this one are missing (nothing was taken from it).
    """

    ack: TransitionAck
    rows: Rows
    gap: bool


class Downlink:
    """Receiving end: commits rows and how far they reach in one transaction, then answers.

    A row whose numbers cannot be trained on is committed masked and counted in ``unusable``:
    refusing it would send it again for ever and hold up every row behind it.

    Args:
        store: the replay log; ``synchronous="FULL"`` where an answer must survive a power cut.
        robot: name of the robot whose batches are taken.
    """

    def __init__(self, store: TransitionStore, robot: str) -> None:
        self.store = store
        self.robot = robot
        self.interface: RobotInterface = store.interface
        self.duplicates = 0
        self.gaps = 0
        self.unusable = 0

    def receive(self, batch: TransitionBatch) -> Receipt:
        """Take a batch.

        Raises:
            StreamError: the batch is of another robot or interface, damaged, or the replay log
                cannot be written; nothing of it was taken.
            TransitionError: a row has a key, flag or enumeration that no row can have; nothing of
                it was taken.
        """
        self._check(batch)
        rows = decode(batch.data, self.interface, batch.count)
        known = self.store.committed(batch.spool)
        last = batch.first_position + batch.count - 1
        gap = batch.first_position > known + 1
        if gap or last <= known:
            self.gaps += int(gap)
            self.duplicates += 0 if gap else batch.count
            return Receipt(self._ack(batch, known), rows[:0], gap)
        rows, unusable = mask_unusable(rows, self.interface)
        fresh = self.store.append(rows, Committed(batch.robot, batch.spool, last))
        self.unusable += unusable
        self.duplicates += batch.count - fresh.size
        return Receipt(self._ack(batch, last), fresh, gap=False)

    def _ack(self, batch: TransitionBatch, committed: int) -> TransitionAck:
        return TransitionAck(
            robot=batch.robot,
            spool=batch.spool,
            committed=committed,
            rows_total=self.store.last_position,
        )

    def _check(self, batch: TransitionBatch) -> None:
        where = f"transition batch of robot '{batch.robot}', position {batch.first_position}"
        expected = {
            "robot": (batch.robot, self.robot),
            "format_version": (batch.format_version, TRANSITION_VERSION),
            "interface_hash": (batch.interface_hash, self.interface.semantic_hash),
            "size of spool": (len(batch.spool), 16),
            "size of data": (len(batch.data), batch.count * self.store.dtype.itemsize),
            "crc32": (zlib.crc32(batch.data), batch.crc32),
        }
        for name, (found, wanted) in expected.items():
            if found != wanted:
                raise StreamError(
                    f"{where}: {name} is {found}, expected {wanted}; robot and learner must use "
                    "the same version, robot name and robot interface",
                    field=name,
                    found=found,
                    expected=wanted,
                )
        if batch.count < 1 or batch.first_position < 1:
            raise StreamError(
                f"{where}: count is {batch.count}; both count and position begin at 1"
            )
