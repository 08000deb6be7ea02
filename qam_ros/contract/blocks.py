# SPDX-License-Identifier: Apache-2.0
"""Observation blocks and action blocks, the parts of a robot interface.

An observation is the concatenation of its blocks, each
    value = (transform(raw) - offset) * scale,
an action the concatenation of its blocks, each
    physical = normalised * scale + offset,    normalised in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from qam_ros.contract.fields import (
    BY_ELEMENT,
    BY_JOINT,
    field_components,
    selected_components,
)

ActionMode = Literal["delta", "absolute", "velocity"]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Source:
    """Where a block's numbers are read from or written to.

    Args:
        topic: relative topic name.
        type: message type, e.g. ``sensor_msgs/msg/JointState``.
        field: path of the field in that message, e.g. ``pose.position``.
        joints: joint names, in block order, for fields with one value per joint.
    """

    topic: str
    type: str
    field: str
    joints: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """The pair (topic, field), under which raw values are collected."""
        return (self.topic, self.field)

    def components(self, elements: tuple[str, ...]) -> tuple[str, ...]:
        """Component names of the raw value: joints, x y z (w), or the block's elements."""
        names = field_components(self.type, self.field, f"topic '{self.topic}'")
        if names == BY_JOINT:
            return self.joints
        return elements if names == BY_ELEMENT else names


def _frozen(values: tuple[float, ...]) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    array.setflags(write=False)
    return array


@dataclass(frozen=True)
class ObservationBlock:
    """A named part of the observation; value = (transform(raw) - offset) * scale.

    Args:
        name: block name.
        size: number of values.
        elements: name of each value.
        unit: unit of the value before offset and scale.
        frame: coordinate frame.
        source: where the raw values come from.
        transform: named transform of the raw field, or None.
        offset: subtracted, one per element [unit].
        scale: multiplied, one per element [1/unit].
        max_age_s: oldest raw value a policy may act on [s].
    """

    name: str
    size: int
    elements: tuple[str, ...]
    unit: str
    frame: str
    source: Source
    transform: str | None
    offset: tuple[float, ...]
    scale: tuple[float, ...]
    max_age_s: float

    @cached_property
    def indices(self) -> tuple[int, ...]:
        """Components of the raw field that go into the transform or straight into the block."""
        components = self.source.components(self.elements)
        return selected_components(
            components, self.elements, whole=self.transform is not None
        )

    @cached_property
    def raw_size(self) -> int:
        """Number of components of the raw field."""
        return len(self.source.components(self.elements))

    @cached_property
    def offset_array(self) -> FloatArray:
        """``offset`` as a read-only float64 array (size,)."""
        return _frozen(self.offset)

    @cached_property
    def scale_array(self) -> FloatArray:
        """``scale`` as a read-only float64 array (size,)."""
        return _frozen(self.scale)


@dataclass(frozen=True)
class ActionBlock:
    """A named part of the action; physical = normalised * scale + offset.

    delta: command = measured + physical; absolute and velocity: command = physical. Then the guard
    bounds the command: low and high, max_rate (change per second), max_acceleration (change of that
    change per second). In velocity mode the command is a velocity, so max_rate is its acceleration.

    Args:
        name: block name.
        size: number of values.
        elements: name of each value.
        unit: unit of the command.
        frame: coordinate frame of the command.
        target: where the command is written to.
        transform: named transform from the command to the target's field, or None.
        mode: what a physical action means.
        scale: physical action at normalised 1, less the offset, one per element [unit].
        offset: physical action at normalised 0, one per element [unit].
        measured: where the measured value comes from (needed by delta), or None.
        measured_transform: named transform from the measured field to the command's space, or None.
        low: lowest command, one per element [unit].
        high: highest command, one per element [unit].
        max_rate: largest change of the command, one per element [unit/s]; may be infinite.
        max_acceleration: largest change of the rate, one per element [unit/s^2]; may be infinite.
        wrap: the command is an angle, wrapped to [-pi, pi].
    """

    name: str
    size: int
    elements: tuple[str, ...]
    unit: str
    frame: str
    target: Source
    transform: str | None
    mode: ActionMode
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    measured: Source | None
    measured_transform: str | None
    low: tuple[float, ...]
    high: tuple[float, ...]
    max_rate: tuple[float, ...]
    max_acceleration: tuple[float, ...]
    wrap: bool

    @cached_property
    def target_indices(self) -> tuple[int, ...]:
        """Components of the target's field that the command (after its transform) fills."""
        components = self.target.components(self.elements)
        return selected_components(
            components, self.elements, whole=self.transform is not None
        )

    @cached_property
    def target_size(self) -> int:
        """Number of components of the target's field."""
        return len(self.target.components(self.elements))

    @cached_property
    def measured_indices(self) -> tuple[int, ...]:
        """Components of the measured field that are used; empty without a measured source."""
        if self.measured is None:
            return ()
        components = self.measured.components(self.elements)
        whole = self.measured_transform is not None
        return selected_components(components, self.elements, whole=whole)

    @cached_property
    def offset_array(self) -> FloatArray:
        """``offset`` as a read-only float64 array (size,)."""
        return _frozen(self.offset)

    @cached_property
    def scale_array(self) -> FloatArray:
        """``scale`` as a read-only float64 array (size,)."""
        return _frozen(self.scale)
