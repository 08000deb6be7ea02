# SPDX-License-Identifier: Apache-2.0
"""Launch description of a bringup: the graph of `qam up`, run by `ros2 launch`."""

from __future__ import annotations

import os
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from qam_ros.runtime.bringup import (
    ProcessSpec,
    load_bringup,
    read_bringup,
    write_parameters,
)
from qam_ros.runtime.bringup_file import Argument


def launch_description(name: str) -> LaunchDescription:
    """Declare the arguments of a bringup and start its processes with those chosen.

    Args:
        name: file of config/bringup without its ending.
    """
    arguments = read_bringup(name).arguments

    def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
        chosen = {key: LaunchConfiguration(key).perform(context) for key in arguments}
        bringup = load_bringup(name, chosen)
        logs = bringup.run_dir.resolve() / "logs"
        return [_node(spec, logs / "parameters") for spec in bringup.processes]

    return LaunchDescription(
        [*map(_declare, arguments.values()), OpaqueFunction(function=start)]
    )


def _declare(argument: Argument) -> DeclareLaunchArgument:
    """Launch argument; one without a default is required, an empty text stands for None."""
    value = argument.default
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return DeclareLaunchArgument(
        argument.name,
        default_value=None if argument.required else "" if value is None else text,
        description=argument.description,
        choices=list(argument.choices) or None,
    )


def _node(spec: ProcessSpec, folder: Path) -> Node:
    """Node of a process; the end of one that may not restart ends the launch."""
    environment = spec.environment or {}
    return Node(
        executable=spec.command[0],
        name=spec.name,
        exec_name=spec.name,
        arguments=list(spec.command[1:]),
        namespace=spec.namespace,
        parameters=[str(write_parameters(spec, folder))],
        additional_env={k: v for k, v in environment.items() if k not in os.environ},
        respawn=spec.respawn,
        respawn_delay=1.0,
        respawn_max_retries=spec.max_restarts if spec.respawn else -1,
        sigterm_timeout=str(spec.stop_timeout_s),
        on_exit=None if spec.respawn else Shutdown(reason=f"{spec.name} ended"),
        output="both",
    )
