# SPDX-License-Identifier: Apache-2.0
"""Sensor messages as they come over the wire (XCDR1, little endian), without a message object.

rclpy spends some tens of microseconds on the object of a message that a control thread reads four
numbers from. Layouts repeat the definitions of common_interfaces; a test compares them with rclpy.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

LITTLE_ENDIAN: Final = b"\x00\x01"
"""First two bytes of what this module reads; four in all come before the message."""
_START: Final = 4
_HEADER: Final = struct.Struct("<iII")
_COUNT: Final = struct.Struct("<I")
NS: Final = 1_000_000_000


@dataclass(slots=True)
class RawMessage:
    """What the robot interface may ask a message for.

    Args:
        stamp_ns: stamp of its header [ns].
        frames: path of each field that names a frame -> the name.
        fields: field path -> numbers.
        names: bytes of the joint names, for ``joint_names``.
    """

    stamp_ns: int
    frames: dict[str, str]
    fields: dict[str, FloatArray] = field(default_factory=dict)
    names: bytes = b""


Reader = Callable[[bytes], RawMessage]
"""Raises struct.error, ValueError or UnicodeDecodeError when the message is cut short."""


def _header(data: bytes) -> tuple[RawMessage, int]:
    sec, nanosec, size = _HEADER.unpack_from(data, _START)
    end = _START + _HEADER.size + size
    frame = _text(data, _START + _HEADER.size, end)
    return RawMessage(sec * NS + nanosec, {"header.frame_id": frame}), end


def _text(data: bytes, start: int, end: int) -> str:
    """A string with its terminating zero."""
    if end > len(data):
        raise ValueError("a string goes beyond the end")
    return data[start : max(start, end - 1)].decode()


def _doubles(data: bytes, at: int, count: int) -> FloatArray:
    """Numbers at the next multiple of eight, which is counted from the message's start."""
    return np.frombuffer(data, "<f8", count, at + (_START - at) % 8)


def _vectors(*parts: tuple[str, int]) -> Reader:
    """Reader of a header and vectors of doubles: name (empty: left out) and size of each."""

    def read(data: bytes) -> RawMessage:
        message, at = _header(data)
        numbers = _doubles(data, at, sum(size for _, size in parts))
        start = 0
        for name, size in parts:
            if name:
                message.fields[name] = numbers[start : start + size]
            start += size
        return message

    return read


def _odometry(data: bytes) -> RawMessage:
    message, at = _header(data)
    at += -at % 4
    (size,) = _COUNT.unpack_from(data, at)
    end = at + 4 + size
    message.frames["child_frame_id"] = _text(data, at + 4, end)
    numbers = _doubles(data, end, 7 + 36 + 6 + 36)  # two covariances
    for name, start, stop in (
        ("pose.pose.position", 0, 3),
        ("pose.pose.orientation", 3, 7),
        ("twist.twist.linear", 43, 46),
        ("twist.twist.angular", 46, 49),
    ):
        message.fields[name] = numbers[start:stop]
    return message


def _joint_state(data: bytes) -> RawMessage:
    message, at = _header(data)
    start = at = at + -at % 4
    (count,) = _COUNT.unpack_from(data, at)
    at += 4
    for _ in range(count):
        at += -at % 4
        (size,) = _COUNT.unpack_from(data, at)
        at += 4 + size
    message.names = data[start:at]
    for name in ("position", "velocity", "effort"):
        at += -at % 4
        (count,) = _COUNT.unpack_from(data, at)
        at += 4
        if count:
            numbers = _doubles(data, at, count)
            at += (_START - at) % 8 + 8 * count
        else:
            numbers = np.zeros(0)
        message.fields[name] = numbers
    return message


def joint_names(names: bytes) -> list[str]:
    """Joint names of ``RawMessage.names``."""
    (count,) = _COUNT.unpack_from(names)
    found, at = [], 4
    for _ in range(count):
        at += -at % 4
        (size,) = _COUNT.unpack_from(names, at)
        found.append(_text(names, at + 4, at + 4 + size))
        at += 4 + size
    return found


READERS: Final[dict[str, Reader]] = {
    "sensor_msgs/msg/JointState": _joint_state,
    "geometry_msgs/msg/PoseStamped": _vectors(
        ("pose.position", 3), ("pose.orientation", 4)
    ),
    "geometry_msgs/msg/TwistStamped": _vectors(
        ("twist.linear", 3), ("twist.angular", 3)
    ),
    "geometry_msgs/msg/WrenchStamped": _vectors(
        ("wrench.force", 3), ("wrench.torque", 3)
    ),
    "nav_msgs/msg/Odometry": _odometry,
}
"""Readers of all types with a stamp that a robot interface may observe."""
