# SPDX-License-Identifier: Apache-2.0
"""Guard process: signal handlers first, then everything else (see ``guard_node``)."""

from __future__ import annotations

from qam_ros.nodes.process import run_process


def main(args: list[str] | None = None) -> int:
    """Run the guard node; returns the exit code."""
    return run_process("qam_ros.nodes.guard_node", args)
