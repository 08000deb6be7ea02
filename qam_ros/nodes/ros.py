# SPDX-License-Identifier: Apache-2.0
"""What every node needs of ROS 2: process loop, lifecycle start, time, diagnostics."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from qam_ros.nodes.process import Stop
from qam_ros.nodes.qos import DIAGNOSTICS

WAKE_S: Final = 0.1
"""The loop looks at ``Stop`` this often; a Python signal handler cannot interrupt a wait in C."""

Report = tuple[bool, str, Mapping[str, object]]
"""Diagnostics: all is well, summary, values by name."""


class Closing(Protocol):
    """A node that has something to finish before it is destroyed."""

    def close(self) -> None:
        """Stop threads, write files."""


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
            executor.spin_once(timeout_sec=WAKE_S)
        return getattr(node, "exit_code", None) or 0
    finally:
        if node is not None:
            if hasattr(node, "close"):
                node.close()
            executor.remove_node(node)
            node.destroy_node()
        executor.shutdown(timeout_sec=0)
        rclpy.try_shutdown()


def autostart(node: LifecycleNode) -> bool:
    """Take a lifecycle node from unconfigured to active; whether that worked."""
    good = TransitionCallbackReturn.SUCCESS
    return node.trigger_configure() == good and node.trigger_activate() == good


def now_ns(node: Node) -> int:
    """Time of the node's clock [ns]."""
    return int(node.get_clock().now().nanoseconds)


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
        good, summary, values = self._read()
        status = DiagnosticStatus(
            level=DiagnosticStatus.OK if good else DiagnosticStatus.WARN,
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
