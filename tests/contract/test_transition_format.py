# SPDX-License-Identifier: Apache-2.0
"""Transitions: layout, round trip, the committed sample, and every rule with its message."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qam_ros.contract.errors import TransitionError
from qam_ros.contract.interface import RobotInterface, load_interface
from qam_ros.contract.transition import (
    ActionSource,
    GuardMode,
    Rows,
    decode,
    encode,
    transition_dtype,
    validate_transitions,
)

ARM = load_interface("ur5e_2f85")


@pytest.fixture
def rows(samples: ModuleType, interface: RobotInterface) -> Rows:
    return samples.sample_rows(interface)


def test_sample_of_format_1_still_loads_with_its_meaning(
    data: Path, interface: RobotInterface, rows: Rows
) -> None:
    loaded = decode((data / "transitions_v1.bin").read_bytes(), interface, 6)
    validate_transitions(loaded, interface)
    np.testing.assert_array_equal(loaded, rows)


def test_layout_is_packed_and_little_endian(interface: RobotInterface) -> None:
    dtype = transition_dtype(interface)
    fields = [dtype[name] for name in dtype.names or ()]
    assert dtype.itemsize == sum(field.itemsize for field in fields)
    assert all(field.base.byteorder in "<|=" for field in fields)
    scalars = (
        16 + 8 + 8 + 8 + 8 + 4 + 1 + 8 + 8 + 2 + 1 + 4 + 4 + 4
    )  # four flags at the end
    floats = 2 * interface.observation_size + 2 * interface.action_size + 2
    assert dtype.itemsize == scalars + 4 * floats


@given(st.binary(min_size=0, max_size=3 * 384))
def test_any_memory_survives_decoding_and_encoding(data: bytes) -> None:
    size = transition_dtype(ARM).itemsize
    count = len(data) // size
    whole = data[: count * size]
    assert encode(decode(whole, ARM, count)) == whole


def test_decoded_rows_are_a_copy_that_can_be_changed(
    interface: RobotInterface, rows: Rows
) -> None:
    decoded = decode(encode(rows), interface, len(rows))
    decoded["reward"] = 5
    assert (rows["reward"] == -1).all()


@pytest.mark.parametrize("cut", [1, 148, 887])
def test_truncated_data_is_refused(
    interface: RobotInterface, rows: Rows, cut: int
) -> None:
    with pytest.raises(
        TransitionError, match=r"6 rows of robot 'sample_arm' take 888 .*truncated"
    ):
        decode(encode(rows)[:-cut], interface, 6)


def test_rows_of_another_robot_are_refused(rows: Rows) -> None:
    with pytest.raises(TransitionError, match=r"robot 'ur5e_2f85' has"):
        validate_transitions(rows, ARM)


def test_sample_rows_are_valid_and_so_is_none(
    interface: RobotInterface, rows: Rows
) -> None:
    validate_transitions(rows, interface)
    validate_transitions(rows[:0], interface)


BROKEN: dict[str, tuple[str, Any, str]] = {
    "executed action out of the box": (
        "executed",
        1.001,
        r"field 'executed' leaves \[-1, 1\]",
    ),
    "executed action not finite": (
        "executed",
        np.nan,
        r"field 'executed' must be finite",
    ),
    "observation not finite": (
        "observation",
        np.nan,
        r"field 'observation' must be finite",
    ),
    "proposal not finite": ("proposed", np.inf, r"field 'proposed' must be finite"),
    "reward not finite": ("reward", np.nan, r"field 'reward' must be finite"),
    "negative age": ("ages_s", -0.1, r"field 'ages_s' must be finite and not negative"),
    "unknown source": ("source", 3, r"field 'source' is unknown"),
    "unknown mode": ("guard_mode", 7, r"field 'guard_mode' is unknown"),
    "unknown limit": ("limit_bits", 2048, r"field 'limit_bits' has unknown bits"),
    "flag of two": ("terminated", 2, r"field 'terminated' must be 0 or 1"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_row_that_breaks_a_rule_is_named(
    interface: RobotInterface, rows: Rows, case: str
) -> None:
    field, value, message = BROKEN[case]
    rows[field][2] = value
    with pytest.raises(
        TransitionError, match=rf"transition 2 of 6 .*seq 2.*{message}"
    ) as caught:
        validate_transitions(rows, interface)
    assert caught.value.details["row"] == 2
    assert caught.value.details["field"] == field


def test_missing_next_observation_may_hold_anything(
    interface: RobotInterface, rows: Rows
) -> None:
    rows["next_observation"][2] = np.nan
    validate_transitions(rows, interface)
    rows["has_next"][2] = 1
    with pytest.raises(TransitionError, match="next_observation"):
        validate_transitions(rows, interface)


@pytest.mark.parametrize("field", ["observation", "proposed", "reward", "ages_s"])
def test_masked_row_keeps_whatever_led_to_the_hold(
    interface: RobotInterface, rows: Rows, field: str
) -> None:
    rows[field][5] = np.nan
    assert rows["guard_mode"][5] == GuardMode.HOLD
    validate_transitions(rows, interface)


def test_useless_proposal_does_not_matter_while_a_human_drives(
    interface: RobotInterface, rows: Rows
) -> None:
    rows["proposed"][1] = np.nan
    rows["source"][1] = ActionSource.HUMAN
    validate_transitions(rows, interface)


def test_documentation_lists_every_field_in_order(interface: RobotInterface) -> None:
    page = Path(__file__).parents[2] / "docs" / "formats" / "transition.md"
    rows = re.findall(
        r"^\| (\w+) \| .*(?:u1|u2|u4|u8|i8|f4) \|", page.read_text("utf-8"), re.M
    )
    assert rows == list(transition_dtype(interface).names or ())
