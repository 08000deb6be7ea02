# SPDX-License-Identifier: Apache-2.0
"""Transitions as qam_msgs/msg/Transition in CDR, the form they have in bags, without ROS.

``write`` and ``read`` are inverse bit for bit. The definition repeats qam_msgs/msg/Transition.msg,
because a machine that reads bags need not have the message package; a test compares the two.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from qam_ros.contract.errors import DatasetError
from qam_ros.contract.interface import RobotInterface
from qam_ros.contract.transition import Rows, transition_dtype

TRANSITION_TYPE: Final = "qam_msgs/msg/Transition"
TRANSITION_DEFINITION: Final = """
std_msgs/Header header
string robot
uint8[16] session
uint64 seq
builtin_interfaces/Time action_stamp
uint64 episode
uint32 step
float32[] observation
float32[] proposed
float32[] executed
uint8 source
uint64 policy_version
uint64 chunk_id
uint16 chunk_index
uint8 guard_mode
uint32 limit_bits
float32 reward
bool terminated
bool truncated
bool masked
float32[] ages_s
bool has_next
float32[] next_observation
"""
_NUMBERS: Final = (
    "seq",
    "episode",
    "step",
    "source",
    "policy_version",
    "chunk_id",
    "chunk_index",
    "guard_mode",
    "limit_bits",
    "reward",
)
_FLAGS: Final = ("terminated", "truncated", "masked", "has_next")
_VECTORS: Final = ("observation", "proposed", "executed", "ages_s")


class TransitionCodec:
    """Writes and reads the transitions of one robot interface as messages.

    Args:
        interface: sizes of the rows.
        robot: name in the messages; on reading, empty accepts any.
    """

    def __init__(self, interface: RobotInterface, robot: str) -> None:
        self.interface = interface
        self.robot = robot
        self.dtype = transition_dtype(interface)
        self._types = get_typestore(Stores.ROS2_JAZZY)
        self._types.register(get_types_from_msg(TRANSITION_DEFINITION, TRANSITION_TYPE))
        classes: Any = self._types.types
        self._transition = classes[TRANSITION_TYPE]
        self._header = classes["std_msgs/msg/Header"]
        self._time = classes["builtin_interfaces/msg/Time"]

    @property
    def definition(self) -> str:
        """The message definition with everything it refers to, as bags carry it."""
        return str(self._types.generate_msgdef(TRANSITION_TYPE, ros_version=2)[0])

    @property
    def type_hash(self) -> str:
        """Hash of the message type (REP-2016)."""
        return str(self._types.hash_rihs01(TRANSITION_TYPE))

    def write(self, row: np.void) -> bytes:
        """One row as a message."""
        values: dict[str, Any] = {name: row[name].item() for name in _NUMBERS}
        values |= {name: bool(row[name]) for name in _FLAGS}
        values |= {name: row[name] for name in _VECTORS}
        following = row["next_observation"]
        message = self._transition(
            header=self._header(
                stamp=self._stamp(row["observation_stamp_ns"]), frame_id=""
            ),
            robot=self.robot,
            session=row["session"],
            action_stamp=self._stamp(row["action_stamp_ns"]),
            next_observation=following if row["has_next"] else following[:0],
            **values,
        )
        return bytes(self._types.serialize_cdr(message, TRANSITION_TYPE))

    def read(self, data: bytes, rows: Rows, index: int) -> None:
        """Fill a row of ``rows`` (N,) from a message.

        Raises:
            DatasetError: the message is of another robot or has vectors of other sizes.
        """
        message: Any = self._types.deserialize_cdr(data, TRANSITION_TYPE)
        if self.robot and message.robot != self.robot:
            raise DatasetError(
                f"transition {index} is of robot '{message.robot}', expected '{self.robot}'",
                found=message.robot,
                expected=self.robot,
            )
        row = rows[index]
        for name in _VECTORS:
            row[name] = self._sized(name, getattr(message, name), row[name].size, index)
        for name in (*_NUMBERS, *_FLAGS):
            row[name] = getattr(message, name)
        row["session"] = message.session
        row["observation_stamp_ns"] = _nanoseconds(message.header.stamp)
        row["action_stamp_ns"] = _nanoseconds(message.action_stamp)
        if message.has_next:
            size = row["next_observation"].size
            following = message.next_observation
            row["next_observation"] = self._sized(
                "next_observation", following, size, index
            )

    def _sized(self, name: str, values: Any, size: int, index: int) -> Any:
        if len(values) != size:
            raise DatasetError(
                f"transition {index}: {name} has {len(values)} values, robot "
                f"'{self.interface.robot}' has {size}; name the interface it was recorded with",
                field=name,
                found=len(values),
                expected=size,
            )
        return values

    def _stamp(self, stamp_ns: np.int64) -> Any:
        seconds, rest = divmod(int(stamp_ns), 1_000_000_000)
        return self._time(sec=seconds, nanosec=rest)


def _nanoseconds(stamp: Any) -> int:
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
