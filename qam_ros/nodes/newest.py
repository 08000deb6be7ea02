# SPDX-License-Identifier: Apache-2.0
"""The newest message of every sensor topic, taken by the thread that needs it when it needs it.

An executor that calls back for every message holds the interpreter while it does so, and sensors of one
stamp come just before the deadline that waits for them. Here the middleware keeps the last messages of each
topic, in threads that need no interpreter, and the control thread takes them at the start of its tick: nothing
in Python runs between two ticks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from rclpy.callback_groups import CallbackGroup
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy

from qam_ros.contract.errors import InterfaceError
from qam_ros.nodes.sensors import FloatArray, TopicCodec

DEPTH: Final = 16
"""Messages kept of a topic: several publishers may share one, and not each has what is wanted."""
NEWEST_IN: Final = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=DEPTH,
    reliability=ReliabilityPolicy.BEST_EFFORT,
)
"""Reads from any driver, best effort or reliable; the middleware keeps what is newest."""


class NewestMessages:
    """Subscriptions that no executor waits for.

    Args:
        node: the node.
        codecs: of the topics.
        callback: gets the stamp [ns] and the raw fields of each message.

    Attributes:
        malformed: messages that do not fit the interface.
    """

    def __init__(
        self,
        node: Node,
        codecs: Iterable[TopicCodec],
        callback: Callable[[int, dict[str, dict[str, FloatArray]]], object],
    ) -> None:
        self.malformed = 0
        self._node = node
        self._callback = callback
        # Without the events of QoS: what best effort without deadline asks for, every driver offers.
        events = SubscriptionEventCallbacks(use_default_callbacks=False)
        self._topics: list[tuple[TopicCodec, Any]] = [
            (
                codec,
                node.create_subscription(
                    codec.message_type,
                    codec.topic,
                    _never_called,
                    NEWEST_IN,
                    callback_group=Untended(),
                    event_callbacks=events,
                ),
            )
            for codec in codecs
        ]

    def take(self) -> None:
        """Pass on the newest message of each topic that fits; waits for nothing."""
        for codec, subscription in self._topics:
            problem: InterfaceError | None = None
            for data in reversed(_waiting(codec, subscription)):
                try:
                    stamp_ns, fields = codec.decode_raw(data)
                except InterfaceError as found:
                    problem = problem or found
                    self.malformed += 1
                    continue
                assert stamp_ns is not None  # the contract observes stamped types only
                self._callback(stamp_ns, {codec.topic: fields})
                break
            if problem is not None:
                self._node.get_logger().warning(
                    f"message on '{codec.topic}' refused: {problem}",
                    throttle_duration_sec=5.0,
                )

    def destroy(self) -> None:
        """End the subscriptions; call when nobody takes any more."""
        for _, subscription in self._topics:
            self._node.destroy_subscription(subscription)
        self._topics.clear()


class Untended(CallbackGroup):
    """Subscriptions that the executor does not wait for; whoever needs their messages takes them.

    Each wait of rclpy costs 0.3 ms of CPU, more than all else that a message needs. Their events are
    not waited for either: they share their condition with the data, which would end every wait.
    """

    def can_execute(self, _entity: object) -> bool:
        """Never by the executor."""
        return False

    def beginning_execution(self, _entity: object) -> bool:
        """Never by the executor."""
        return False

    def ending_execution(self, _entity: object) -> None:
        """Nothing to undo."""


def _waiting(codec: TopicCodec, subscription: Any) -> list[bytes]:
    """What has come since the last call, the oldest first."""
    handle = subscription.handle
    found: list[bytes] = []
    with handle:
        while len(found) < DEPTH:
            taken = handle.take_message(codec.message_type, True)  # noqa: FBT003 - raw
            if taken is None:
                break
            found.append(taken[0])
    return found


def _never_called(message: object) -> None:
    raise AssertionError(f"an executor has taken {type(message).__name__}")
