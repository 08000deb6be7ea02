# SPDX-License-Identifier: Apache-2.0
"""From raw message values to an observation, and from a normalised action to a command.

Evaluated in float64, cast to float32 last: an observation assembled from the raw values of messages
equals the simulator's own to float32 rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from qam_ros.contract.blocks import ActionBlock, FloatArray, ObservationBlock
from qam_ros.contract.errors import InterfaceError
from qam_ros.contract.robot_interface import RobotInterface
from qam_ros.contract.transforms import TRANSFORMS

RawValues = Mapping[tuple[str, str], npt.NDArray[Any]]
"""Raw field values by (topic, field): (n,) numbers in the field's component order."""


def block_value(block: ObservationBlock, raw: npt.ArrayLike) -> FloatArray:
    """Value of an observation block: (transform(raw) - offset) * scale.

    Args:
        block: the block.
        raw: (..., raw_size) field of the message [unit]; x, y, z(, w) for vectors and quaternions,
            one value per joint in the block's order for JointState.

    Returns:
        (..., size), float64.

    Raises:
        InterfaceError: the raw field has another size.
    """
    values = _raw(raw, block.raw_size, block.name, block.source.key)
    if block.transform is None:
        chosen = values[..., block.indices]
    else:
        chosen = TRANSFORMS[block.transform].apply(values)
    return (chosen - block.offset_array) * block.scale_array  # (..., size)


def assemble(interface: RobotInterface, raw: RawValues) -> npt.NDArray[np.float32]:
    """Observation of a robot from the raw values of all its topics.

    Args:
        interface: the robot.
        raw: raw values by (topic, field), see ``block_value``.

    Returns:
        (..., O) float32. Values that are not finite stay as they are: the caller decides.

    Raises:
        InterfaceError: a field is missing or has another size.
    """
    parts = []
    for block in interface.observation:
        if block.source.key not in raw:
            raise InterfaceError(
                f"observation block '{block.name}': no value for topic '{block.source.topic}', "
                f"field '{block.source.field}'; there are {sorted(raw)}",
                block=block.name,
            )
        parts.append(block_value(block, raw[block.source.key]))
    return np.concatenate(parts, axis=-1).astype(np.float32)  # (..., O)


def physical_action(block: ActionBlock, normalised: npt.ArrayLike) -> FloatArray:
    """Physical action: normalised * scale + offset; (..., size) -> (..., size) [unit]."""
    return (
        np.asarray(normalised, dtype=np.float64) * block.scale_array
        + block.offset_array
    )


def measured_value(block: ActionBlock, raw: npt.ArrayLike) -> FloatArray:
    """Measured value in the space of the command, to which a delta is added.

    Args:
        block: an action block with a measured source.
        raw: (..., n) the measured field of the message.

    Returns:
        (..., size) [unit], float64.

    Raises:
        InterfaceError: the block measures nothing, or the field has another size.
    """
    if block.measured is None:
        raise InterfaceError(f"action block '{block.name}' has no measured value")
    size = len(block.measured.components(block.elements))
    values = _raw(raw, size, block.name, block.measured.key)
    if block.measured_transform is None:
        return values[..., block.measured_indices]
    return TRANSFORMS[block.measured_transform].apply(values)


def target_value(block: ActionBlock, command: npt.ArrayLike) -> FloatArray:
    """What is written to ``target_indices`` of the target's field; (..., size) -> (..., k)."""
    values = np.asarray(command, dtype=np.float64)
    return (
        values if block.transform is None else TRANSFORMS[block.transform].apply(values)
    )


def _raw(raw: npt.ArrayLike, size: int, name: str, key: tuple[str, str]) -> FloatArray:
    values = np.asarray(raw, dtype=np.float64)
    if values.ndim < 1 or values.shape[-1] != size:
        raise InterfaceError(
            f"block '{name}': topic '{key[0]}', field '{key[1]}' has shape {values.shape}, "
            f"expected (..., {size}); check the message's sizes and joint names",
            block=name,
            found=values.shape,
            expected=size,
        )
    return values
