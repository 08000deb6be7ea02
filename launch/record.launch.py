# SPDX-License-Identifier: Apache-2.0
"""The processes of config/bringup/record.yaml; `--show-args` describes the arguments."""

from launch import LaunchDescription

from qam_ros.nodes.launch_graph import launch_description


def generate_launch_description() -> LaunchDescription:
    """Return the launch description of the bringup `record`."""
    return launch_description("record")
