# SPDX-License-Identifier: Apache-2.0
"""Policy process: signal handlers first, then everything else (see ``policy_node``)."""

from __future__ import annotations

from typing import NoReturn

from qam_ros.nodes.process import leave, run_process


def main(args: list[str] | None = None) -> NoReturn:
    """Run the policy node and end the process with its exit code."""
    leave(run_process("qam_ros.nodes.policy_node", args))
