# SPDX-License-Identifier: Apache-2.0
"""The fixtures of this folder: domains are exclusive, messages cross processes."""

import os
import signal
import sys
from pathlib import Path

import pytest

ECHO = """\
import rclpy
from qam_msgs.msg import TransitionAck, TransitionBatch
from rclpy.executors import ExternalShutdownException

rclpy.init()
node = rclpy.create_node("echo")
acks = node.create_publisher(TransitionAck, "transition_ack", 10)


def answer(batch):
    acks.publish(TransitionAck(spool=batch.spool, committed=batch.first_position))


node.create_subscription(TransitionBatch, "transition_batch", answer, 10)
try:
    rclpy.spin(node)
except (KeyboardInterrupt, ExternalShutdownException):
    node.destroy_node()
    rclpy.try_shutdown()
"""


@pytest.fixture
def echo(tmp_path: Path) -> str:
    """Path of a program that acknowledges every batch."""
    path = tmp_path / "echo_node"
    path.write_text(f'#!/usr/bin/env -S "{sys.executable}"\n{ECHO}')
    path.chmod(0o755)
    return str(path)


def test_a_domain_is_free_and_announced_to_children(ros_domain):
    assert 1 <= ros_domain <= 101
    assert os.environ["ROS_DOMAIN_ID"] == str(ros_domain)
    assert os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"


def test_messages_with_fixed_arrays_cross_between_processes(graph, spawn, echo):
    from qam_msgs.msg import TransitionAck, TransitionBatch

    process = spawn(echo)
    acks = graph.collect(TransitionAck, "transition_ack")
    batches = graph.publisher(TransitionBatch, "transition_batch", peers=1)
    assert graph.wait(lambda: graph.node.count_publishers("transition_ack") == 1)
    spool = list(range(16))
    batches.publish(
        TransitionBatch(
            spool=spool, first_position=2**63, count=1, data=b"\x00\xff" * 4096
        )
    )
    assert graph.wait(lambda: acks)
    assert list(acks[0].spool) == spool
    assert acks[0].committed == 2**63
    assert process.stop(signal.SIGINT) == 0
