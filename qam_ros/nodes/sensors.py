# SPDX-License-Identifier: Apache-2.0
"""Messages of sensors and commands to and from raw fields, for any topic of a robot interface.

Raw fields are what the contract knows: field path -> components, joints in the interface's order
whatever order the message has them in.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from qam_ros.contract.blocks import Source
from qam_ros.contract.errors import InterfaceError
from qam_ros.contract.fields import BY_ELEMENT, BY_JOINT, UNSTAMPED, field_components
from qam_ros.contract.robot_interface import RobotInterface
from qam_ros.nodes.convert import from_time, to_time

FloatArray = npt.NDArray[np.float64]


class TopicCodec:
    """Reads and writes the messages of one topic.

    Args:
        sources: every source (or target) with this topic.
        frame: frame for the headers of messages written.

    Raises:
        InterfaceError: the sources disagree about the type or the joints.
    """

    def __init__(self, sources: Iterable[Source], frame: str) -> None:
        items = list(sources)
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
        self._frame = frame
        self._joints = joints.pop() if joints else ()
        self.fields = {
            item.field: field_components(item.type, item.field, f"topic '{self.topic}'")
            for item in items
        }
        self._names: list[str] = []
        self._order: npt.NDArray[np.intp] = np.zeros(0, dtype=np.intp)

    def decode(self, message: Any) -> tuple[int | None, dict[str, FloatArray]]:
        """Stamp [ns] (None for a type without header) and raw fields of a message.

        Raises:
            InterfaceError: a joint is missing, or an array has another length than the names.
        """
        stamp_ns = from_time(message.header.stamp) if self.stamped else None
        fields = {}
        for path, components in self.fields.items():
            value = attrgetter(path)(message)
            if components == BY_JOINT:
                fields[path] = self._by_joint(message, path, value)
            elif components == BY_ELEMENT:
                fields[path] = np.array(value, dtype=np.float64)
            else:
                fields[path] = np.array([getattr(value, name) for name in components])
        return stamp_ns, fields

    def encode(self, stamp_ns: int, fields: Mapping[str, npt.ArrayLike]) -> Any:
        """Message with a stamp [ns] (if the type has one) and raw fields."""
        message = self.message_type()
        if self.stamped:
            message.header.stamp = to_time(stamp_ns)
            message.header.frame_id = self._frame
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

    def _by_joint(self, message: Any, path: str, value: Any) -> FloatArray:
        names = message.name
        if names != self._names:
            missing = [joint for joint in self._joints if joint not in names]
            if missing:
                raise InterfaceError(
                    f"topic '{self.topic}': joints {missing} are not among {list(names)}; "
                    "check the joint names of the robot interface"
                )
            self._order = np.array(
                [names.index(joint) for joint in self._joints], dtype=np.intp
            )
            self._names = list(names)
        if len(value) != len(names):
            raise InterfaceError(
                f"topic '{self.topic}': field '{path}' has {len(value)} values for "
                f"{len(names)} joints"
            )
        return np.array(value, dtype=np.float64)[self._order]


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
    return {
        topic: TopicCodec([source for source, _ in items], items[0][1])
        for topic, items in topics.items()
    }
