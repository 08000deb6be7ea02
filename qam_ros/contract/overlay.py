# SPDX-License-Identifier: Apache-2.0
"""Overlays: a second YAML that moves a robot's topics or tightens its limits, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from qam_ros.contract.blocks import ActionBlock, ObservationBlock, Source
from qam_ros.contract.blocks_yaml import check_action, read_bounds
from qam_ros.contract.errors import InterfaceError, check_keys, nearest
from qam_ros.contract.fields import quantity
from qam_ros.contract.interface_yaml import check_interface, check_version
from qam_ros.contract.reading import read_numbers, read_positive, read_text
from qam_ros.contract.robot_interface import RobotInterface
from qam_ros.contract.source_yaml import read_source

_SOURCE_KEYS: Final = ("topic", "type", "field")

Block = TypeVar("Block", ObservationBlock, ActionBlock)


def apply_overlay(
    interface: RobotInterface, mapping: Mapping[str, Any], where: str
) -> RobotInterface:
    """Interface with an overlay's topics and tighter limits.

    Args:
        interface: the robot.
        mapping: {format_version, overlay_of, downstream_watchdog, observation: {block: {...}},
            action: {block: {...}}}.
        where: file, for the messages.

    Returns:
        An interface with the same semantic hash.

    Raises:
        InterfaceError: unknown key or block, another robot, or anything that loosens a limit.
    """
    check_version(mapping, where)
    check_keys(
        mapping,
        ("format_version", "overlay_of"),
        ("downstream_watchdog", "observation", "action"),
        where,
        InterfaceError,
    )
    robot = read_text(mapping["overlay_of"], f"{where}, overlay_of")
    if robot != interface.robot:
        raise InterfaceError(
            f"{where}: is an overlay of robot '{robot}', it was given for '{interface.robot}'; "
            "take that robot's own overlay"
        )
    watchdog = mapping.get("downstream_watchdog", interface.downstream_watchdog)
    result = replace(
        interface,
        observation=_overlay_blocks(
            interface.observation,
            mapping.get("observation", {}),
            _overlay_observation,
            where,
        ),
        action=_overlay_blocks(
            interface.action, mapping.get("action", {}), _overlay_action, where
        ),
        downstream_watchdog=(
            None
            if watchdog is None
            else read_text(watchdog, f"{where}, downstream_watchdog")
        ),
    )
    check_interface(result, where)
    return result


def _overlay_blocks(
    blocks: tuple[Block, ...],
    changes: Any,
    overlay: Callable[[Block, Mapping[str, Any], str], Block],
    where: str,
) -> tuple[Block, ...]:
    names = [block.name for block in blocks]
    if not isinstance(changes, Mapping):
        raise InterfaceError(
            f"{where}: expected {{block: {{key: value}}}}, found {changes!r}"
        )
    for name, change in changes.items():
        if name not in names:
            raise InterfaceError(
                f"{where}: unknown block '{name}'; {nearest(name, names)}"
            )
        if not isinstance(change, Mapping):
            raise InterfaceError(
                f"{where}, '{name}': expected a mapping, found {change!r}"
            )
    return tuple(
        overlay(block, changes[block.name], f"{where}, '{block.name}'")
        if block.name in changes
        else block
        for block in blocks
    )


def _overlay_observation(
    block: ObservationBlock, change: Mapping[str, Any], where: str
) -> ObservationBlock:
    check_keys(change, (), ("source", "max_age_s"), where, InterfaceError)
    age = block.max_age_s
    if "max_age_s" in change:
        age = read_positive(change["max_age_s"], f"{where}, max_age_s")
        _check_tighter((age,), (block.max_age_s,), f"{where}, max_age_s")
    source = _overlay_source(block.source, change.get("source"), f"{where}, source")
    return replace(block, source=source, max_age_s=age)


def _overlay_action(
    block: ActionBlock, change: Mapping[str, Any], where: str
) -> ActionBlock:
    keys = ("target", "measured", "low", "high", "max_rate", "max_acceleration")
    check_keys(change, (), keys, where, InterfaceError)
    values: dict[str, Any] = {}
    if "low" in change:
        values["low"] = read_numbers(change["low"], block.size, f"{where}, low")
        _check_tighter(block.low, values["low"], f"{where}, low")
    if "high" in change:
        values["high"] = read_numbers(change["high"], block.size, f"{where}, high")
        _check_tighter(values["high"], block.high, f"{where}, high")
    for key, bounds in (
        ("max_rate", block.max_rate),
        ("max_acceleration", block.max_acceleration),
    ):
        if key in change:
            values[key] = read_bounds(change[key], block.size, f"{where}, {key}")
            _check_tighter(values[key], bounds, f"{where}, {key}")
    values["target"] = _overlay_source(
        block.target, change.get("target"), f"{where}, target"
    )
    if block.measured is not None:
        values["measured"] = _overlay_source(
            block.measured, change.get("measured"), f"{where}, measured"
        )
    elif "measured" in change:
        raise InterfaceError(
            f"{where}: the block has no measured value that could be moved"
        )
    result = replace(block, **values)
    check_action(result, where)
    return result


def _overlay_source(source: Source, change: Any, where: str) -> Source:
    """The source with another topic, type or field; it must measure the same quantity."""
    if change is None:
        return source
    if not isinstance(change, Mapping):
        raise InterfaceError(f"{where}: expected a mapping, found {change!r}")
    check_keys(change, (), _SOURCE_KEYS, where, InterfaceError)
    joints = {"joints": list(source.joints)} if source.joints else {}
    merged = {key: change.get(key, getattr(source, key)) for key in _SOURCE_KEYS}
    result = read_source({**merged, **joints}, where)
    if quantity(result.field) != quantity(source.field):
        raise InterfaceError(
            f"{where}: field '{result.field}' measures another quantity than '{source.field}'; "
            "an overlay may change the message, not the meaning"
        )
    return result


def _check_tighter(
    inner: tuple[float, ...], outer: tuple[float, ...], where: str
) -> None:
    """Refuse when any inner value is above its outer one."""
    for index, (small, large) in enumerate(zip(inner, outer, strict=True)):
        if small > large:
            raise InterfaceError(
                f"{where}[{index}]: an overlay may only tighten: {small} must not exceed {large}",
                index=index,
            )
