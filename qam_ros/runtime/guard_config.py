# SPDX-License-Identifier: Apache-2.0
"""From a robot interface to the guard's configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from qam_ros.contract.blocks import ActionBlock
from qam_ros.contract.errors import ConfigError
from qam_ros.contract.fields import JOINT_FRAME
from qam_ros.contract.robot_interface import RobotInterface
from qam_ros.contract.transforms import find_transform
from qam_ros.runtime.guard_limits import command_limits
from qam_ros.runtime.guard_types import (
    CommandOutput,
    FloatArray,
    GuardConfig,
    GuardState,
    MeasuredInput,
    Watch,
)

JOINT_STATE: Final = "sensor_msgs/msg/JointState"
ODOMETRY: Final = "nav_msgs/msg/Odometry"


def guard_config(
    interface: RobotInterface,
    *,
    hold_ticks: int = 2,
    ramp_s: float = 0.0,
    human_timeout_s: float = 0.5,
    dry_run: bool = False,
    watch_odometry: bool = False,
) -> GuardConfig:
    """Prepare the guard for a robot.

    Args:
        interface: the robot with the limits of this deployment.
        hold_ticks: bad ticks in a row that are bridged by holding.
        ramp_s: time in which the limits open after a start [s].
        human_timeout_s: oldest human action that is executed [s].
        dry_run: compute and report, command nothing.
        watch_odometry: a base that is told to move but whose odometry repeats one position has a
            frozen sensor or stands against something; stop it. Not in a simulation: its point
            pushed against a wall comes to rest to the last bit, and goes on when told elsewhere.

    Raises:
        ConfigError: an absolute block lacks a measured value to start from.
    """
    for block in interface.action:
        if block.mode == "absolute" and block.measured is None:
            raise ConfigError(
                f"guard: absolute action block '{block.name}' has no measured source, so motion "
                "cannot start at the measured pose; add 'measured' to the robot interface"
            )
    sizes = [block.size for block in interface.action]
    modes = np.repeat([block.mode for block in interface.action], sizes)
    return GuardConfig(
        interface=interface,
        limits=command_limits(interface),
        scale=np.concatenate([block.scale_array for block in interface.action]),
        offset=np.concatenate([block.offset_array for block in interface.action]),
        delta=modes == "delta",
        velocity=modes == "velocity",
        inputs=tuple(_inputs(interface)),
        outputs=tuple(_output(interface, block) for block in interface.action),
        watches=tuple(_watches(interface, odometry=watch_odometry)),
        max_ages_s=np.asarray([block.max_age_s for block in interface.observation]),
        period_ns=round(interface.control_period_s * 1e9),
        hold_ticks=hold_ticks,
        ramp_ns=round(ramp_s * 1e9),
        human_timeout_ns=round(human_timeout_s * 1e9),
        dry_run=dry_run,
    )


def initial_state(config: GuardConfig) -> GuardState:
    """State of a guard that has not ticked yet."""
    zeros = np.zeros(len(config.scale))
    return GuardState(command=zeros, rate=zeros)


def _function(name: str | None) -> Callable[[FloatArray], FloatArray] | None:
    return None if name is None else find_transform(name, "guard").apply


def _inputs(interface: RobotInterface) -> list[MeasuredInput]:
    observed = {block.source.topic for block in interface.observation}
    inputs = []
    for block in interface.action:
        if block.measured is None or block.mode == "velocity":
            continue
        topic = block.measured.topic
        known = topic in observed
        age_s = interface.max_age_s(topic) if known else 3 * interface.control_period_s
        inputs.append(
            MeasuredInput(
                topic=topic,
                field=block.measured.field,
                raw_size=len(block.measured.components(block.elements)),
                indices=np.asarray(block.measured_indices, dtype=np.intp),
                transform=_function(block.measured_transform),
                where=interface.action_slices[block.name],
                max_age_ns=round(age_s * 1e9),
            )
        )
    return inputs


def _output(interface: RobotInterface, block: ActionBlock) -> CommandOutput:
    return CommandOutput(
        topic=block.target.topic,
        field=block.target.field,
        size=block.target_size,
        indices=np.asarray(block.target_indices, dtype=np.intp),
        transform=_function(block.transform),
        where=interface.action_slices[block.name],
        velocity=block.mode == "velocity",
    )


def _watches(interface: RobotInterface, *, odometry: bool) -> list[Watch]:
    """The robot's joint positions [rad, m] and measured poses: their last bits move when it does.

    Joints of things that the robot handles (a drawer, a button) are in a frame of space: they rest.
    """
    measured = {
        block.measured.topic for block in interface.action if block.measured is not None
    }
    base = odometry and any(block.mode == "velocity" for block in interface.action)
    indices: dict[str, list[int]] = {}
    for block in interface.observation:
        watched = (
            block.source.topic in measured
            or (block.frame == JOINT_FRAME and block.source.type == JOINT_STATE)
            or (base and block.source.type == ODOMETRY)
        )
        if block.unit in ("m", "rad") and watched:
            where = interface.observation_slices[block.name]
            indices.setdefault(block.source.topic, []).extend(
                range(where.start, where.stop)
            )
    return [
        Watch(topic, np.asarray(items), round(interface.max_age_s(topic) * 1e9))
        for topic, items in indices.items()
    ]
