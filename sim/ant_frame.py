# SPDX-License-Identifier: Apache-2.0
"""The ant seen along its way: its four equal legs and the heading folded out of state and action.

The ant of the mazes is the same after a quarter turn about its own vertical axis, so "walk this
way" need not be learned anew for each direction and each leg. A state is turned until the wanted
direction is the x axis, and the legs are renamed until the torso's yaw lies within an eighth of a
turn of it. A policy on these features walks every way as it walks along x.

Notation: N states; k quarter turns by which the legs are renamed; slot j holds leg (j - k) mod 4.
Legs are numbered in the order of the joints (front left, front right, back, right back), a quarter
turn apart, anticlockwise.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FEATURES: Final = 29
ACTIONS: Final = 8
LEGS: Final = 4

# Ankles bend outwards for positive angles in legs 0 and 3, for negative ones in legs 1 and 2.
BEND: Final = np.array([1.0, -1.0, -1.0, 1.0])
# Motors are listed from leg 3 on (hip and ankle of each leg).
MOTOR_LEGS: Final = np.array([3, 0, 1, 2])

HIP_RANGE_RAD: Final = np.deg2rad(30.0)  # either side of 0
ANKLE_MIDDLE_RAD: Final = np.deg2rad(50.0)
ANKLE_RANGE_RAD: Final = np.deg2rad(20.0)
JOINT_SPEED_SCALE: Final = 0.1  # [s/rad], so that features are of the order of one
TURN_SPEED_SCALE: Final = 0.2  # [s/rad]
SPEED_SCALE: Final = 0.5  # [s/m]
HEIGHT_MIDDLE_M: Final = 0.5
HEIGHT_SCALE: Final = 4.0  # [1/m]


def rotation(quaternion: Array) -> Array:
    """Rotation matrix (N, 3, 3) of quaternions w, x, y, z (N, 4), normalised here."""
    w, x, y, z = (quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)  # (N, 3, 3)


def upright(qpos: Array) -> Array:
    """Vertical part of the torso's own up axis (N,): 1 stands, 0 lies on its side, -1 is on its back."""
    _, x, y, _ = (qpos[:, 3:7] / np.linalg.norm(qpos[:, 3:7], axis=-1, keepdims=True)).T
    return np.asarray(1.0 - 2.0 * (x * x + y * y))


def quarter_turns(qpos: Array, direction: Array) -> NDArray[np.int64]:
    """Quarter turns k (N,) in 0..3 by which the legs are renamed.

    Args:
        qpos: (N, 15) generalised positions.
        direction: (N, 2) unit vectors in the frame of the world.
    """
    matrix = rotation(qpos[:, 3:7])
    yaw = np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0])
    relative = yaw - np.arctan2(direction[:, 1], direction[:, 0])
    return np.round(relative / (0.5 * np.pi)).astype(np.int64) % LEGS


def features(
    qpos: Array, qvel: Array, direction: Array
) -> tuple[Array, NDArray[np.int64]]:
    """State along the wanted direction, and how the legs were renamed for it.

    Args:
        qpos: (N, 15): position [m], orientation w, x, y, z, hip and ankle of each leg [rad].
        qvel: (N, 14): velocity [m/s] in the world's frame, turning [rad/s] in the torso's, joints.
        direction: (N, 2) unit vectors in the frame of the world.

    Returns:
        features (N, 29): height, forward and up axes of the torso, hips, bends, velocity, turning,
        speeds of hips and bends; and quarter turns k (N,).
    """
    k = quarter_turns(qpos, direction)
    to_way = np.zeros((len(qpos), 3, 3))  # from the world's frame to that of the way
    to_way[:, 0, 0] = to_way[:, 1, 1] = direction[:, 0]
    to_way[:, 0, 1], to_way[:, 1, 0] = direction[:, 1], -direction[:, 1]
    to_way[:, 2, 2] = 1.0
    renamed = _quarter_rotation(k)  # from the torso's frame to that of the slots
    torso = to_way @ rotation(qpos[:, 3:7]) @ np.swapaxes(renamed, 1, 2)
    legs = _slots_to_legs(k)
    hips, bends = _legs(qpos[:, 7:], legs)
    hip_speeds, bend_speeds = _legs(qvel[:, 6:], legs)
    parts = [
        (qpos[:, 2:3] - HEIGHT_MIDDLE_M) * HEIGHT_SCALE,
        torso[:, :, 0],
        torso[:, :, 2],
        hips / HIP_RANGE_RAD,
        (bends - ANKLE_MIDDLE_RAD) / ANKLE_RANGE_RAD,
        np.einsum("nij,nj->ni", to_way, qvel[:, :3]) * SPEED_SCALE,
        np.einsum("nij,nj->ni", renamed, qvel[:, 3:6]) * TURN_SPEED_SCALE,
        hip_speeds * JOINT_SPEED_SCALE,
        bend_speeds * JOINT_SPEED_SCALE,
    ]
    return np.concatenate(parts, axis=1), k  # (N, 29)


def motor_action(slots: Array, k: NDArray[np.int64]) -> Array:
    """Motor commands (N, 8) of the actions of the slots (N, 8): hips of slots 0..3, then bends."""
    slot_of_leg = (np.arange(LEGS) + k[:, None]) % LEGS  # (N, 4)
    hips = np.take_along_axis(slots[:, :LEGS], slot_of_leg, axis=1)
    ankles = np.take_along_axis(slots[:, LEGS:], slot_of_leg, axis=1) * BEND
    motors = np.stack([hips[:, MOTOR_LEGS], ankles[:, MOTOR_LEGS]], axis=2)
    return motors.reshape(len(slots), ACTIONS)


def _slots_to_legs(k: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.asarray((np.arange(LEGS) - k[:, None]) % LEGS)  # (N, 4)


def _legs(joints: Array, legs: NDArray[np.int64]) -> tuple[Array, Array]:
    """Hips and bends (N, 4) each, by slot, of joints (N, 8) in the order of the model."""
    hips = np.take_along_axis(joints[:, 0::2], legs, axis=1)
    return hips, np.take_along_axis(joints[:, 1::2] * BEND, legs, axis=1)


def _quarter_rotation(k: NDArray[np.int64]) -> Array:
    """Rotation (N, 3, 3) by k quarter turns about z, exact."""
    cosine = np.array([1.0, 0.0, -1.0, 0.0])[k]
    sine = np.array([0.0, 1.0, 0.0, -1.0])[k]
    matrix = np.zeros((len(k), 3, 3))
    matrix[:, 0, 0] = matrix[:, 1, 1] = cosine
    matrix[:, 0, 1], matrix[:, 1, 0] = -sine, sine
    matrix[:, 2, 2] = 1.0
    return matrix
