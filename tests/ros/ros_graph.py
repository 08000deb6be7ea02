# SPDX-License-Identifier: Apache-2.0
"""A ROS domain of one's own, and a node in this process that watches what happens in it."""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qam_ros.runtime.bringup import bringup_folder

DOMAINS = range(1, 102)  # above 101 the ports may meet the kernel's ephemeral ones
LOCKS = Path(tempfile.gettempdir()) / "qam_ros_domains"


@contextlib.contextmanager
def own_domain() -> Iterator[int]:
    """A ROS domain that no other test on this machine uses.

    The number comes from 1-101 under a file lock, which the kernel gives back if the test dies.
    """
    LOCKS.mkdir(exist_ok=True)
    start = os.getpid() % len(DOMAINS)
    for number in (*DOMAINS[start:], *DOMAINS[:start]):
        lock = (LOCKS / str(number)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        with lock:
            yield number
        return
    pytest.fail(
        "every ROS domain from 1 to 101 is taken: are old test processes running?"
    )


def ros_environment(domain: int, log_dir: Path) -> dict[str, str]:
    """Environment variables for everything that lives in a domain."""
    profile = bringup_folder().parent / "fastdds.xml"
    return {
        "FASTDDS_DEFAULT_PROFILES_FILE": str(profile),
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_LOG_DIR": str(log_dir),
    }


class Graph:
    """A node in this process with the few things tests do to a graph.

    Args:
        node: its node.
        executor: the executor that spins it, in the test's own thread.
    """

    def __init__(self, node, executor) -> None:
        self.node = node
        self.executor = executor

    def wait(self, condition: Callable[[], object], timeout_s: float = 10.0) -> bool:
        """Spin until the condition holds; returns whether it did within the time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.executor.spin_once(timeout_sec=0.02)
        return True

    def spin(self, duration_s: float) -> None:
        """Spin for a while."""
        self.wait(lambda: False, duration_s)

    def collect(self, message_type, topic: str, qos=10) -> list:
        """List that fills with the messages of a topic."""
        received: list = []
        self.node.create_subscription(message_type, topic, received.append, qos)
        return received

    def publisher(self, message_type, topic: str, qos=10, *, peers: int = 0):
        """Publisher, matched with a number of subscriptions before it is returned."""
        publisher = self.node.create_publisher(message_type, topic, qos)
        matched = self.wait(lambda: publisher.get_subscription_count() >= peers)
        assert matched, f"no {peers} subscriptions on {topic}"
        return publisher

    def call(self, service_type, name: str, request=None, timeout_s: float = 10.0):
        """Response of a service."""
        client = self.node.create_client(service_type, name)
        assert self.wait(client.service_is_ready, timeout_s), f"no service {name}"
        future = client.call_async(request or service_type.Request())
        assert self.wait(future.done, timeout_s), f"no answer from {name}"
        return future.result()


@contextlib.contextmanager
def open_graph(domain: int, name: str = "test_node") -> Iterator[Graph]:
    """A node in a domain, on a SingleThreadedExecutor."""
    rclpy = pytest.importorskip("rclpy", reason="needs rclpy: run make setup")
    from rclpy.executors import SingleThreadedExecutor

    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = rclpy.create_node(name, context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        yield Graph(node, executor)
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown(context=context)
