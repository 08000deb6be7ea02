# SPDX-License-Identifier: Apache-2.0
"""An overlay moves topics and tightens limits; it can do nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from qam_ros.contract.errors import InterfaceError
from qam_ros.contract.interface import RobotInterface, apply_overlay, load_interface

ARM = load_interface("ur5e_2f85")
BASE = load_interface("mobile_base")


def overlay(robot: RobotInterface = ARM, **parts: Any) -> RobotInterface:
    mapping = {"format_version": 1, "overlay_of": robot.robot, **parts}
    return apply_overlay(robot, mapping, "overlay.yaml")


def test_empty_overlay_changes_nothing() -> None:
    assert overlay() == ARM


def test_overlay_tightens_limits_and_ages_and_keeps_the_meaning() -> None:
    result = overlay(
        observation={"joint_position": {"max_age_s": 0.02}},
        action={"effector_translation": {"low": [0.3, -0.1, 0.1], "max_rate": 0.1}},
    )
    assert result.observation[0].max_age_s == 0.02
    assert result.action[0].low == (0.3, -0.1, 0.1)
    assert result.action[0].max_rate == (0.1, 0.1, 0.1)
    assert result.action[0].high == ARM.action[0].high
    assert result.semantic_hash == ARM.semantic_hash


def test_overlay_moves_a_topic_and_changes_the_message() -> None:
    result = overlay(
        BASE,
        action={
            "linear_velocity": {
                "target": {"type": "geometry_msgs/msg/Twist", "field": "linear"}
            }
        },
        observation={"position": {"source": {"topic": "odometry/filtered"}}},
    )
    assert result.action[0].target.type == "geometry_msgs/msg/Twist"
    assert result.action[0].target.topic == "cmd_vel"
    assert result.observation[0].source.topic == "odometry/filtered"
    assert result.semantic_hash == BASE.semantic_hash


def test_overlay_names_another_watchdog() -> None:
    assert overlay(downstream_watchdog="relay").downstream_watchdog == "relay"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "age": (
        {"observation": {"joint_position": {"max_age_s": 0.2}}},
        r"'joint_position', max_age_s\[0\]: an overlay may only tighten: 0.2 must not exceed 0.15",
    ),
    "low": (
        {"action": {"effector_translation": {"low": [0.0, 0.0, 0.0]}}},
        r"low\[0\]: an overlay may only tighten: 0.15 must not exceed 0.0",
    ),
    "high": (
        {"action": {"gripper": {"high": 3.0}}},
        r"high\[0\]: an overlay may only tighten",
    ),
    "rate": (
        {"action": {"gripper": {"max_rate": 61.0}}},
        r"max_rate\[0\]: an overlay may only tighten",
    ),
    "acceleration": (
        {"action": {"gripper": {"max_acceleration": float("inf")}}},
        r"max_acceleration\[0\]: an overlay may only tighten",
    ),
    "empty range": (
        {"action": {"gripper": {"low": 0.9, "high": 0.1}}},
        r"low 0.9 is above high 0.1",
    ),
    "scale": (
        {"observation": {"joint_position": {"scale": 2.0}}},
        r"overlay.yaml, 'joint_position': unknown key 'scale'; .*valid: max_age_s, source",
    ),
    "mode": (
        {"action": {"gripper": {"mode": "absolute"}}},
        r"'gripper': unknown key 'mode'",
    ),
    "joints": (
        {"observation": {"joint_position": {"source": {"joints": ["a"]}}}},
        r"source: unknown key 'joints'",
    ),
    "quantity": (
        {"observation": {"joint_position": {"source": {"field": "effort"}}}},
        r"field 'effort' measures another quantity than 'position'",
    ),
    "unknown block": (
        {"action": {"griper": {}}},
        r"overlay.yaml: unknown block 'griper'; did you mean 'gripper'",
    ),
    "unknown part": (
        {"safe_action": "zero_velocity"},
        r"overlay.yaml: unknown key 'safe_action'",
    ),
    "other robot": (
        {"overlay_of": "mobile_base"},
        r"overlay of robot 'mobile_base', it was given for",
    ),
    "newer version": ({"format_version": 2}, r"format 2 is newer than this program"),
    "list of blocks": (
        {"action": []},
        r"expected \{block: \{key: value\}\}, found \[\]",
    ),
    "block of no mapping": (
        {"action": {"gripper": 1}},
        r"'gripper': expected a mapping, found 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_anything_else_is_refused_with_a_message_that_helps(case: str) -> None:
    parts, message = REFUSED[case]
    with pytest.raises(InterfaceError, match=message):
        overlay(**parts)


def test_block_that_measures_nothing_has_no_measured_topic_to_move() -> None:
    with pytest.raises(InterfaceError, match="no measured value that could be moved"):
        overlay(BASE, action={"linear_velocity": {"measured": {"topic": "odom"}}})


def test_real_arm_is_tighter_everywhere() -> None:
    real = load_interface("ur5e_2f85", "real")
    for loose, tight in zip(ARM.action, real.action, strict=True):
        assert all(a >= b for a, b in zip(tight.low, loose.low, strict=True))
        assert all(a <= b for a, b in zip(tight.high, loose.high, strict=True))
        assert all(a < b for a, b in zip(tight.max_rate, loose.max_rate, strict=True))
        assert all(
            a < b
            for a, b in zip(tight.max_acceleration, loose.max_acceleration, strict=True)
        )
    for loose, tight in zip(ARM.observation, real.observation, strict=True):
        assert tight.max_age_s < loose.max_age_s
    assert real.semantic_hash == ARM.semantic_hash


def test_twist_base_sends_unstamped_velocities() -> None:
    twist = load_interface("mobile_base", "twist")
    assert twist.action[0].target.type == "geometry_msgs/msg/Twist"
    assert twist.semantic_hash == BASE.semantic_hash
