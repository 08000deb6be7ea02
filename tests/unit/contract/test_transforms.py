# SPDX-License-Identifier: Apache-2.0
"""Transforms against rotation matrices and against each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qam_ros.contract.errors import InterfaceError
from qam_ros.contract.transforms import TRANSFORMS, find_transform

# float64 arithmetic of a handful of operations on numbers near 1
TOLERANCE = 1e-12


def rotation_matrix(quaternion: np.ndarray) -> np.ndarray:
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


@given(st.floats(-np.pi, np.pi))
def test_tool_down_points_the_tool_down_at_the_given_yaw(angle: float) -> None:
    quaternion = TRANSFORMS["yaw_tool_down"].apply(np.array([angle]))
    rotation_z = np.array(
        [
            [np.cos(angle), -np.sin(angle), 0],
            [np.sin(angle), np.cos(angle), 0],
            [0, 0, 1],
        ]
    )
    expected = rotation_z @ np.diag([1.0, -1.0, -1.0])  # Rz(yaw) Rx(pi)
    np.testing.assert_allclose(rotation_matrix(quaternion), expected, atol=TOLERANCE)


@given(st.floats(-3.14, 3.14))
def test_yaw_undoes_tool_down(angle: float) -> None:
    transform = TRANSFORMS["yaw_tool_down"]
    assert transform.inverse == "yaw"
    back = TRANSFORMS["yaw"].apply(transform.apply(np.array([angle])))
    np.testing.assert_allclose(back, [angle], atol=TOLERANCE)


def test_yaw_does_not_depend_on_the_sign_of_the_quaternion() -> None:
    quaternions = np.random.default_rng(0).normal(size=(100, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    yaw = TRANSFORMS["yaw"]
    np.testing.assert_array_equal(yaw.apply(quaternions), yaw.apply(-quaternions))


def test_yaw_is_the_angle_of_the_rotated_x_axis_in_the_plane() -> None:
    quaternions = np.random.default_rng(1).normal(size=(50, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    matrices = np.stack([rotation_matrix(quaternion) for quaternion in quaternions])
    expected = np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])
    np.testing.assert_allclose(
        TRANSFORMS["yaw"].apply(quaternions)[:, 0], expected, atol=1e-9
    )


def test_cosine_and_sine_belong_to_the_yaw() -> None:
    quaternions = np.random.default_rng(2).normal(size=(5, 3, 4))
    pair = TRANSFORMS["yaw_cos_sin"].apply(quaternions)
    angle = TRANSFORMS["yaw"].apply(quaternions)[..., 0]
    np.testing.assert_allclose(
        pair, np.stack([np.cos(angle), np.sin(angle)], -1), atol=TOLERANCE
    )


def test_reordering_puts_w_first() -> None:
    reordered = TRANSFORMS["quaternion_wxyz"].apply(np.array([1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_array_equal(reordered, [4.0, 1.0, 2.0, 3.0])


def test_the_vertical_seen_from_the_body_is_the_last_row_of_its_rotation() -> None:
    quaternions = np.random.default_rng(4).normal(size=(20, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    rows = [rotation_matrix(quaternion)[2] for quaternion in quaternions]
    np.testing.assert_allclose(
        TRANSFORMS["up_in_body"].apply(quaternions), rows, atol=TOLERANCE
    )


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_declared_sizes_hold_for_batches(name: str) -> None:
    transform = TRANSFORMS[name]
    values = np.random.default_rng(3).normal(size=(7, 2, transform.input_size))
    assert transform.apply(values).shape == (7, 2, transform.output_size)


def test_unknown_transform_names_the_nearest() -> None:
    with pytest.raises(
        InterfaceError,
        match=r"block 'a': unknown transform 'yaw_cossin'; did you mean 'yaw_cos_sin'",
    ):
        find_transform("yaw_cossin", "block 'a'")


def test_yaw_of_one_quaternion_is_that_of_many():
    many = np.random.default_rng(0).normal(size=(2000, 4))
    together = TRANSFORMS["yaw_cos_sin"].apply(many)
    alone = np.stack([TRANSFORMS["yaw_cos_sin"].apply(one) for one in many])
    assert alone.shape == together.shape
    np.testing.assert_array_max_ulp(alone, together, 1)
    rows = [TRANSFORMS["yaw_cos_sin"].apply(one[None])[0] for one in many]
    assert alone.tobytes() == np.stack(rows).tobytes()
