# SPDX-License-Identifier: Apache-2.0
"""Observations from raw values and commands from actions equal the environments' own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qam_ros.contract.errors import InterfaceError
from qam_ros.contract.interface import (
    RobotInterface,
    assemble,
    block_value,
    load_interface,
    measured_value,
    physical_action,
    target_value,
)

STEPS = 40


@pytest.fixture(scope="module")
def arm() -> RobotInterface:
    return load_interface("ur5e_2f85")


@pytest.fixture(scope="module")
def base() -> RobotInterface:
    return load_interface("mobile_base")


def raw_of_cube_environment(env: Any) -> dict[tuple[str, str], np.ndarray]:
    """What a driver would publish, in float64, straight from the simulator's data."""
    info = env.compute_ob_info()
    lie = pytest.importorskip(
        "ogbench.manipspace.lie", reason="ogbench is not installed"
    )
    matrix = env._data.site_xmat[env._pinch_site_id].reshape(3, 3)
    effector = lie.SO3.from_matrix(matrix).wxyz[[1, 2, 3, 0]]
    cube = env._data.joint("object_joint_0").qpos
    return {
        ("joint_states", "position"): info["proprio/joint_pos"],
        ("joint_states", "velocity"): info["proprio/joint_vel"],
        ("effector_pose", "pose.position"): info["proprio/effector_pos"],
        ("effector_pose", "pose.orientation"): effector,
        ("gripper_state", "position"): info["proprio/gripper_opening"],
        ("gripper_state", "effort"): info["proprio/gripper_contact"],
        ("object_pose", "pose.position"): cube[:3].copy(),
        ("object_pose", "pose.orientation"): cube[[4, 5, 6, 3]],
    }


@pytest.fixture(scope="module")
def cube_environment() -> Any:
    pytest.importorskip("ogbench", reason="ogbench is not installed")
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    env = gymnasium.make("cube-single-singletask-task1-v0").unwrapped
    yield env
    env.close()


@pytest.mark.filterwarnings("ignore")  # the simulators' own
def test_arm_observation_equals_the_environments_own_to_float32_rounding(
    arm: RobotInterface, cube_environment: Any
) -> None:
    observation, _ = cube_environment.reset(seed=3)
    actions = np.random.default_rng(3).uniform(-1, 1, size=(STEPS, 5))
    for action in actions:
        rebuilt = assemble(arm, raw_of_cube_environment(cube_environment))
        expected = np.asarray(observation, dtype=np.float32)
        # one unit in the last place: cos and sin may round differently on arrays of other sizes
        np.testing.assert_array_max_ulp(rebuilt, expected, maxulp=1)
        observation = cube_environment.step(action)[0]


@pytest.mark.filterwarnings("ignore")
def test_arm_command_equals_the_environments_own_target(
    arm: RobotInterface, cube_environment: Any
) -> None:
    env = cube_environment
    env.reset(seed=4)
    translation, rotation, gripper = arm.action
    for action in np.random.default_rng(4).uniform(-1, 1, size=(STEPS, 5)):
        raw = raw_of_cube_environment(env)
        command = {
            block.name: measured_value(block, raw[block.measured.key])
            + physical_action(block, action[arm.action_slices[block.name]])
            for block in arm.action
        }
        env.step(action)
        target = env._target_effector_pose
        position = np.clip(command[translation.name], *env._workspace_bounds)
        np.testing.assert_allclose(position, target.translation(), atol=1e-12)
        quaternion = target_value(rotation, command[rotation.name])
        wanted = target.rotation().wxyz[[1, 2, 3, 0]]
        assert abs(np.dot(quaternion, wanted)) == pytest.approx(1.0, abs=1e-12)
        opening = np.clip(command[gripper.name], 0, 1)
        np.testing.assert_allclose(
            255.0 * opening, env._data.ctrl[env._gripper_actuator_ids], atol=1e-9
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("extreme", [False, True])
def test_limits_of_the_simulated_arm_do_not_bind_for_actions_inside_the_box(
    arm: RobotInterface, cube_environment: Any, extreme: bool
) -> None:
    env = cube_environment
    env.reset(seed=5)
    actions = np.random.default_rng(5).uniform(-1, 1, size=(4 * STEPS, 5))
    if extreme:
        actions = np.sign(actions)
        actions[:STEPS, 2] = -1  # down onto the table
    commands: dict[str, list[np.ndarray]] = {block.name: [] for block in arm.action}
    for action in actions:
        raw = raw_of_cube_environment(env)
        for block in arm.action:
            command = measured_value(block, raw[block.measured.key]) + physical_action(
                block, action[arm.action_slices[block.name]]
            )
            commands[block.name].append(_wrapped(command) if block.wrap else command)
        env.step(action)
    period = arm.control_period_s
    for block in arm.action:
        command = np.array(commands[block.name])
        change = np.diff(command, axis=0)
        rate = (_wrapped(change) if block.wrap else change) / period
        acceleration = np.diff(rate, axis=0) / period
        assert (command >= block.low).all()
        assert (command <= block.high).all()
        assert (np.abs(rate) <= block.max_rate).all()
        assert (np.abs(acceleration) <= block.max_acceleration).all()


def _wrapped(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi


@pytest.mark.filterwarnings("ignore")
def test_base_observation_and_velocity_are_those_of_the_point_world(
    base: RobotInterface,
) -> None:
    pytest.importorskip("ogbench", reason="ogbench is not installed")
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    env = gymnasium.make("pointmaze-medium-v0").unwrapped
    observation, _ = env.reset(seed=0, options={"task_id": 1})
    block = base.action[0]
    for action in np.random.default_rng(0).uniform(-1, 1, size=(10, 2)):
        raw = {("odom", "pose.pose.position"): np.array([*env.data.qpos, 0.0])}
        np.testing.assert_array_equal(
            assemble(base, raw), np.asarray(observation, np.float32)
        )
        displacement = physical_action(block, action) * base.control_period_s
        np.testing.assert_allclose(displacement, 0.2 * action, atol=1e-15)
        observation = env.step(action)[0]
    env.close()


def test_value_is_offset_first_and_scaled_then(arm: RobotInterface) -> None:
    block = next(
        block for block in arm.observation if block.name == "effector_position"
    )
    np.testing.assert_array_equal(
        block_value(block, [0.525, 0.1, 0.2]), [(0.525 - 0.425) * 10, 1, 2]
    )


def test_batches_are_assembled_as_single_observations(base: RobotInterface) -> None:
    raw = np.random.default_rng(0).normal(size=(6, 3))
    key = ("odom", "pose.pose.position")
    batch = assemble(base, {key: raw})
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch, [assemble(base, {key: row}) for row in raw])


def test_missing_topic_is_named(arm: RobotInterface) -> None:
    with pytest.raises(
        InterfaceError, match="'joint_position': no value for topic 'joint_states'"
    ):
        assemble(arm, {})


def test_wrong_number_of_values_is_named(arm: RobotInterface) -> None:
    match = r"'joint_position': topic 'joint_states', field 'position' has shape \(7,\), expected \(\.\.\., 6\)"
    with pytest.raises(InterfaceError, match=match):
        block_value(arm.observation[0], np.zeros(7))


def test_planar_velocity_fills_x_and_y_of_the_twist(base: RobotInterface) -> None:
    block = base.action[0]
    assert block.target_size == 3
    assert block.target_indices == (0, 1)
    np.testing.assert_array_equal(
        target_value(block, physical_action(block, [0.5, -1.0])), [1.0, -2.0]
    )


def test_block_without_measured_value_says_so(base: RobotInterface) -> None:
    with pytest.raises(InterfaceError, match="'linear_velocity' has no measured value"):
        measured_value(base.action[0], np.zeros(3))
