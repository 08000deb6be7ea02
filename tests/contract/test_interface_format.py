# SPDX-License-Identifier: Apache-2.0
"""Robot interface: round trip, the committed sample, and every mistake with its message."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qam_ros.contract.errors import InterfaceError
from qam_ros.contract.interface import (
    RobotInterface,
    load_interface,
    read_interface,
    robot_names,
    write_interface,
)

Spoil = Callable[[dict[str, Any]], Any]
ROBOTS = [name for name in robot_names() if "." not in name]


def test_sample_of_format_1_still_loads_with_its_meaning(
    interface: RobotInterface,
) -> None:
    assert interface.robot == "sample_arm"
    assert (interface.observation_size, interface.action_size) == (4, 3)
    assert interface.observation[0].source.joints == ("shoulder_joint", "elbow_joint")
    assert interface.observation[0].offset == (0.5, 0.0)
    assert interface.observation[0].scale == (2.0, 2.0)
    assert interface.action[0].max_acceleration == (math.inf, math.inf)
    assert interface.action[1].wrap
    assert interface.observation_slices == {
        "joint_position": slice(0, 2),
        "heading": slice(2, 4),
    }
    assert interface.action_slices == {
        "joint_velocity": slice(0, 2),
        "tool_rotation": slice(2, 3),
    }


def test_semantic_hash_of_the_sample_never_changes(interface: RobotInterface) -> None:
    # written down when format 1 was made: a change would orphan every dataset and policy
    assert interface.semantic_hash == (
        "e2f9df4beedc88f72fb42dabf881334cb65efb88761b854aaa4ca6d29bf7f889"
    )


@pytest.mark.parametrize("robot", ROBOTS)
def test_robot_survives_writing_and_reading(robot: str) -> None:
    interface = load_interface(robot)
    text = yaml.safe_dump(write_interface(interface))
    again = read_interface(yaml.safe_load(text))
    assert again == interface
    assert again.deployment_hash == interface.deployment_hash


def _set(*path: Any) -> Spoil:
    *keys, last, value = path

    def spoil(mapping: dict[str, Any]) -> None:
        for key in keys:
            mapping = mapping[key]
        mapping[last] = value

    return spoil


def _drop(*path: Any) -> Spoil:
    *keys, last = path

    def spoil(mapping: dict[str, Any]) -> None:
        for key in keys:
            mapping = mapping[key]
        del mapping[last]

    return spoil


OBSERVED, ACTED = ("observation", 0), ("action", 0)
MISTAKES: dict[str, tuple[Spoil, str]] = {
    "unknown key": (
        _set("safe_actoin", "hold_position"),
        r"unknown key 'safe_actoin'; did you mean 'safe_action'",
    ),
    "unknown key of a block": (
        _set(*OBSERVED, "scal", 1.0),
        r"observation\[0\]: unknown key 'scal'; did you mean 'scale'",
    ),
    "unknown key of a source": (
        _set(*OBSERVED, "source", "topik", "a"),
        r"observation\[0\] 'joint_position', source: unknown key 'topik'; did you mean 'topic'",
    ),
    "missing key": (
        _drop(*ACTED, "max_rate"),
        r"action\[0\]: key 'max_rate' is missing",
    ),
    "newer version": (
        _set("format_version", 2),
        r"interface format 2 is newer than this program, which reads up to 1; update qam_ros",
    ),
    "no version": (_drop("format_version"), r"format_version: expected a whole number"),
    "wrong length": (
        _set(*OBSERVED, "offset", [0.0, 0.0, 0.0]),
        r"offset: expected 2 numbers \(one per element\) or a single one, found 3",
    ),
    "wrong number of elements": (
        _set(*OBSERVED, "elements", ["shoulder"]),
        r"'joint_position': has 1 elements, its size says 2",
    ),
    "wrong number of joints": (
        _set(*OBSERVED, "source", "joints", ["shoulder_joint"]),
        r"1 values arrive where 2 are expected; check size, elements, joints",
    ),
    "not finite": (
        _set(*OBSERVED, "scale", math.nan),
        r"scale\[0\]: expected a finite number, found nan",
    ),
    "infinite position": (
        _set(*ACTED, "high", math.inf),
        r"high\[0\]: expected a finite number, found inf",
    ),
    "number as text": (
        _set(*OBSERVED, "max_age_s", "1e-3"),
        r"max_age_s: expected a number, found '1e-3' \(YAML reads 1e-3 as a text, write 1.0e-3\)",
    ),
    "age of zero": (
        _set(*OBSERVED, "max_age_s", 0),
        r"max_age_s: expected a number above 0, found 0",
    ),
    "rate of zero": (
        _set(*ACTED, "max_rate", 0.0),
        r"max_rate: limits must be above 0",
    ),
    "scale of zero": (
        _set(*ACTED, "scale", [1.0, 0.0]),
        r"a scale of 0 throws its value away",
    ),
    "low above high": (
        _set(*ACTED, "low", [0.0, 2.0]),
        r"'joint_velocity': low 2.0 is above high 1.0 for 'elbow'; swap or correct them",
    ),
    "duplicate block": (
        _set("observation", 1, "name", "joint_position"),
        r"observation blocks: name 'joint_position' is given twice",
    ),
    "duplicate element": (
        _set(*OBSERVED, "elements", ["elbow", "elbow"]),
        r"elements: name 'elbow' is given twice",
    ),
    "unknown transform": (
        _set("observation", 1, "transform", "yaw_cos_sinus"),
        r"unknown transform 'yaw_cos_sinus'; did you mean 'yaw_cos_sin'",
    ),
    "unknown mode": (
        _set(*ACTED, "mode", "deltas"),
        r"mode: unknown value 'deltas'; did you mean 'delta'",
    ),
    "unknown unit": (
        _set(*ACTED, "unit", "deg/s"),
        r"unit: unknown value 'deg/s'; did you mean",
    ),
    "unknown safe action": (
        _set("safe_action", "hold_positions"),
        r"safe_action: unknown value 'hold_positions'; did you mean 'hold_position'",
    ),
    "unknown type": (
        _set(*OBSERVED, "source", "type", "sensor_msgs/msg/JointStates"),
        r"unsupported message type 'sensor_msgs/msg/JointStates'; did you mean 'sensor_msgs/msg/JointState'",
    ),
    "unknown field": (
        _set(*OBSERVED, "source", "field", "positions"),
        r"'sensor_msgs/msg/JointState' has no usable field 'positions'; did you mean 'position'",
    ),
    "absolute topic": (
        _set(*OBSERVED, "source", "topic", "/joint_states"),
        r"topic '/joint_states' must be relative",
    ),
    "joints forgotten": (
        _drop(*OBSERVED, "source", "joints"),
        r"position needs its 'joints' by name",
    ),
    "joints too many": (
        _set("observation", 1, "source", "joints", ["a"]),
        r"pose.orientation has no joints; remove 'joints'",
    ),
    "delta without a measured value": (
        _drop("action", 1, "measured"),
        r"mode 'delta' adds to a measured value; give 'measured'",
    ),
    "measured but not observed": (
        _set("action", 1, "measured", "topic", "tool_pse"),
        r"no observation block reads its measured topic 'tool_pse'.*did you mean 'tool_pose'",
    ),
    "transform that gets the wrong size": (
        _set("action", 1, "transform", "quaternion_wxyz"),
        r"transform 'quaternion_wxyz' takes 4 values, it gets 1",
    ),
    "transform that cannot be undone": (
        lambda mapping: mapping["action"][1].update(
            size=4,
            elements=["x", "y", "z", "w"],
            transform="quaternion_wxyz",
            measured_transform=None,
        ),
        r"transform 'quaternion_wxyz' cannot be undone, so it cannot make a command",
    ),
    "output that never expires": (
        _set("downstream_watchdog", None),
        r"std_msgs/msg/Float64MultiArray data commands never expire if the guard dies",
    ),
    "unstamped observation": (
        _set(
            "observation",
            1,
            "source",
            {"topic": "twist", "type": "geometry_msgs/msg/Twist", "field": "linear"},
        ),
        r"geometry_msgs/msg/Twist has no time stamp, so its age is unknown",
    ),
    "topic with two types": (
        _set("observation", 0, "source", "topic", "tool_pose"),
        r"topic 'tool_pose' has type sensor_msgs/msg/JointState in one block and geometry_msgs",
    ),
    "no blocks": (_set("action", []), r"action: expected a list of blocks, found \[\]"),
    "flag as text": (
        _set("action", 1, "wrap", "yes"),
        r"wrap: expected true or false, found 'yes'",
    ),
    "robot without name": (_set("robot", ""), r"robot: expected a text, found ''"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_refused_with_a_message_that_helps(
    mapping: dict[str, Any], mistake: str
) -> None:
    spoil, message = MISTAKES[mistake]
    spoil(mapping)
    with pytest.raises(InterfaceError, match=message) as caught:
        read_interface(mapping, "robot/sample.yaml")
    assert str(caught.value).startswith("robot/sample.yaml")


def test_two_blocks_may_not_write_the_same_numbers(mapping: dict[str, Any]) -> None:
    second = copy.deepcopy(mapping["action"][1]) | {"name": "again"}
    mapping["action"].append(second)
    with pytest.raises(
        InterfaceError,
        match=r"'again': target_pose/pose.orientation\[0\] is already written",
    ):
        read_interface(mapping)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", r"not valid YAML: .*the file may be truncated"),
        ("robot: a\nrobot: b", r"key 'robot' is given twice"),
        ("a: &x [1]\nb: *x", r"aliases are not allowed"),
        ("- 1\n- 2", r"expected a mapping of names, found list"),
        ("", r"expected a mapping of names, found NoneType"),
        ("a: !!python/object/apply:os.system [ls]", r"not valid YAML"),
    ],
)
def test_file_that_is_no_plain_mapping_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(InterfaceError, match=message) as caught:
        load_interface(file)
    assert "broken.yaml" in str(caught.value)
