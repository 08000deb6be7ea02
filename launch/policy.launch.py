# SPDX-License-Identifier: Apache-2.0
"""The processes of config/bringup/policy.yaml; `--show-args` describes the arguments."""

from launch import LaunchDescription

from qam_ros.nodes.launch_graph import launch_description


def generate_launch_description() -> LaunchDescription:
    """Return the launch description of the bringup `policy`."""
    return launch_description("policy")
