# SPDX-License-Identifier: Apache-2.0
"""Transitions become the same dataset whatever order they came in; segments end where they must."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qam_ros.contract.dataset import Dataset, from_transitions, validate_dataset
from qam_ros.contract.errors import TransitionError
from qam_ros.contract.interface import load_interface
from qam_ros.contract.transition import Rows, transition_dtype

BASE = load_interface("mobile_base")
PERIOD_NS = 10**8


def make_rows(count: int, session: int = 1, start_ns: int = 10**9) -> Rows:
    """Consecutive rows of one open episode; the observation counts, (k, k)."""
    rows = np.zeros(count, transition_dtype(BASE))
    index = np.arange(count)
    rows["session"] = session
    rows["seq"] = index
    rows["observation_stamp_ns"] = start_ns + index * PERIOD_NS
    rows["episode"] = session
    rows["step"] = index
    rows["observation"] = index[:, None]
    rows["executed"] = index[:, None] / 100
    rows["guard_mode"] = 2
    return rows


def end(rows: Rows, index: int, **flags: int) -> None:
    """Let row ``index`` carry its next observation, (0.5, 0.5) further."""
    rows["has_next"][index] = 1
    rows["next_observation"][index] = rows["observation"][index] + 0.5
    for name, value in flags.items():
        rows[name][index] = value


def assert_equal(found: Dataset, expected: Dataset) -> None:
    for field in dataclasses.fields(Dataset):
        if field.name == "extras":
            for name in expected.extras:
                np.testing.assert_array_equal(found.extras[name], expected.extras[name])
        else:
            np.testing.assert_array_equal(
                getattr(found, field.name), getattr(expected, field.name)
            )


def test_terminated_episode_stops_the_bootstrap_and_truncated_does_not() -> None:
    rows = make_rows(5)
    end(rows, 1, terminated=1)
    end(rows, 4, truncated=1)
    dataset = from_transitions(rows, BASE)
    assert dataset.masks.tolist() == [1, 0, 1, 1, 1]
    assert dataset.terminals.tolist() == [0, 1, 0, 0, 1]
    assert dataset.valid.tolist() == [1, 1, 1, 1, 1]
    np.testing.assert_array_equal(dataset.end_observations, [[1.5, 1.5], [4.5, 4.5]])
    validate_dataset(dataset, BASE, "test")


def test_order_of_arrival_does_not_matter() -> None:
    first, second = make_rows(6, session=9), make_rows(4, session=2, start_ns=10**10)
    end(first, 5, truncated=1)
    end(second, 3, truncated=1)
    rows = np.concatenate([first, second])
    expected = from_transitions(rows, BASE)
    assert expected.extras["session"][:, 0].tolist() == [9] * 6 + [2] * 4
    shuffled = np.random.default_rng(0).permutation(rows)
    assert_equal(from_transitions(shuffled, BASE), expected)


def test_masked_row_is_kept_and_not_valid() -> None:
    rows = make_rows(4)
    end(rows, 3, truncated=1)
    rows["masked"][1] = 1
    rows["guard_mode"][1] = 3
    rows["observation"][1] = np.nan
    dataset = from_transitions(rows, BASE)
    assert len(dataset) == 4
    assert dataset.valid.tolist() == [0, 0, 1, 1], "row 0 has no next observation"
    np.testing.assert_array_equal(dataset.observations[1], [0, 0])
    validate_dataset(dataset, BASE, "test")


def test_gap_in_the_numbering_ends_a_segment_whose_next_observation_is_unknown() -> (
    None
):
    rows = make_rows(6)[[0, 1, 3, 4, 5]]
    end(rows, 4, truncated=1)
    dataset = from_transitions(rows, BASE)
    assert dataset.terminals.tolist() == [0, 1, 0, 0, 1]
    assert dataset.valid.tolist() == [1, 0, 1, 1, 1]
    assert dataset.masks.tolist() == [1, 1, 1, 1, 1]


def test_gap_in_time_ends_a_segment() -> None:
    rows = make_rows(4)
    end(rows, 3, truncated=1)
    rows["observation_stamp_ns"][2:] += PERIOD_NS
    dataset = from_transitions(rows, BASE)
    assert dataset.terminals.tolist() == [0, 1, 0, 1]
    assert dataset.valid.tolist() == [1, 0, 1, 1]


def test_jitter_below_half_a_period_is_no_gap() -> None:
    rows = make_rows(4)
    end(rows, 3, truncated=1)
    rows["observation_stamp_ns"] += np.array([0, 4, 0, 4]) * PERIOD_NS // 10
    assert from_transitions(rows, BASE).terminals.tolist() == [0, 0, 0, 1]


def test_known_next_observation_before_a_gap_keeps_the_row_valid() -> None:
    rows = make_rows(6)[[0, 1, 3, 4, 5]]
    end(rows, 1)
    end(rows, 4, truncated=1)
    dataset = from_transitions(rows, BASE)
    assert dataset.terminals.tolist() == [0, 1, 0, 0, 1]
    assert dataset.valid.tolist() == [1, 1, 1, 1, 1]
    np.testing.assert_array_equal(dataset.end_observations[0], [1.5, 1.5])


def test_new_episode_starts_a_new_segment() -> None:
    rows = make_rows(4)
    rows["episode"][2:] = 7
    end(rows, 1, truncated=1)
    dataset = from_transitions(rows, BASE)
    assert dataset.terminals.tolist() == [0, 1, 0, 1]


def test_newest_row_of_an_open_episode_waits_for_its_next_observation() -> None:
    dataset = from_transitions(make_rows(3), BASE)
    assert dataset.terminals.tolist() == [0, 0, 1]
    assert dataset.valid.tolist() == [1, 1, 0]
    np.testing.assert_array_equal(dataset.end_observations, [[2, 2]])


def test_terminated_row_without_next_observation_stays_valid() -> None:
    rows = make_rows(3)
    rows["terminated"][2] = 1
    dataset = from_transitions(rows, BASE)
    assert dataset.valid.tolist() == [1, 1, 1]
    assert dataset.masks.tolist() == [1, 1, 0]


def test_key_that_comes_twice_is_refused() -> None:
    rows = make_rows(3)
    rows["seq"][2] = 1
    with pytest.raises(
        TransitionError, match=r"session 0101.* seq 1 comes twice"
    ) as caught:
        from_transitions(rows, BASE)
    assert caught.value.details["seq"] == 1


def test_equal_numbers_of_different_sessions_are_different_rows() -> None:
    rows = np.concatenate([make_rows(2, session=1), make_rows(2, session=2)])
    assert len(from_transitions(rows, BASE)) == 4


def test_no_rows_give_an_empty_dataset() -> None:
    assert len(from_transitions(make_rows(0), BASE)) == 0


def test_dataset_does_not_share_memory_with_the_rows() -> None:
    rows = make_rows(3)
    dataset = from_transitions(rows, BASE)
    rows["executed"] = 0.7
    rows["observation"] = 0.7
    assert dataset.actions[2, 0] == np.float32(0.02)
    assert dataset.observations[2, 0] == 2
