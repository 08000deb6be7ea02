# SPDX-License-Identifier: Apache-2.0
"""What every node needs of ROS 2: process loop, lifecycle start, time, diagnostics."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final, Protocol

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import (  # type: ignore[attr-defined]
    Clock,
    ClockType,
    JumpThreshold,
)
from rclpy.duration import Duration
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions

from qam_ros.contract.errors import InterfaceError, QamError, StreamError
from qam_ros.nodes.convert import Message, from_ros, ros_type, to_ros
from qam_ros.nodes.process import Stop
from qam_ros.nodes.qos import DIAGNOSTICS
from qam_ros.nodes.sensors import FloatArray, TopicCodec

RCLError = rclpy_implementation.RCLError

WAKE_S: Final = 0.1
"""The loop looks at ``Stop`` this often; a Python signal handler cannot interrupt a wait in C."""


class Level(Enum):
    """How well a node is: ERROR when it does not do what it is for."""

    OK = DiagnosticStatus.OK
    WARN = DiagnosticStatus.WARN
    ERROR = DiagnosticStatus.ERROR


Report = tuple[Level | bool, str, Mapping[str, object]]
"""Diagnostics: level (True stands for OK, False for WARN), summary, values by name."""


def spin_node(make: Callable[[], Node], stop: Stop, args: list[str] | None) -> int:
    """Run a node until a signal comes.

    The executor is single-threaded (callbacks only move data; EventsExecutor deadlocks, the
    multi-threaded one halves throughput), and what has deadlines runs on threads of the node.

    Args:
        make: creates the node; it has ``close`` if it has something to finish.
        stop: set by signals.
        args: command line of the process.

    Returns:
        Exit code.
    """
    if not os.environ.get("HOME"):  # rclpy cannot find a log folder then
        os.environ.setdefault("ROS_LOG_DIR", tempfile.gettempdir())
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    executor = SingleThreadedExecutor()
    node = None
    try:
        node = make()
        executor.add_node(node)
        stop.arm()
        while not stop.requested and getattr(node, "exit_code", None) is None:
            _spin_some(executor, node)
        return getattr(node, "exit_code", None) or 0
    finally:
        if node is not None:
            if hasattr(node, "close"):
                node.close()
            executor.remove_node(node)
            node.destroy_node()
        executor.shutdown(timeout_sec=0)
        rclpy.try_shutdown()


def _spin_some(executor: SingleThreadedExecutor, node: Node) -> None:
    """Handle what is waiting.

    ROS 2 Jazzy raises on a lifecycle request that is not possible now; somebody's mistaken request
    must not end a guard.
    """
    try:
        executor.spin_once(timeout_sec=WAKE_S)
    except RCLError as problem:
        node.get_logger().error(f"ROS refused a request: {problem}")
        time.sleep(WAKE_S)


def autostart(node: LifecycleNode) -> bool:
    """Take a lifecycle node from unconfigured to active; whether that worked."""
    good = TransitionCallbackReturn.SUCCESS
    return node.trigger_configure() == good and node.trigger_activate() == good


def now_ns(node: Node) -> int:
    """Time of the node's clock [ns]."""
    return int(node.get_clock().now().nanoseconds)


class Destroyable(Protocol):
    """Something that takes itself off its node."""

    def destroy(self) -> None:
        """Take it off."""


class Wiring:
    """Topics and services of a node, made together and destroyed together.

    Args:
        node: the node.
        warn: log incompatible QoS of other nodes. The handlers of these events take half the time
            of a single-threaded executor, so simulations in lockstep, where all QoS is ours, go
            without.
        keep_alive: an error in a subscription's callback is logged and kept in ``problem``; else it
            ends the node. For nodes that nobody restarts.
    """

    def __init__(
        self, node: Node, *, warn: bool = True, keep_alive: bool = False
    ) -> None:
        self._node = node
        self._keep_alive = keep_alive
        self._out = PublisherEventCallbacks(use_default_callbacks=warn)
        self._in = SubscriptionEventCallbacks(use_default_callbacks=warn)
        self._undo: list[Callable[[], object]] = []
        self.malformed = 0
        self.errors = 0
        self.problem = ""

    def publisher(self, kind: type, topic: str, profile: QoSProfile) -> Any:
        """Create a publisher."""
        publisher: Any = self._node.create_publisher(
            kind, topic, profile, event_callbacks=self._out
        )
        self._undo.append(lambda: self._node.destroy_publisher(publisher))
        return publisher

    def subscription(
        self,
        kind: type,
        topic: str,
        callback: Callable[[Any], None],
        profile: QoSProfile,
    ) -> None:
        """Create a subscription."""

        def received(message: object) -> None:
            try:
                callback(message)
            except Exception as problem:
                if not self._keep_alive:
                    raise
                self.errors += 1
                self.problem = f"topic '{topic}': {type(problem).__name__}: {problem}"
                logger = self._node.get_logger()
                logger.error(self.problem, throttle_duration_sec=5.0)

        subscription = self._node.create_subscription(
            kind, topic, received, profile, event_callbacks=self._in
        )
        self._undo.append(lambda: self._node.destroy_subscription(subscription))

    def listen(
        self,
        kind: type[Message],
        topic: str,
        callback: Callable[[Message], object],
        profile: QoSProfile,
    ) -> None:
        """Subscribe to a message of qam_msgs; the callback gets its dataclass ``kind``.

        Messages with values that mean nothing are counted in ``malformed``.
        """

        def received(message: object) -> None:
            try:
                converted = from_ros(message, kind)
            except StreamError as problem:
                self._refuse(topic, problem)
                return
            callback(converted)

        self.subscription(ros_type(kind), topic, received, profile)

    def read(
        self,
        codec: TopicCodec,
        callback: Callable[[int, dict[str, dict[str, FloatArray]]], object],
        profile: QoSProfile,
    ) -> None:
        """Subscribe to a stamped sensor topic; the callback gets its stamp [ns] and raw fields.

        Messages that do not fit the interface are counted in ``malformed``.
        """

        def received(message: object) -> None:
            try:
                stamp_ns, fields = codec.decode(message)
            except InterfaceError as problem:
                self._refuse(codec.topic, problem)
                return
            assert stamp_ns is not None  # the contract observes stamped types only
            callback(stamp_ns, {codec.topic: fields})

        self.subscription(codec.message_type, codec.topic, received, profile)

    def _refuse(self, topic: str, problem: QamError) -> None:
        self.malformed += 1
        text = f"message on '{topic}' refused: {problem}"
        self._node.get_logger().warning(text, throttle_duration_sec=5.0)

    def talk(
        self, kind: type[Message], topic: str, profile: QoSProfile
    ) -> Callable[[Message], None]:
        """Publish a message of qam_msgs; returns a function that takes its dataclass ``kind``."""
        publisher = self.publisher(ros_type(kind), topic, profile)

        def send(message: Message) -> None:
            publisher.publish(to_ros(message))

        return send

    def on_clock(self, callback: Callable[[int], None]) -> None:
        """Call back with the node's time [ns] whenever a simulation sets it."""

        def jumped(_jump: object) -> None:
            callback(now_ns(self._node))

        threshold = JumpThreshold(
            min_forward=Duration(nanoseconds=1),
            min_backward=Duration(nanoseconds=-1),
            on_clock_change=True,
        )
        clock = self._node.get_clock()
        handle = clock.create_jump_callback(threshold, post_callback=jumped)
        self._undo.append(handle.unregister)

    def service(
        self, kind: Any, name: str, callback: Callable[[Any, Any], Any]
    ) -> None:
        """Create a service."""
        service = self._node.create_service(kind, name, callback)
        self._undo.append(lambda: self._node.destroy_service(service))

    def add(self, item: Destroyable) -> None:
        """Destroy this, too."""
        self._undo.append(item.destroy)

    def destroy(self) -> None:
        """Destroy everything, the newest first."""
        while self._undo:
            self._undo.pop()()


class Diagnostics:
    """Publishes a node's state on /diagnostics once a second of wall time.

    Args:
        node: the node.
        read: gives the state.
    """

    def __init__(self, node: Node, read: Callable[[], Report]) -> None:
        self._node = node
        self._read = read
        self._publisher = node.create_publisher(
            DiagnosticArray, "/diagnostics", DIAGNOSTICS
        )
        # A simulated clock may stand still; whoever watches wants to hear that, too.
        self._timer = node.create_timer(
            1.0, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def publish(self) -> None:
        """Publish now."""
        level, summary, values = self._read()
        if isinstance(level, bool):
            level = Level.OK if level else Level.WARN
        status = DiagnosticStatus(
            level=level.value,
            name=self._node.get_fully_qualified_name(),
            message=summary,
            values=[
                KeyValue(key=key, value=_text(value)) for key, value in values.items()
            ],
        )
        message = DiagnosticArray(status=[status])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)

    def destroy(self) -> None:
        """End publishing."""
        self._node.destroy_timer(self._timer)
        self._node.destroy_publisher(self._publisher)


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
