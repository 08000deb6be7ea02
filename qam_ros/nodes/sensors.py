# SPDX-License-Identifier: Apache-2.0
"""Messages of sensors and commands to and from raw fields, for any topic of a robot interface.

Raw fields are what the contract knows: field path -> components, joints in the interface's order
whatever order the message has them in.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rclpy.serialization import deserialize_message

from qam_ros.contract.blocks import Source
from qam_ros.contract.errors import InterfaceError
from qam_ros.contract.fields import (
    BY_ELEMENT,
    BY_JOINT,
    JOINT_FRAME,
    UNSTAMPED,
    field_components,
)
from qam_ros.contract.robot_interface import RobotInterface
from qam_ros.nodes.convert import from_time, to_time
from qam_ros.nodes.raw import LITTLE_ENDIAN, READERS, joint_names

FloatArray = npt.NDArray[np.float64]
ODOMETRY: Final = "nav_msgs/msg/Odometry"
"""Its pose is in the frame of its header, its velocity in ``child_frame_id``."""


class TopicCodec:
    """Reads and writes the messages of one topic.

    Args:
        sources: every source (or target) with this topic, and the frame of its block.

    Raises:
        InterfaceError: the sources disagree about the type, the joints or the frame.
    """

    def __init__(self, sources: Iterable[tuple[Source, str]]) -> None:
        pairs = list(sources)
        items = [source for source, _ in pairs]
        self.topic = items[0].topic
        if len({item.type for item in items}) > 1:
            raise InterfaceError(
                f"topic '{self.topic}': two message types {sorted({i.type for i in items})}; "
                "a topic has one"
            )
        joints = {item.joints for item in items if item.joints}
        if len(joints) > 1:
            raise InterfaceError(
                f"topic '{self.topic}': blocks name different joints {sorted(joints)}; "
                "give all of them the same list"
            )
        package, _, name = items[0].type.split("/")
        self.message_type: type = getattr(
            importlib.import_module(f"{package}.msg"), name
        )
        self.stamped = items[0].type not in UNSTAMPED
        self._read_raw = READERS.get(items[0].type)
        self._frames = _frames(pairs) if self.stamped else {}
        self._joints = joints.pop() if joints else ()
        self.fields = {
            item.field: field_components(item.type, item.field, f"topic '{self.topic}'")
            for item in items
        }
        self._raw_names = b""
        self._names: list[str] = []
        self._order: npt.NDArray[np.intp] = np.zeros(0, dtype=np.intp)

    def decode(self, message: Any) -> tuple[int | None, dict[str, FloatArray]]:
        """Stamp [ns] (None for a type without header) and raw fields of a message.

        Raises:
            InterfaceError: a joint is missing, an array has another length than the names, or the
                message says that it is in another frame than the interface.
        """
        for path in self._frames:
            self._check_frame(path, attrgetter(path)(message))
        stamp_ns = from_time(message.header.stamp) if self.stamped else None
        fields = {}
        for path, components in self.fields.items():
            value = attrgetter(path)(message)
            if components == BY_JOINT:
                self._find_joints(message.name)
                fields[path] = self._by_joint(path, value)
            elif components == BY_ELEMENT:
                fields[path] = np.array(value, dtype=np.float64)
            else:
                fields[path] = np.array([getattr(value, name) for name in components])
        return stamp_ns, fields

    def decode_raw(self, data: bytes) -> tuple[int | None, dict[str, FloatArray]]:
        """As ``decode``, of a message as it came over the wire; the arrays are not to be written to.

        Raises:
            InterfaceError: as ``decode``, or the message is cut short.
        """
        if self._read_raw is None or data[:2] != LITTLE_ENDIAN:
            return self.decode(self._deserialise(data))
        try:
            message = self._read_raw(data)
            if self._joints and message.names != self._raw_names:
                self._find_joints(joint_names(message.names))
                self._raw_names = message.names
        except (struct.error, ValueError) as problem:
            raise InterfaceError(
                f"topic '{self.topic}': a message of {len(data)} bytes is cut short: {problem}"
            ) from problem
        for path in self._frames:
            self._check_frame(path, message.frames[path])
        fields = message.fields
        if self._joints:
            return message.stamp_ns, {
                p: self._by_joint(p, fields[p]) for p in self.fields
            }
        return message.stamp_ns, {path: fields[path] for path in self.fields}

    def _deserialise(self, data: bytes) -> Any:
        try:
            return deserialize_message(data, self.message_type)
        except Exception as problem:
            # Raw messages come unseen by the middleware, and it has errors of its own.
            raise InterfaceError(
                f"topic '{self.topic}': a message of {len(data)} bytes cannot be read: {problem}"
            ) from problem

    def encode(self, stamp_ns: int, fields: Mapping[str, npt.ArrayLike]) -> Any:
        """Message with a stamp [ns] (if the type has one) and raw fields."""
        message = self.message_type()
        if self.stamped:
            message.header.stamp = to_time(stamp_ns)
        for path, frame in self._frames.items():
            owner, _, name = path.rpartition(".")
            setattr(attrgetter(owner)(message) if owner else message, name, frame)
        if self._joints:
            message.name = list(self._joints)
        for path, values in fields.items():
            numbers = np.asarray(values, dtype=np.float64).tolist()
            if self.fields[path] in (BY_JOINT, BY_ELEMENT):
                setattr(message, path, numbers)
            else:
                target = attrgetter(path)(message)
                for name, number in zip(self.fields[path], numbers, strict=True):
                    setattr(target, name, number)
        return message

    def _check_frame(self, path: str, found: str) -> None:
        frame = self._frames[path]
        if found not in ("", frame):
            raise InterfaceError(
                f"topic '{self.topic}': {path} '{found}', the robot interface expects '{frame}'; "
                "have the driver publish in that frame, or transform its messages"
            )

    def _find_joints(self, names: Sequence[str]) -> None:
        """Look up where the joints are; drivers seldom change their order."""
        if names == self._names:
            return
        missing = [joint for joint in self._joints if joint not in names]
        if missing:
            raise InterfaceError(
                f"topic '{self.topic}': joints {missing} are not among {list(names)}; "
                "check the joint names of the robot interface"
            )
        self._order = np.array(
            [names.index(joint) for joint in self._joints], dtype=np.intp
        )
        self._names, self._raw_names = list(names), b""

    def _by_joint(self, path: str, value: Sequence[float] | FloatArray) -> FloatArray:
        if len(value) != len(self._names):
            raise InterfaceError(
                f"topic '{self.topic}': field '{path}' has {len(value)} values for "
                f"{len(self._names)} joints"
            )
        return np.asarray(value, dtype=np.float64)[self._order]


def _frames(sources: Iterable[tuple[Source, str]]) -> dict[str, str]:
    """Frame in each field of a message that names one; joint values are in none.

    Raises:
        InterfaceError: two frames for one field.
    """
    frames: dict[str, str] = {}
    for source, frame in sources:
        if frame == JOINT_FRAME:
            continue
        child = source.type == ODOMETRY and source.field.startswith("twist.")
        path = "child_frame_id" if child else "header.frame_id"
        if frames.setdefault(path, frame) != frame:
            both = sorted({frame, frames[path]})
            raise InterfaceError(
                f"topic '{source.topic}': blocks in two frames {both}, but {path} names one; "
                "give these blocks the same frame"
            )
    return frames


def observed_codecs(interface: RobotInterface) -> dict[str, TopicCodec]:
    """Codec of every topic that an observation is read from."""
    return _codecs(_observed(interface))


def measured_codecs(interface: RobotInterface) -> dict[str, TopicCodec]:
    """Codec of every topic that a measured value is read from."""
    return _codecs(_measured(interface))


def sensor_codecs(interface: RobotInterface) -> dict[str, TopicCodec]:
    """Codec of every topic that an observation or a measured value is read from."""
    return _codecs(_observed(interface) + _measured(interface))


def command_codecs(interface: RobotInterface) -> dict[str, TopicCodec]:
    """Codec of every topic that a command is written to."""
    return _codecs([(block.target, block.frame) for block in interface.action])


def _observed(interface: RobotInterface) -> list[tuple[Source, str]]:
    return [(block.source, block.frame) for block in interface.observation]


def _measured(interface: RobotInterface) -> list[tuple[Source, str]]:
    blocks = interface.action
    return [(b.measured, b.frame) for b in blocks if b.measured is not None]


def _codecs(sources: list[tuple[Source, str]]) -> dict[str, TopicCodec]:
    topics: dict[str, list[tuple[Source, str]]] = {}
    for source, frame in sources:
        topics.setdefault(source.topic, []).append((source, frame))
    return {topic: TopicCodec(items) for topic, items in topics.items()}
