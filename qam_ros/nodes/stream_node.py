# SPDX-License-Identifier: Apache-2.0
"""Stream node: joins what the robot's nodes publish into transitions, spools and sends them.

In: action_proposal, guard_report, step_reward, episode_event, transition_ack. Out: transition_batch.
It writes ``spool.sqlite`` and, when asked to record, bags ``bag``, ``bag_1``, ... into its run
directory. It owns no topic that moves anything: it may die and come back at any time.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]
from rclpy.node import Node

from qam_ros.contract import messages
from qam_ros.contract.errors import StreamError
from qam_ros.contract.interface import load_interface
from qam_ros.nodes import qos
from qam_ros.nodes.convert import from_ros, ros_type, to_ros
from qam_ros.nodes.newest import Untended
from qam_ros.nodes.parameters import COMMON, Parameter, read_parameters
from qam_ros.nodes.process import Stop
from qam_ros.nodes.ros import Diagnostics, Level, Report, spin_node
from qam_ros.runtime.joiner import JoinerConfig, Message
from qam_ros.runtime.recording import BagWriter, free_folder
from qam_ros.runtime.spool import Recorder, SpoolConfig
from qam_ros.runtime.stream import UplinkConfig
from qam_ros.runtime.stream_core import StreamConfig, StreamCore

POLL_S = (0.05, 0.2)  # least and greatest time between two bunches of messages
LEVELS = (Level.OK, Level.WARN, Level.ERROR)  # of StreamHealth
BUNCH = 30  # messages aimed at: ten rows share what waking up and a batch cost
BUNCH_S = 0.03  # longest time in one callback, so that a signal is seen while history comes in
LAST_WORDS_S = (
    0.2  # longest wait at a stop for a guard that was asked to stop at the same moment
)
STOP_TIMEOUT_S = 0.6  # gone in less than a second, also when the disk is slow

PARAMETERS = (
    *(row for row in COMMON if row.name == "overlay"),
    Parameter(
        "robot", "", "Robot interface: a name in config/robot or a path.", required=True
    ),
    Parameter("run_dir", "", "Folder for the spool and for bags.", required=True),
    Parameter("record", default=False, description="Record bags into run_dir."),
    Parameter("uplink", default=True, description="Send rows to a learner."),
    Parameter(
        "label_timeout_s", 10.0, "Wait of a row for its reward.", "s", 0.1, 3600.0
    ),
    Parameter(
        "successor_timeout_s", 2.0, "Wait for a next observation.", "s", 0.1, 60.0
    ),
    Parameter("batch_rows", 256, "Rows in a batch at most.", "", 1, 4096),
    Parameter("window_rows", 4096, "Rows sent ahead of acknowledgement.", "", 1, 65536),
    Parameter("resend_s", 1.0, "Silence before rows are sent again.", "s", 0.05, 60.0),
    Parameter("queue_rows", 65536, "Rows that may wait for the disk.", "", 1, 10**6),
    Parameter("keep_rows", 20000, "Acknowledged rows kept.", "", 5000, 10**7),
    Parameter("max_rows", 5_000_000, "Unacknowledged rows at most.", "", 1, 10**9),
)


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Values of ``PARAMETERS``."""

    robot: str
    overlay: str
    run_dir: str
    record: bool
    uplink: bool
    label_timeout_s: float
    successor_timeout_s: float
    batch_rows: int
    window_rows: int
    resend_s: float
    queue_rows: int
    keep_rows: int
    max_rows: int

    def config(self) -> StreamConfig:
        """Settings of the parts."""
        return StreamConfig(
            joiner=JoinerConfig(self.label_timeout_s, self.successor_timeout_s),
            spool=SpoolConfig(
                queue_rows=self.queue_rows,
                keep_rows=self.keep_rows,
                max_rows=self.max_rows,
                wait_for_ack=self.uplink,
            ),
            uplink=UplinkConfig(self.batch_rows, self.window_rows, self.resend_s),
        )


def _never(_: object) -> None:
    """Callback of subscriptions that are never called back."""


class StreamNode(Node):
    """Shell around ``StreamCore``: topics, timer, diagnostics.

    Args:
        stop: says when the node closes whether it was asked to.

    Raises:
        QamError: a parameter is wrong or the spool cannot be opened.
    """

    def __init__(self, stop: Stop) -> None:
        super().__init__("stream")
        self._stop = stop
        settings = read_parameters(self, PARAMETERS, StreamSettings)
        interface = load_interface(settings.robot, settings.overlay)
        folder = Path(settings.run_dir)
        bag = folder / "bag"

        def open_bag() -> Recorder:
            return BagWriter(free_folder(bag), interface, interface.robot)

        self.core = StreamCore(
            folder / "spool.sqlite",
            interface,
            interface.robot,
            settings.config(),
            open_bag if settings.record else None,
        )
        self._inputs: list[tuple[Any, type[Message | messages.TransitionAck]]] = []
        self._subscribe()
        self._batches = self.create_publisher(
            ros_type(messages.TransitionBatch), "transition_batch", qos.BATCH
        )
        # Steady: time-outs and sending go on while a simulated clock stands still.
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(POLL_S[1], self._poll, clock=clock)
        self._diagnostics = Diagnostics(self, self._report)

    @property
    def exit_code(self) -> int | None:
        """1 once nothing is written any more: the supervisor restarts the process."""
        return 1 if self.core.failed else None

    def _subscribe(self) -> None:
        """Listen to everything a row is made of, with the history of each topic."""
        # With three messages a tick, waiting for each was most of the node's cost.
        group = Untended()
        for topic, kind, profile in (
            ("action_proposal", messages.ActionProposal, qos.HISTORY),
            ("guard_report", messages.GuardReport, qos.HISTORY),
            ("step_reward", messages.StepReward, qos.HISTORY),
            ("episode_event", messages.EpisodeEvent, qos.HISTORY),
            ("transition_ack", messages.TransitionAck, qos.ACK),
        ):
            subscription = self.create_subscription(
                ros_type(kind), topic, _never, profile, callback_group=group
            )
            self._inputs.append((subscription, kind))

    def _poll(self) -> None:
        """Take what has come, send, and come back when some ten rows may be there."""
        taken = self._take_bunch()
        heard = self._batches.get_subscription_count() > 0
        self._publish(self.core.poll(time.monotonic_ns(), heard=heard))
        period_s = self._timer.timer_period_ns * 1e-9 * BUNCH / max(taken, 1)
        if (
            heard and self.core.backlog
        ):  # the window is full: acknowledgements are awaited
            period_s = 0.0
        period_s = min(max(period_s, POLL_S[0]), POLL_S[1])
        self._timer.timer_period_ns = round(period_s * 1e9)

    def _take_bunch(self) -> int:
        """Take what has come, for a bounded time; returns the number of messages."""
        deadline_s = time.monotonic() + BUNCH_S
        taken = 0
        while (found := self._take_one_each()) and time.monotonic() < deadline_s:
            taken += found
        return taken + found

    def _take_one_each(self) -> int:
        """Take the next message of each topic; returns how many there were.

        One with values that mean nothing is counted and left: it stays in the topic's history, where
        a restarted node would find it again.
        """
        found = 0
        for subscription, kind in self._inputs:
            with subscription.handle:
                taken = subscription.handle.take_message(
                    subscription.msg_type, subscription.raw
                )
            if taken is not None:
                found += 1
                try:
                    message = from_ros(taken[0], kind)
                except StreamError as problem:
                    self._refuse(subscription.topic_name, problem)
                    continue
                self._take(message)
        return found

    def _refuse(self, topic: str, problem: StreamError) -> None:
        self.core.refuse(problem)
        text = f"message on '{topic}' refused: {problem}"
        self.get_logger().warning(text, throttle_duration_sec=5.0)

    def _take(self, message: Message | messages.TransitionAck) -> None:
        now_ns = time.monotonic_ns()
        if isinstance(message, messages.TransitionAck):
            self._publish(self.core.acknowledge(message, now_ns))
        else:
            self.core.add(message, now_ns)

    def _publish(self, batches: list[messages.TransitionBatch]) -> None:
        for batch in batches:
            self._batches.publish(to_ros(batch))

    def _report(self) -> Report:
        health = self.core.health()
        return LEVELS[health.level], health.message, health.values

    def close(self) -> None:
        """Write what there is and close the files.

        A node that was asked to stop takes what has come and writes what is unfinished; Ctrl-C reaches
        all processes of a launch at once, so the last reports of a guard that ends, too, are waited
        for. One that failed leaves all that to its successor, which gets it from the topics' history.
        """
        asked = self._stop.requested
        if asked:
            deadline_s = time.monotonic() + LAST_WORDS_S
            while self.count_publishers("guard_report") and (
                time.monotonic() < deadline_s
            ):
                self._take_bunch()
                time.sleep(POLL_S[0] / 5)
            self._take_bunch()
        if not self.core.stop(STOP_TIMEOUT_S, flush=asked):
            self.get_logger().error(
                f"the disk took longer than {STOP_TIMEOUT_S} s; the topics' history brings the "
                "rows that are missing in the spool to the next stream node"
            )


def run(stop: Stop, args: list[str] | None) -> int:
    """Run the node until a signal comes; returns the exit code."""
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s %(name)s: %(message)s"
    )
    return spin_node(lambda: StreamNode(stop), stop, args)
