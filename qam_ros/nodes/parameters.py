# SPDX-License-Identifier: Apache-2.0
"""ROS parameters as one table: type, range, unit, read-only; read once into a frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from qam_ros.contract.errors import ConfigError
from qam_ros.runtime.realtime import RealTime, parse_cores

Settings = TypeVar("Settings")

MIN_KEY_BYTES: Final = 16


@dataclass(frozen=True)
class Parameter:
    """One row of a parameter table.

    Args:
        name: name of the parameter and of the field it is read into.
        default: its value unless set; also fixes its type (bool, int, float or str).
        description: what it does.
        unit: unit of a number, "" for none.
        low: least value of a number.
        high: greatest value of a number.
        required: an empty text is refused.
    """

    name: str
    default: bool | int | float | str
    description: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    required: bool = False


COMMON = (
    Parameter("robot", "", "Robot interface: a name in config/robot or a path."),
    Parameter(
        "overlay", "", "Tighter limits and topics of this robot; empty for none."
    ),
    Parameter("run_dir", "", "Folder for logs and timing; empty: write nothing."),
    Parameter(
        "autostart", default=True, description="Configure and activate at start."
    ),
)
"""Parameters that all nodes of a robot share."""

REALTIME = (
    Parameter(
        "priority",
        0,
        "SCHED_FIFO priority of the control thread, in real time; 0: ordinary.",
        low=0,
        high=99,
    ),
    Parameter("cores", "", "Cores of the control thread, such as 2,3; empty: any."),
    Parameter("lock_memory", default=False, description="Never page out this process."),
    Parameter(
        "collect_between_ticks",
        default=True,
        description="Collect garbage right after a tick only, in real time.",
    ),
)
"""Parameters of nodes with a control thread; see ``qam_ros.runtime.realtime``."""


def read_parameters(
    node: Node, table: tuple[Parameter, ...], kind: type[Settings]
) -> Settings:
    """Declare a table of read-only parameters and read it.

    Args:
        node: the node.
        table: its parameters.
        kind: dataclass with a field for each of them.

    Raises:
        ConfigError: a value of another type or out of range, or a required one that is empty.
    """
    values: dict[str, Any] = {}
    for row in table:
        try:
            declared: Any = node.declare_parameter(
                row.name, row.default, _descriptor(row)
            )
        except Exception as problem:
            raise ConfigError(
                f"node {node.get_name()}, parameter '{row.name}': {problem}; expected "
                f"{type(row.default).__name__}{_range_text(row)}"
            ) from problem
        value: Any = declared.value
        if row.required and value == "":
            raise ConfigError(
                f"node {node.get_name()}: parameter '{row.name}' is not set; {row.description}"
            )
        values[row.name] = value
    return kind(**values)


@dataclass(frozen=True)
class RealTimeSettings:
    """What ``REALTIME`` is read into; a part of the settings of a node."""

    priority: int
    cores: str
    lock_memory: bool
    collect_between_ticks: bool

    def realtime(self) -> RealTime:
        """What the node's control thread asks for.

        Raises:
            ConfigError: ``cores`` is no list of cores.
        """
        return RealTime(
            priority=self.priority,
            cores=parse_cores(self.cores),
            lock_memory=self.lock_memory,
            collect_between_ticks=self.collect_between_ticks,
        )


def _descriptor(row: Parameter) -> ParameterDescriptor:
    text = f"{row.description} [{row.unit}]" if row.unit else row.description
    descriptor = ParameterDescriptor(description=text, read_only=True)
    if row.low is None or row.high is None:
        return descriptor
    if isinstance(row.default, float):
        limits = FloatingPointRange(from_value=float(row.low), to_value=float(row.high))
        descriptor.floating_point_range = [limits]
    else:
        descriptor.integer_range = [
            IntegerRange(from_value=int(row.low), to_value=int(row.high))
        ]
    return descriptor


def _range_text(row: Parameter) -> str:
    if row.low is None or row.high is None:
        return ""
    return f" from {row.low} to {row.high}" + (f" [{row.unit}]" if row.unit else "")


def read_key(path: str) -> bytes | None:
    """Key that policy updates are signed with, shared by learner and policy; None without a file.

    Raises:
        ConfigError: the file cannot be read, or the key is too short.
    """
    if not path:
        return None
    try:
        key = Path(path).read_bytes().strip()
    except OSError as problem:
        raise ConfigError(f"hmac_key: cannot read '{path}': {problem}") from problem
    if len(key) < MIN_KEY_BYTES:
        raise ConfigError(
            f"hmac_key: '{path}' holds {len(key)} bytes; use at least {MIN_KEY_BYTES} random ones"
        )
    return key
