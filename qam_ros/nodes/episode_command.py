# SPDX-License-Identifier: Apache-2.0
"""`qam episode`: calls a service of the episode node and says what it answered."""

from __future__ import annotations

from collections.abc import Sequence

from qam_ros.nodes.trigger_command import arguments_of, say

HINT = "is the robot up with episodes:=operator, in this ROS_DOMAIN_ID and namespace?"


def command(argv: Sequence[str]) -> int:
    """Start an episode on a robot, or end it with a verdict.

    Args:
        argv: start, success, failure or abort; --namespace and --timeout.

    Returns:
        0 when it was done, 1 when the node refused.

    Raises:
        ConfigError: no episode node answers.
    """
    parser = arguments_of("episode", command.__doc__)
    parser.add_argument("verb", choices=["start", "success", "failure", "abort"])
    given = parser.parse_args(argv)
    return say(f"episode/{given.verb}", given, HINT)
