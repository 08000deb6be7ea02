# SPDX-License-Identifier: Apache-2.0
"""Reading and writing the blocks of a robot interface as plain mappings (YAML)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast, get_args

from qam_ros.contract.blocks import ActionBlock, ActionMode, ObservationBlock
from qam_ros.contract.errors import InterfaceError, check_keys
from qam_ros.contract.fields import UNSTAMPED
from qam_ros.contract.reading import (
    read_choice,
    read_flag,
    read_integer,
    read_names,
    read_numbers,
    read_positive,
    read_text,
)
from qam_ros.contract.source_yaml import read_source, write_source
from qam_ros.contract.transforms import find_transform

UNITS: Final = ("1", "m", "rad", "m/s", "rad/s", "m/s^2", "rad/s^2", "N", "Nm", "s")

_OBSERVATION_KEYS: Final = (
    "name",
    "size",
    "elements",
    "unit",
    "frame",
    "source",
    "max_age_s",
)
_ACTION_KEYS: Final = (
    *("name", "size", "elements", "unit", "frame", "target", "mode", "scale"),
    *("low", "high", "max_rate", "max_acceleration"),
)
_ACTION_OPTIONS: Final = (
    "transform",
    "offset",
    "measured",
    "measured_transform",
    "wrap",
)


def write_observation(block: ObservationBlock) -> dict[str, Any]:
    """Mapping of an observation block; ``read_observation`` reads it back."""
    return {
        "name": block.name,
        "size": block.size,
        "elements": list(block.elements),
        "unit": block.unit,
        "frame": block.frame,
        "source": write_source(block.source),
        "transform": block.transform,
        "offset": list(block.offset),
        "scale": list(block.scale),
        "max_age_s": block.max_age_s,
    }


def read_observation(block: Mapping[str, Any], where: str) -> ObservationBlock:
    """Observation block from a mapping.

    Raises:
        InterfaceError: see ``read_interface``.
    """
    name, elements, label = _read_names_and_label(
        block, _OBSERVATION_KEYS, ("transform", "offset", "scale"), where
    )
    size = len(elements)
    source = read_source(block["source"], f"{label}, source")
    if source.type in UNSTAMPED:
        raise InterfaceError(
            f"{label}: {source.type} has no time stamp, so its age is unknown; "
            "observe a stamped message"
        )
    result = ObservationBlock(
        name=name,
        size=size,
        elements=elements,
        unit=read_choice(block["unit"], UNITS, f"{label}, unit"),
        frame=read_text(block["frame"], f"{label}, frame"),
        source=source,
        transform=_read_transform(block.get("transform"), label),
        offset=read_numbers(block.get("offset", 0.0), size, f"{label}, offset"),
        scale=_nonzero(
            read_numbers(block.get("scale", 1.0), size, f"{label}, scale"), label
        ),
        max_age_s=read_positive(block["max_age_s"], f"{label}, max_age_s"),
    )
    _check_flow(
        len(result.indices), result.transform, size, f"{label}, source '{source.field}'"
    )
    return result


def write_action(block: ActionBlock) -> dict[str, Any]:
    """Mapping of an action block; ``read_action`` reads it back."""
    return {
        "name": block.name,
        "size": block.size,
        "elements": list(block.elements),
        "unit": block.unit,
        "frame": block.frame,
        "target": write_source(block.target),
        "transform": block.transform,
        "mode": block.mode,
        "scale": list(block.scale),
        "offset": list(block.offset),
        "measured": None if block.measured is None else write_source(block.measured),
        "measured_transform": block.measured_transform,
        "low": list(block.low),
        "high": list(block.high),
        "max_rate": list(block.max_rate),
        "max_acceleration": list(block.max_acceleration),
        "wrap": block.wrap,
    }


def read_action(block: Mapping[str, Any], where: str) -> ActionBlock:
    """Action block from a mapping.

    Raises:
        InterfaceError: see ``read_interface``.
    """
    name, elements, label = _read_names_and_label(
        block, _ACTION_KEYS, _ACTION_OPTIONS, where
    )
    size = len(elements)
    measured = block.get("measured")
    result = ActionBlock(
        name=name,
        size=size,
        elements=elements,
        unit=read_choice(block["unit"], UNITS, f"{label}, unit"),
        frame=read_text(block["frame"], f"{label}, frame"),
        target=read_source(block["target"], f"{label}, target"),
        transform=_read_transform(block.get("transform"), label),
        mode=cast(
            "ActionMode",
            read_choice(block["mode"], get_args(ActionMode), f"{label}, mode"),
        ),
        scale=_nonzero(read_numbers(block["scale"], size, f"{label}, scale"), label),
        offset=read_numbers(block.get("offset", 0.0), size, f"{label}, offset"),
        measured=None
        if measured is None
        else read_source(measured, f"{label}, measured"),
        measured_transform=_read_transform(block.get("measured_transform"), label),
        low=read_numbers(block["low"], size, f"{label}, low"),
        high=read_numbers(block["high"], size, f"{label}, high"),
        max_rate=read_bounds(block["max_rate"], size, f"{label}, max_rate"),
        max_acceleration=read_bounds(
            block["max_acceleration"], size, f"{label}, max_acceleration"
        ),
        wrap=read_flag(block.get("wrap", False), f"{label}, wrap"),
    )
    check_action(result, label)
    return result


def check_action(block: ActionBlock, label: str) -> None:
    """Refuse an action block whose parts contradict each other.

    Raises:
        InterfaceError: low above high, delta without a measured value, transforms that do not fit.
    """
    for element, low, high in zip(block.elements, block.low, block.high, strict=True):
        if low > high:
            raise InterfaceError(
                f"{label}: low {low} is above high {high} for '{element}'; swap or correct them",
                element=element,
            )
    if block.mode == "delta" and block.measured is None:
        raise InterfaceError(
            f"{label}: mode 'delta' adds to a measured value; give 'measured'"
        )
    if block.measured is None and block.measured_transform is not None:
        raise InterfaceError(
            f"{label}: 'measured_transform' without 'measured'; remove it"
        )
    _check_flow(
        block.size, block.transform, len(block.target_indices), f"{label}, target"
    )
    if block.measured is not None:
        _check_flow(
            len(block.measured_indices),
            block.measured_transform,
            block.size,
            f"{label}, measured",
        )
    if (
        block.transform is not None
        and find_transform(block.transform, label).inverse is None
    ):
        raise InterfaceError(
            f"{label}: transform '{block.transform}' cannot be undone, so it cannot make a command"
        )


def read_bounds(value: Any, size: int, where: str) -> tuple[float, ...]:
    """Limits above 0, one per element or one for all; .inf means no limit.

    Raises:
        InterfaceError: not numbers, wrong length, or not above 0.
    """
    bounds = read_numbers(value, size, where, infinite=True)
    if min(bounds) <= 0.0:
        raise InterfaceError(f"{where}: limits must be above 0, found {bounds}")
    return bounds


def _check_flow(size: int, transform: str | None, wanted: int, where: str) -> None:
    """Refuse a chain ``size`` values -> transform -> ``wanted`` values that does not fit."""
    if transform is not None:
        step = find_transform(transform, where)
        if size != step.input_size:
            raise InterfaceError(
                f"{where}: transform '{transform}' takes {step.input_size} values, it gets {size}"
            )
        size = step.output_size
    if size != wanted:
        raise InterfaceError(
            f"{where}: {size} values arrive where {wanted} are expected; check size, elements, "
            "joints and transform",
            found=size,
            expected=wanted,
        )


def _read_transform(value: Any, where: str) -> str | None:
    return (
        None if value is None else find_transform(read_text(value, where), where).name
    )


def _nonzero(values: tuple[float, ...], label: str) -> tuple[float, ...]:
    if 0.0 in values:
        raise InterfaceError(
            f"{label}: a scale of 0 throws its value away; found {values}"
        )
    return values


def _read_names_and_label(
    block: Mapping[str, Any],
    required: tuple[str, ...],
    optional: tuple[str, ...],
    where: str,
) -> tuple[str, tuple[str, ...], str]:
    """Check the keys shared by both kinds of block; returns name, elements and a label."""
    check_keys(block, required, optional, where, InterfaceError)
    name = read_text(block["name"], f"{where}, name")
    label = f"{where} '{name}'"
    elements = read_names(block["elements"], f"{label}, elements")
    size = read_integer(block["size"], f"{label}, size", 1)
    if len(elements) != size:
        raise InterfaceError(
            f"{label}: has {len(elements)} elements, its size says {size}; name each value once",
            expected=size,
            found=len(elements),
        )
    return name, elements, label
