# SPDX-License-Identifier: Apache-2.0
"""Entry point of the episode node; imports nothing heavy, so that signals are handled at once."""

from __future__ import annotations

from qam_ros.nodes.process import run_process


def main(args: list[str] | None = None) -> int:
    """Run the episode node; returns its exit code."""
    return run_process("qam_ros.nodes.episode_node", args)
