# SPDX-License-Identifier: Apache-2.0
"""Robot interface: the one import for everything about it."""

from qam_ros.contract.assembly import (
    assemble,
    block_value,
    measured_value,
    physical_action,
    target_value,
)
from qam_ros.contract.blocks import ActionBlock, ActionMode, ObservationBlock, Source
from qam_ros.contract.interface_yaml import (
    check_interface,
    read_interface,
    write_interface,
)
from qam_ros.contract.overlay import apply_overlay
from qam_ros.contract.robot_interface import (
    INTERFACE_VERSION,
    RobotInterface,
    SafeAction,
    check_same_semantics,
    explain_mismatch,
    semantics,
)
from qam_ros.contract.robots import find_robot, load_interface, robot_names

__all__ = [
    "INTERFACE_VERSION",
    "ActionBlock",
    "ActionMode",
    "ObservationBlock",
    "RobotInterface",
    "SafeAction",
    "Source",
    "apply_overlay",
    "assemble",
    "block_value",
    "check_interface",
    "check_same_semantics",
    "explain_mismatch",
    "find_robot",
    "load_interface",
    "measured_value",
    "physical_action",
    "read_interface",
    "robot_names",
    "semantics",
    "target_value",
    "write_interface",
]
