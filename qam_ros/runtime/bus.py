# SPDX-License-Identifier: Apache-2.0
"""In-process bus: the topics of the ROS graph without ROS, delivered in order on one thread.

Publishing only queues; ``spin`` delivers. So a callback may publish, nothing recurses, and a run is
reproducible message by message.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

Callback = Callable[[Any], None]


class Bus:
    """Queue of messages and the callbacks that wait for them."""

    def __init__(self) -> None:
        self._callbacks: dict[str, list[Callback]] = defaultdict(list)
        self._queue: deque[tuple[Callback, Any]] = deque()
        self._history: dict[str, deque[Any]] = {}

    def keep(self, topic: str, depth: int) -> None:
        """Keep the last messages of a topic for subscribers that come later (transient local).

        Args:
            topic: topic name.
            depth: number of messages kept.
        """
        self._history[topic] = deque(self._history.get(topic, ()), maxlen=depth)

    def subscribe(self, topic: str, callback: Callback) -> Callable[[], None]:
        """Call ``callback`` with every message published on a topic from now on, and with those kept.

        Args:
            topic: topic name.
            callback: called from ``spin``.

        Returns:
            A function that ends the subscription; messages still queued for it are dropped.
        """
        self._callbacks[topic].append(callback)
        for message in self._history.get(topic, ()):
            self._queue.append((callback, message))

        def unsubscribe() -> None:
            self._callbacks[topic].remove(callback)
            kept = [item for item in self._queue if item[0] is not callback]
            self._queue.clear()
            self._queue.extend(kept)

        return unsubscribe

    def publish(self, topic: str, message: object) -> None:
        """Queue a message for the present subscribers of a topic."""
        if topic in self._history:
            self._history[topic].append(message)
        for callback in self._callbacks.get(topic, ()):
            self._queue.append((callback, message))

    def spin(self) -> int:
        """Deliver until the queue is empty, in the order of publication.

        Returns:
            Number of deliveries.
        """
        count = 0
        while self._queue:
            callback, message = self._queue.popleft()
            callback(message)
            count += 1
        return count
