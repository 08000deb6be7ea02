# SPDX-License-Identifier: Apache-2.0
"""ROS messages of qam_msgs to and from the dataclasses of ``contract.messages``, field by field.

The dataclasses have the messages' names and fields; only stamps differ: ``stamp_ns`` is the header's,
``x_stamp_ns`` the field ``x_stamp``, both in nanoseconds.
"""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from typing import Any, Final, TypeVar, cast

import numpy as np
import qam_msgs.msg
from builtin_interfaces.msg import Time

from qam_ros.contract import messages
from qam_ros.contract.errors import StreamError
from qam_ros.contract.transition import ActionSource, EpisodeKind, GuardMode

Message = TypeVar("Message")
Reader = Callable[[Any], Any]
Writer = Callable[[Any, Any], None]

NS: Final = 1_000_000_000
ENUMS: Final[dict[str, dict[str, type[IntEnum]]]] = {
    "EpisodeEvent": {"kind": EpisodeKind},
    "GuardReport": {"mode": GuardMode, "source": ActionSource},
}
"""Fields that are numbers on the wire and mean one of a few things: message, field, meanings."""


def to_time(stamp_ns: int) -> Time:
    """Time message of a stamp [ns]."""
    return Time(sec=stamp_ns // NS, nanosec=stamp_ns % NS)


def from_time(stamp: Time) -> int:
    """Stamp [ns] of a time message."""
    return int(stamp.sec) * NS + int(stamp.nanosec)


def ros_type(kind: type) -> Any:
    """Message class of a dataclass of ``contract.messages``."""
    return getattr(qam_msgs.msg, kind.__name__)


def to_ros(message: object) -> Any:
    """ROS message of a dataclass of ``contract.messages``."""
    kind: Any = type(message)
    result = ros_type(kind)()
    for name, write, _ in _fields(kind):
        write(result, getattr(message, name))
    return result


def from_ros(message: object, kind: type[Message]) -> Message:
    """Dataclass of a ROS message.

    Args:
        message: a message of qam_msgs.
        kind: the dataclass of the same name.

    Raises:
        StreamError: the message is of another type, or a field has a value that means nothing.
    """
    if type(message).__name__ != kind.__name__:
        raise StreamError(
            f"expected a {kind.__name__} message, got a {type(message).__name__}"
        )
    fields: Any = _fields(cast("Any", kind))
    values = {name: read(message) for name, _, read in fields}
    for name, meaning in ENUMS.get(kind.__name__, {}).items():
        if values[name] not in tuple(meaning):  # Python 3.11 has no "int in Enum"
            names = ", ".join(f"{item.name} {item.value}" for item in meaning)
            raise StreamError(
                f"{kind.__name__}: {name} {values[name]} means nothing; valid: {names}"
            )
    return kind(**values)


@cache
def _fields(kind: Any) -> tuple[tuple[str, Writer, Reader], ...]:
    """Name, writer and reader of every field of a dataclass."""
    types = ros_type(kind).get_fields_and_field_types()
    result: list[tuple[str, Writer, Reader]] = []
    for field in dataclasses.fields(kind):
        if field.name == "stamp_ns":
            result.append((field.name, _write_header, _read_header))
        elif field.name.endswith("_ns") and field.name.removesuffix("_ns") in types:
            result.append((field.name, *_stamp(field.name.removesuffix("_ns"))))
        else:
            result.append((field.name, *_plain(field.name, types[field.name])))
    return tuple(result)


def _write_header(message: Any, stamp_ns: int) -> None:
    message.header.stamp = to_time(stamp_ns)


def _read_header(message: Any) -> int:
    return from_time(message.header.stamp)


def _stamp(name: str) -> tuple[Writer, Reader]:
    return (
        lambda message, value: setattr(message, name, to_time(value)),
        lambda message: from_time(getattr(message, name)),
    )


def _plain(name: str, ros_name: str) -> tuple[Writer, Reader]:
    """Writer and reader of a field by the type that ROS gives it."""
    if ros_name == "sequence<float>":
        return (
            lambda message, value: setattr(message, name, _floats(value)),
            lambda message: np.array(getattr(message, name), dtype=np.float32),
        )
    if ros_name == "sequence<uint8>":
        return (
            lambda message, value: setattr(message, name, array.array("B", value)),
            lambda message: bytes(getattr(message, name)),
        )
    if ros_name.startswith("uint8["):
        return (
            lambda message, value: setattr(
                message, name, np.frombuffer(value, np.uint8)
            ),
            lambda message: bytes(getattr(message, name)),
        )
    kind = {"boolean": bool, "string": str, "float": float, "double": float}.get(
        ros_name, int
    )
    return (
        lambda message, value: setattr(message, name, kind(value)),
        lambda message: getattr(message, name),
    )


def _floats(values: messages.Floats) -> array.array[float]:
    return array.array("f", np.asarray(values, dtype=np.float32).tobytes())
