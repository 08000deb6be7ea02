# SPDX-License-Identifier: Apache-2.0
"""Which fields of which ROS messages a block can be read from or written to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from qam_ros.contract.errors import InterfaceError, nearest

BY_JOINT: Final = ("<joint>",)
"""Marks a field with one value for each named joint."""
BY_ELEMENT: Final = ("<element>",)
"""Marks a bare array whose values are the block's elements, in order."""

JOINT_FRAME: Final = "joint"
"""Frame of numbers of the robot's own joints, which are in no frame of space."""

_XYZ: Final = ("x", "y", "z")
_XYZW: Final = ("x", "y", "z", "w")

MESSAGE_FIELDS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "sensor_msgs/msg/JointState": {
        "position": BY_JOINT,
        "velocity": BY_JOINT,
        "effort": BY_JOINT,
    },
    "geometry_msgs/msg/PoseStamped": {"pose.position": _XYZ, "pose.orientation": _XYZW},
    "geometry_msgs/msg/TwistStamped": {"twist.linear": _XYZ, "twist.angular": _XYZ},
    "geometry_msgs/msg/Twist": {"linear": _XYZ, "angular": _XYZ},
    "geometry_msgs/msg/WrenchStamped": {"wrench.force": _XYZ, "wrench.torque": _XYZ},
    "nav_msgs/msg/Odometry": {
        "pose.pose.position": _XYZ,
        "pose.pose.orientation": _XYZW,
        "twist.twist.linear": _XYZ,
        "twist.twist.angular": _XYZ,
    },
    "std_msgs/msg/Float64MultiArray": {"data": BY_ELEMENT},
}

UNSTAMPED: Final = frozenset(
    {"geometry_msgs/msg/Twist", "std_msgs/msg/Float64MultiArray"}
)
"""Types without a header: good as commands, useless as observations (no age can be told)."""

NEVER_EXPIRING: Final = frozenset(
    {
        ("std_msgs/msg/Float64MultiArray", "data"),
        ("sensor_msgs/msg/JointState", "velocity"),
        ("sensor_msgs/msg/JointState", "effort"),
    }
)
"""Commands that a controller goes on applying for ever when the guard dies."""


def field_components(message_type: str, field: str, where: str) -> tuple[str, ...]:
    """Component names of a message field, or one of the marks BY_JOINT and BY_ELEMENT.

    Args:
        message_type: e.g. ``sensor_msgs/msg/JointState``.
        field: e.g. ``pose.position``.
        where: file and block, for the message.

    Raises:
        InterfaceError: type or field is not supported; names the nearest.
    """
    if message_type not in MESSAGE_FIELDS:
        raise InterfaceError(
            f"{where}: unsupported message type '{message_type}'; "
            f"{nearest(message_type, MESSAGE_FIELDS)}",
            type=message_type,
        )
    fields = MESSAGE_FIELDS[message_type]
    if field not in fields:
        raise InterfaceError(
            f"{where}: '{message_type}' has no usable field '{field}'; {nearest(field, fields)}",
            field=field,
        )
    return fields[field]


def quantity(field: str) -> str:
    """What a field measures, whatever message carries it: the last part of its path."""
    return field.rsplit(".", maxsplit=1)[-1]


def selected_components(
    components: Sequence[str], elements: Sequence[str], *, whole: bool
) -> tuple[int, ...]:
    """Indices of the components of a field that a block's elements stand for.

    Args:
        components: component names of the field, e.g. ("x", "y", "z").
        elements: element names of the block.
        whole: the block's transform consumes or produces the whole field.

    Returns:
        One index per element when every element is the name of a component; else all components.
    """
    if not whole and all(element in components for element in elements):
        return tuple(components.index(element) for element in elements)
    return tuple(range(len(components)))
