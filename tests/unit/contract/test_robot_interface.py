# SPDX-License-Identifier: Apache-2.0
"""Hashes say what they should, mismatches are explained in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qam_ros.contract.errors import InterfaceError
from qam_ros.contract.interface import (
    RobotInterface,
    check_same_semantics,
    explain_mismatch,
    load_interface,
)

ARM = load_interface("ur5e_2f85")


def with_block(kind: str, index: int, **changes: Any) -> RobotInterface:
    blocks = list(getattr(ARM, kind))
    blocks[index] = replace(blocks[index], **changes)
    return replace(ARM, **{kind: tuple(blocks)})


def swapped(kind: str) -> RobotInterface:
    blocks = getattr(ARM, kind)
    return replace(ARM, **{kind: (blocks[1], blocks[0], *blocks[2:])})


MEANING: dict[str, tuple[RobotInterface, str]] = {
    "robot": (replace(ARM, robot="other"), r"robot is ur5e_2f85 against other"),
    "period": (
        replace(ARM, control_period_s=0.1),
        r"control_period_s is 0.05 against 0.1",
    ),
    "order of observation": (
        swapped("observation"),
        r"observation blocks come in another order: \['joint_position', .* against \['joint_velocity'",
    ),
    "order of action": (swapped("action"), r"action blocks come in another order"),
    "missing block": (
        replace(ARM, observation=ARM.observation[:-1]),
        r"observation blocks differ: missing \['object_yaw'\], unexpected \[\]",
    ),
    "scale": (
        with_block("observation", 2, scale=(1.0, 1.0, 1.0)),
        r"observation block 'effector_position': scale is \[10.0, 10.0, 10.0\] against \[1.0, 1.0, 1.0\]",
    ),
    "offset": (
        with_block("observation", 2, offset=(0.0, 0.0, 0.0)),
        r"offset is \[0.425",
    ),
    "unit": (with_block("observation", 2, unit="1"), r"unit is m against 1"),
    "frame": (
        with_block("observation", 2, frame="base"),
        r"frame is world against base",
    ),
    "transform": (
        with_block("observation", 3, transform=None),
        r"transform is yaw_cos_sin against None",
    ),
    "elements": (
        with_block("observation", 7, elements=("x", "y", "z", "w")),
        r"elements is \['w', 'x', 'y', 'z'\] against \['x', 'y', 'z', 'w'\]",
    ),
    "joint order": (
        with_block(
            "observation",
            0,
            source=replace(
                ARM.observation[0].source, joints=ARM.observation[0].source.joints[::-1]
            ),
        ),
        r"observation block 'joint_position': joints is",
    ),
    "quantity": (
        with_block(
            "observation",
            0,
            source=replace(ARM.observation[0].source, field="velocity"),
        ),
        r"quantity is position against velocity",
    ),
    "mode": (
        with_block("action", 0, mode="absolute"),
        r"mode is delta against absolute",
    ),
    "action scale": (
        with_block("action", 0, scale=(0.1, 0.1, 0.1)),
        r"scale is \[0.05, 0.05, 0.05\]",
    ),
    "wrap": (with_block("action", 1, wrap=False), r"wrap is True against False"),
}


@pytest.mark.parametrize("case", MEANING)
def test_change_of_meaning_changes_the_hash_and_is_explained(case: str) -> None:
    other, words = MEANING[case]
    assert other.semantic_hash != ARM.semantic_hash
    with pytest.raises(InterfaceError, match=words) as caught:
        check_same_semantics(ARM, other, "artifact x")
    assert str(caught.value).startswith("artifact x: made for another robot interface")
    assert caught.value.details["found"] == other.semantic_hash


DEPLOYMENT: dict[str, Callable[[], RobotInterface]] = {
    "limit": lambda: with_block("action", 0, high=(0.5, 0.3, 0.3)),
    "rate": lambda: with_block("action", 0, max_rate=(0.1, 0.1, 0.1)),
    "age": lambda: with_block("observation", 0, max_age_s=0.05),
    "topic": lambda: with_block(
        "observation",
        0,
        source=replace(ARM.observation[0].source, topic="arm/joint_states"),
    ),
    "safe action": lambda: replace(ARM, safe_action="zero_velocity"),
    "watchdog": lambda: replace(ARM, downstream_watchdog="controller"),
}


@pytest.mark.parametrize("case", DEPLOYMENT)
def test_change_of_deployment_keeps_the_meaning(case: str) -> None:
    other = DEPLOYMENT[case]()
    assert other.semantic_hash == ARM.semantic_hash
    assert other.deployment_hash != ARM.deployment_hash
    assert explain_mismatch(ARM, other) == ""
    check_same_semantics(ARM, other, "x")


def test_zero_and_minus_zero_mean_the_same() -> None:
    minus = with_block("observation", 2, offset=(0.425, -0.0, 0.0))
    assert minus.semantic_hash == ARM.semantic_hash


def test_slices_cover_observation_and_action_without_gaps() -> None:
    for slices, size in (
        (ARM.observation_slices, ARM.observation_size),
        (ARM.action_slices, ARM.action_size),
    ):
        covered = [
            index for part in slices.values() for index in range(part.start, part.stop)
        ]
        assert covered == list(range(size))


def test_age_of_a_topic_is_that_of_its_strictest_block() -> None:
    other = with_block("observation", 1, max_age_s=0.07)
    assert other.max_age_s("joint_states") == 0.07
    with pytest.raises(
        InterfaceError, match=r"reads topic 'join_states'; did you mean 'joint_states'"
    ):
        ARM.max_age_s("join_states")
