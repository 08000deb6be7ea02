# SPDX-License-Identifier: Apache-2.0
"""Policy process: signal handlers first, then everything else (see ``policy_node``)."""

from __future__ import annotations

from qam_ros.nodes.process import run_process


def main(args: list[str] | None = None) -> int:
    """Run the policy node; returns the exit code."""
    return run_process("qam_ros.nodes.policy_node", args)
