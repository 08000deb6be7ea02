# SPDX-License-Identifier: Apache-2.0
"""Named transforms between the fields of a message and the numbers of a block.

Quaternions are x, y, z, w as in ROS messages unless a name says otherwise. Yaw is the rotation about
the vertical axis of the roll-pitch-yaw convention, yaw = atan2(2(wz + xy), 1 - 2(y^2 + z^2)), taken
from the quaternion as it comes: neither normalised nor sign-flipped, so that an observation rebuilt
from messages equals the simulator's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from qam_ros.contract.errors import InterfaceError, nearest

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Transform:
    """A named function on the last axis of an array.

    Args:
        name: as written in the interface.
        input_size: size of the last axis going in.
        output_size: size of the last axis coming out.
        apply: (..., input_size) -> (..., output_size), float64.
        inverse: name of the transform that undoes it, if an action may use it.
    """

    name: str
    input_size: int
    output_size: int
    apply: Callable[[FloatArray], FloatArray]
    inverse: str | None = None


def yaw(quaternion: FloatArray) -> FloatArray:
    """Yaw [rad] in [-pi, pi] of a quaternion x, y, z, w; (..., 4) -> (..., 1)."""
    x, y, z, w = (quaternion[..., index] for index in range(4))
    angle = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y**2 + z**2))
    return np.asarray(angle)[..., np.newaxis]  # (..., 1)


def yaw_cos_sin(quaternion: FloatArray) -> FloatArray:
    """Cosine and sine of the yaw of a quaternion x, y, z, w; (..., 4) -> (..., 2)."""
    if (
        quaternion.ndim == 1
    ):  # the robot's tick: the same numbers in a third of the time
        x, y, z, w = quaternion.tolist()
        one = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        return np.array([np.cos(one), np.sin(one)])
    angle = yaw(quaternion)
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)  # (..., 2)


def quaternion_wxyz(quaternion: FloatArray) -> FloatArray:
    """Reorder a quaternion x, y, z, w to w, x, y, z; (..., 4) -> (..., 4)."""
    return quaternion[..., [3, 0, 1, 2]]


def up_in_body(quaternion: FloatArray) -> FloatArray:
    """The vertical seen from the body, R^T (0, 0, 1), of a quaternion x, y, z, w; (..., 4) -> (..., 3)."""
    x, y, z, w = (quaternion[..., index] for index in range(4))
    return np.stack(
        [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
        axis=-1,
    )  # (..., 3)


def yaw_tool_down(angle: FloatArray) -> FloatArray:
    """Quaternion x, y, z, w of Rz(yaw) Rx(pi), a tool that points down; (..., 1) -> (..., 4)."""
    half = 0.5 * angle[..., 0]
    zero = np.zeros_like(half)
    return np.stack([np.cos(half), np.sin(half), zero, zero], axis=-1)  # (..., 4)


TRANSFORMS: Final[dict[str, Transform]] = {
    item.name: item
    for item in (
        Transform("yaw", 4, 1, yaw),
        Transform("yaw_cos_sin", 4, 2, yaw_cos_sin),
        Transform("quaternion_wxyz", 4, 4, quaternion_wxyz),
        Transform("up_in_body", 4, 3, up_in_body),
        Transform("yaw_tool_down", 1, 4, yaw_tool_down, inverse="yaw"),
    )
}


def find_transform(name: str, where: str) -> Transform:
    """Transform of that name.

    Args:
        name: as written in the interface.
        where: file and block, for the message.

    Raises:
        InterfaceError: no such transform; names the nearest.
    """
    if name not in TRANSFORMS:
        raise InterfaceError(
            f"{where}: unknown transform '{name}'; {nearest(name, TRANSFORMS)}",
            transform=name,
        )
    return TRANSFORMS[name]
