# SPDX-License-Identifier: Apache-2.0
"""`qam episode`: calls a service of the episode node and says what it answered."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from qam_ros.contract.errors import ConfigError


def command(argv: Sequence[str]) -> int:
    """Start an episode on a robot, or end it with a verdict.

    Args:
        argv: start, success, failure or abort; --namespace and --timeout.

    Returns:
        0 when it was done, 1 when the node refused.

    Raises:
        ConfigError: no episode node answers.
    """
    described = (command.__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="qam episode", description=described)
    parser.add_argument("verb", choices=["start", "success", "failure", "abort"])
    parser.add_argument("--namespace", default="", help="of the robot")
    parser.add_argument("--timeout", type=float, default=5.0, help="[s]")
    given = parser.parse_args(argv)
    # As the bringups set it, so that both find each other without a setting.
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    done, text = call(given.verb, given.namespace, given.timeout)
    (sys.stdout if done else sys.stderr).write(f"{text}\n")
    return 0 if done else 1


def call(verb: str, namespace: str, timeout_s: float) -> tuple[bool, str]:
    """Call a service of the episode node.

    Returns:
        Whether it was done, and the node's words.

    Raises:
        ConfigError: it does not answer in time.
    """
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from std_srvs.srv import Trigger

    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    node = rclpy.create_node(f"qam_episode_{os.getpid()}", context=context)
    executor = SingleThreadedExecutor(context=context)
    try:
        executor.add_node(node)
        name = "/".join(["", *filter(None, namespace.split("/")), "episode", verb])
        client: Any = node.create_client(Trigger, name)
        found = client.wait_for_service(timeout_sec=timeout_s)
        future = client.call_async(Trigger.Request()) if found else None
        if future is not None:
            executor.spin_until_future_complete(future, timeout_sec=timeout_s)
        answer = future.result() if future is not None and future.done() else None
        if answer is None:
            raise ConfigError(
                f"service {name} did not answer within {timeout_s} s; is the robot up with "
                "episodes:=operator, in this ROS_DOMAIN_ID and namespace?"
            )
        return bool(answer.success), str(answer.message)
    finally:
        executor.shutdown(timeout_sec=0)
        node.destroy_node()
        context.try_shutdown()
