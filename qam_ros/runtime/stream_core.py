# SPDX-License-Identifier: Apache-2.0
"""The stream process without ROS: joiner, spool and uplink, put together.

Messages come in, batches go out, acknowledgements come back; the disk has its own thread. The
stream node is a shell around this class, and so is everything that streams without ROS.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qam_ros.contract.errors import StreamError
from qam_ros.contract.interface import RobotInterface
from qam_ros.contract.messages import TransitionAck, TransitionBatch
from qam_ros.runtime.joiner import Joiner, JoinerConfig, Message
from qam_ros.runtime.spool import Recorder, SpoolConfig, SpoolWriter
from qam_ros.runtime.store import TransitionStore
from qam_ros.runtime.stream import Uplink, UplinkConfig

# Counters of the joiner that mean that something went wrong with a row.
TROUBLE = (
    "late_labels",
    "without_next",
    "without_proposal",
    "malformed",
    "lost_reports",
)


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """Settings of the parts; see each."""

    joiner: JoinerConfig = field(default_factory=JoinerConfig)
    spool: SpoolConfig = field(default_factory=SpoolConfig)
    uplink: UplinkConfig = field(default_factory=UplinkConfig)


@dataclass(frozen=True, slots=True)
class StreamHealth:
    """State for diagnostics.

    Args:
        level: 0 well, 1 a row was harmed or the learner is silent, 2 rows cannot be kept.
        message: the reason in words.
        values: counters by name.
    """

    level: int
    message: str
    values: dict[str, int]


class StreamCore:
    """Joins, spools, sends.

    Args:
        path: spool file.
        interface: what the rows are made of.
        robot: name that the batches carry.
        config: settings.
        open_recorder: makes a new recording; None records nothing.

    Raises:
        StreamError: the spool cannot be opened.
    """

    def __init__(
        self,
        path: str | Path,
        interface: RobotInterface,
        robot: str,
        config: StreamConfig | None = None,
        open_recorder: Callable[[], Recorder] | None = None,
    ) -> None:
        self.config = config or StreamConfig()
        self.writer = SpoolWriter(path, interface, self.config.spool, open_recorder)
        self._reader = TransitionStore(path, interface)
        known = self._reader.recent_keys(2 * self.config.joiner.capacity)
        self.joiner = Joiner(interface, self.config.joiner, known)
        self.uplink = Uplink(self._reader, robot, self.config.uplink)
        self._malformed = 0
        self._refused = 0
        self._refusal = ""
        self._trouble = 0
        self.writer.start()

    def add(self, message: Message, now_ns: int) -> None:
        """Take a proposal, report, reward or event; now_ns is monotonic time [ns]."""
        self.writer.put(self.joiner.add(message, now_ns))

    def refuse(self, problem: StreamError) -> None:
        """Note a message that could not be read."""
        self._malformed += 1
        self._refusal = str(problem)

    def poll(self, now_ns: int, *, heard: bool = True) -> list[TransitionBatch]:
        """Time-outs, and the batches to send now; call some times a second.

        Args:
            now_ns: monotonic time [ns].
            heard: whether anybody listens; if not, nothing is sent.
        """
        self.writer.put(self.joiner.poll(now_ns))
        return self._send(now_ns) if heard else []

    @property
    def failed(self) -> bool:
        """Whether rows are no longer written; a new process joins them from the topics' history."""
        return self.writer.failed

    @property
    def backlog(self) -> int:
        """Rows in the spool that are still to be sent; none without a learner to send them to."""
        if not self.config.spool.wait_for_ack:
            return 0
        return self.writer.status().last_position - self.uplink.sent

    def acknowledge(self, ack: TransitionAck, now_ns: int) -> list[TransitionBatch]:
        """Take an acknowledgement; returns what it makes room for."""
        try:
            grew = self.uplink.acknowledge(ack, now_ns)
        except StreamError as error:
            self._refused += 1
            self._refusal = str(error)
            return []
        self.writer.acknowledge(self.uplink.acked)
        return self._send(now_ns) if grew else []

    def _send(self, now_ns: int) -> list[TransitionBatch]:
        """What the uplink sends; without a learner to wait for, nothing."""
        return self.uplink.poll(now_ns) if self.config.spool.wait_for_ack else []

    def stop(self, timeout_s: float, *, flush: bool = True) -> bool:
        """Write what is joined and close; False if the disk was too slow.

        Args:
            timeout_s: time for the disk [s].
            flush: give up waiting for what is unfinished and write it masked, for a clean stop. False
                after a failure: the topics' history brings it to the next process, complete.
        """
        if flush:
            self.writer.put(self.joiner.flush())
        in_time = self.writer.stop(timeout_s)
        self._reader.close()
        return in_time

    def health(self) -> StreamHealth:
        """Counters and their meaning; a past harm is reported once, its counter stays."""
        spool, counters = self.writer.status(), dataclasses.asdict(self.joiner.counters)
        trouble = sum(counters[name] for name in TROUBLE)
        trouble += self._malformed + self._refused
        harmed, self._trouble = trouble - self._trouble, trouble
        values = {
            **counters,
            "pending": self.joiner.pending,
            "spooled": spool.last_position,
            "depth": spool.last_position - spool.acked,
            "acked": spool.acked,
            "sent": self.uplink.sent,
            "resent": self.uplink.resent,
            "unavailable": self.uplink.unavailable,
            "malformed messages": self._malformed,
            "refused_acks": self._refused,
            "recorded": spool.recorded,
            "queued": spool.queued,
            "dropped": spool.dropped,
        }
        if spool.problem:
            return StreamHealth(2, spool.problem, values)
        if spool.dropped:
            return StreamHealth(2, f"{spool.dropped} rows were dropped", values)
        if harmed > 0:
            problem = self._refusal or self.joiner.last_problem or "see the counters"
            return StreamHealth(
                1, f"{harmed} messages or rows went wrong: {problem}", values
            )
        return StreamHealth(0, "streaming", values)
