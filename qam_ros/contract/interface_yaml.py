# SPDX-License-Identifier: Apache-2.0
"""Reading and writing a robot interface as plain mappings (YAML).

Format: docs/formats/interface.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args

from qam_ros.contract.blocks_yaml import (
    read_action,
    read_observation,
    write_action,
    write_observation,
)
from qam_ros.contract.errors import InterfaceError, check_keys, nearest
from qam_ros.contract.fields import NEVER_EXPIRING
from qam_ros.contract.reading import (
    read_choice,
    read_integer,
    read_names,
    read_positive,
    read_text,
)
from qam_ros.contract.robot_interface import (
    INTERFACE_VERSION,
    RobotInterface,
    SafeAction,
)


def write_interface(interface: RobotInterface) -> dict[str, Any]:
    """Mapping of an interface with every value written out; ``read_interface`` reads it back."""
    return {
        "format_version": interface.format_version,
        "robot": interface.robot,
        "control_period_s": interface.control_period_s,
        "safe_action": interface.safe_action,
        "downstream_watchdog": interface.downstream_watchdog,
        "observation": [write_observation(block) for block in interface.observation],
        "action": [write_action(block) for block in interface.action],
    }


def read_interface(
    mapping: Mapping[str, Any], where: str = "robot interface"
) -> RobotInterface:
    """Interface from a mapping as in ``config/robot/*.yaml``.

    Args:
        mapping: what the YAML holds.
        where: file, for the messages.

    Raises:
        InterfaceError: unknown or missing key, wrong length, number that is not finite, duplicate
            name, low above high, unknown transform, mode, unit, message type or field, a version
            newer than this program, or a command that would never expire without a watchdog.
    """
    check_version(mapping, where)
    check_keys(
        mapping,
        (
            "format_version",
            "robot",
            "control_period_s",
            "safe_action",
            "observation",
            "action",
        ),
        ("downstream_watchdog",),
        where,
        InterfaceError,
    )
    watchdog = mapping.get("downstream_watchdog")
    interface = RobotInterface(
        format_version=INTERFACE_VERSION,
        robot=read_text(mapping["robot"], f"{where}, robot"),
        control_period_s=read_positive(
            mapping["control_period_s"], f"{where}, control_period_s"
        ),
        observation=tuple(
            read_observation(item, f"{where}, observation[{index}]")
            for index, item in enumerate(_blocks(mapping, "observation", where))
        ),
        action=tuple(
            read_action(item, f"{where}, action[{index}]")
            for index, item in enumerate(_blocks(mapping, "action", where))
        ),
        safe_action=cast(
            "SafeAction",
            read_choice(
                mapping["safe_action"], get_args(SafeAction), f"{where}, safe_action"
            ),
        ),
        downstream_watchdog=(
            None
            if watchdog is None
            else read_text(watchdog, f"{where}, downstream_watchdog")
        ),
    )
    check_interface(interface, where)
    return interface


def check_interface(interface: RobotInterface, where: str) -> None:
    """Refuse blocks that are sound one by one but not together.

    Raises:
        InterfaceError: duplicate block names, a delta whose measured topic is not observed (so that
            nobody would know its age), two blocks that write the same numbers, one topic with two
            types, or a command that never expires without a downstream watchdog.
    """
    for kind, blocks in (
        ("observation", interface.observation),
        ("action", interface.action),
    ):
        names = [block.name for block in blocks]
        read_names(names, f"{where}, {kind} blocks")
    observed = {block.source.topic for block in interface.observation}
    written: set[tuple[str, str, int]] = set()
    for block in interface.action:
        label = f"{where}, action block '{block.name}'"
        if block.measured is not None and block.measured.topic not in observed:
            raise InterfaceError(
                f"{label}: no observation block reads its measured topic "
                f"'{block.measured.topic}', so nobody would know its age; "
                f"{nearest(block.measured.topic, observed)}",
                topic=block.measured.topic,
            )
        for index in block.target_indices:
            place = (*block.target.key, index)
            if place in written:
                raise InterfaceError(
                    f"{label}: {block.target.topic}/{block.target.field}[{index}] is already "
                    "written by another block; give each block its own field",
                    place=place,
                )
            written.add(place)
        output = (block.target.type, block.target.field)
        if output in NEVER_EXPIRING and interface.downstream_watchdog is None:
            raise InterfaceError(
                f"{label}: {output[0]} {output[1]} commands never expire if the guard dies; name what "
                "stops the robot in 'downstream_watchdog', or use an output that expires",
                target=output,
            )
    _check_topics(interface, where)


def _check_topics(interface: RobotInterface, where: str) -> None:
    sources = [block.source for block in interface.observation]
    sources += [
        block.measured for block in interface.action if block.measured is not None
    ]
    for group in (sources, [block.target for block in interface.action]):
        types: dict[str, str] = {}
        for source in group:
            known = types.setdefault(source.topic, source.type)
            if known != source.type:
                raise InterfaceError(
                    f"{where}: topic '{source.topic}' has type {known} in one block and "
                    f"{source.type} in another; a topic has one type",
                    topic=source.topic,
                )


def check_version(mapping: Mapping[str, Any], where: str) -> None:
    """Refuse an interface or overlay written for a newer program.

    Raises:
        InterfaceError: with the version found and the newest that is read.
    """
    version = read_integer(mapping.get("format_version"), f"{where}, format_version", 1)
    if version > INTERFACE_VERSION:
        raise InterfaceError(
            f"{where}: interface format {version} is newer than this program, which reads up to "
            f"{INTERFACE_VERSION}; update qam_ros",
            found=version,
            expected=INTERFACE_VERSION,
        )


def _blocks(
    mapping: Mapping[str, Any], key: str, where: str
) -> list[Mapping[str, Any]]:
    blocks = mapping[key]
    if not isinstance(blocks, list) or not blocks:
        raise InterfaceError(
            f"{where}, {key}: expected a list of blocks, found {blocks!r}"
        )
    for index, block in enumerate(blocks):
        if not isinstance(block, Mapping):
            raise InterfaceError(
                f"{where}, {key}[{index}]: expected a mapping, found {block!r}"
            )
    return blocks
