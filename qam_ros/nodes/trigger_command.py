# SPDX-License-Identifier: Apache-2.0
"""What an operator asks of a running robot from a terminal: `qam reset`, `qam rollback`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from qam_ros.contract.errors import ConfigError

HINT = "is the robot up, in this ROS_DOMAIN_ID and namespace?"


def reset(argv: Sequence[str]) -> int:
    """Leave a latched stop of the guard: motion starts anew at the measured pose.

    Args:
        argv: --namespace and --timeout.

    Returns:
        0 when it was done, 1 when the guard refused.

    Raises:
        ConfigError: no guard answers.
    """
    return say("guard/reset", arguments_of("reset", reset.__doc__).parse_args(argv))


def rollback(argv: Sequence[str]) -> int:
    """Go back to the policy version accepted before, from the next chunk on.

    Args:
        argv: --namespace and --timeout.

    Returns:
        0 when it was done, 1 when no earlier version is kept.

    Raises:
        ConfigError: no policy answers.
    """
    parser = arguments_of("rollback", rollback.__doc__)
    return say("policy/rollback", parser.parse_args(argv))


def arguments_of(name: str, text: str | None) -> argparse.ArgumentParser:
    """Parser of a command that calls a service; described by the first line of a docstring."""
    described = (text or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog=f"qam {name}", description=described)
    parser.add_argument("--namespace", default="", help="of the robot")
    parser.add_argument("--timeout", type=float, default=5.0, help="[s]")
    return parser


def say(service: str, given: argparse.Namespace, hint: str = HINT) -> int:
    """Call a service and print its answer; 0 when it was done."""
    # As the bringups set it, so that both find each other without a setting.
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    done, text = call(service, given.namespace, given.timeout, hint)
    (sys.stdout if done else sys.stderr).write(f"{text}\n")
    return 0 if done else 1


def call(service: str, namespace: str, timeout_s: float, hint: str) -> tuple[bool, str]:
    """Call a service of a node that takes no arguments.

    Args:
        service: node and name, without the namespace.
        namespace: of the robot.
        timeout_s: longest wait for the node, and for its answer [s].
        hint: what to look at when nobody answers.

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
    node = rclpy.create_node(f"qam_call_{os.getpid()}", context=context)
    executor = SingleThreadedExecutor(context=context)
    try:
        executor.add_node(node)
        name = "/".join(["", *filter(None, namespace.split("/")), service])
        client: Any = node.create_client(Trigger, name)
        found = client.wait_for_service(timeout_sec=timeout_s)
        future = client.call_async(Trigger.Request()) if found else None
        if future is not None:
            executor.spin_until_future_complete(future, timeout_sec=timeout_s)
        answer = future.result() if future is not None and future.done() else None
        if answer is None:
            raise ConfigError(
                f"service {name} did not answer within {timeout_s} s; {hint}"
            )
        return bool(answer.success), str(answer.message)
    finally:
        executor.shutdown(timeout_sec=0)
        node.destroy_node()
        context.try_shutdown()
