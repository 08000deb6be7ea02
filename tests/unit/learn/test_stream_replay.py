# SPDX-License-Identifier: Apache-2.0
"""Rows of the stream become the consecutive rows that the chunk sampler needs."""

import numpy as np
import pytest
import torch

from qam_ros.contract.conversion import from_transitions
from qam_train.data.dataset import FlatDataset
from qam_train.data.replay import Replay
from qam_train.data.stream_replay import StreamReplay


def make_stream(interface, **settings):
    empty = torch.zeros(0)
    offline = FlatDataset.from_arrays(
        torch.zeros((0, interface.observation_size)),
        torch.zeros((0, interface.action_size)),
        empty,
        empty,
        empty,
        torch.zeros((0, interface.observation_size)),
    )
    return StreamReplay(Replay(offline), **settings)


def fields(data):
    return {
        name: getattr(data, name).numpy()
        for name in (
            "observations",
            "actions",
            "rewards",
            "masks",
            "terminals",
            "valid",
            "end_observations",
        )
    }


def assert_equal(found, expected):
    for name, value in fields(expected).items():
        np.testing.assert_array_equal(fields(found)[name], value, err_msg=name)


def test_rows_one_by_one_give_the_dataset_of_the_contract(interface, rows_of):
    rows = rows_of([5, 1, 4])
    rows["terminated"][5], rows["truncated"][5] = 1, 0
    rows["masked"][7] = 1
    stream = make_stream(interface)
    for row in range(rows.size):
        stream.extend(rows[row : row + 1])
    expected = FlatDataset.from_contract(from_transitions(rows, interface))
    assert_equal(stream.replay.online.view(), expected)
    assert stream.counters.masked == 1


def test_order_of_arrival_inside_the_window_does_not_matter(interface, rows_of):
    rows = rows_of([20, 30, 10])
    expected = make_stream(interface)
    expected.extend(rows)
    shuffled = np.random.default_rng(0).permutation(rows.size)
    stream = make_stream(interface)
    for row in shuffled:
        stream.extend(rows[row : row + 1])
    assert_equal(stream.replay.online.view(), expected.replay.online.view())
    assert stream.counters.gaps == stream.counters.late == 0


def test_newest_row_waits_for_its_successor(interface, rows_of):
    rows = rows_of([4])
    stream = make_stream(interface)
    stream.extend(rows[:2])
    assert stream.replay.online.size == 1
    stream.extend(rows[2:])
    assert stream.replay.online.size == 4


def test_a_chunk_that_reaches_a_missing_row_has_no_weight(interface, rows_of):
    rows = rows_of([12])
    stream = make_stream(interface, reorder_window=3)
    stream.extend(np.delete(rows, 5))
    view = stream.replay.online.view()
    assert stream.counters.gaps == 1
    assert len(view) == 11
    batch = view.chunks(torch.arange(9), 3, 0.99)
    # rows 0-4 and 6-11; row 4 lost its next observation, chunks over the hole start at 2, 3, 4
    np.testing.assert_array_equal(batch.valid.numpy(), [1, 1, 0, 0, 0, 1, 1, 1, 1])
    assert batch.next_observations[1, 0] == 4


def test_a_row_after_its_gap_was_given_up_is_kept_as_its_own_segment(
    interface, rows_of
):
    rows = rows_of([12])
    stream = make_stream(interface, reorder_window=3)
    stream.extend(np.delete(rows, 5))
    stream.extend(rows[5:6])
    view = stream.replay.online.view()
    assert (stream.counters.late, len(view)) == (1, 12)
    assert (view.terminals[-1], view.valid[-1]) == (1, 0)


def test_a_new_guard_session_ends_the_segment_of_the_one_before(interface, rows_of):
    first, second = rows_of([6]), rows_of([5], session=2)
    stream = make_stream(interface)
    stream.extend(first[:3])
    stream.extend(second)
    stream.extend(first[3:4])
    view = stream.replay.online.view()
    np.testing.assert_array_equal(view.terminals.numpy(), [0, 0, 1, 0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(view.valid.numpy(), [1, 1, 0, 1, 1, 1, 1, 1, 0])


def test_masked_rows_are_kept_finite_and_never_trusted(interface, rows_of):
    rows = rows_of([5])
    rows["masked"][2] = 1
    rows["observation"][2] = np.nan
    rows["reward"][2] = np.inf
    stream = make_stream(interface)
    stream.extend(rows)
    view = stream.replay.online.view()
    np.testing.assert_array_equal(view.valid.numpy(), [1, 0, 0, 1, 1])
    assert torch.isfinite(view.observations).all()
    assert torch.isfinite(view.rewards).all()


@pytest.mark.parametrize("field", ["observation", "executed", "reward"])
@pytest.mark.parametrize("split", [False, True])
def test_numbers_that_are_not_finite_are_never_trained_on(
    interface, rows_of, field, split
):
    """Nor is the row before them, whose next observation they would be."""
    rows = rows_of([8])
    rows[field][4] = np.nan
    stream = make_stream(interface)
    for part in np.split(rows, 8) if split else [rows]:
        stream.extend(part)
    online = stream.replay.online.view()
    invalid = [3, 4] if field == "observation" else [4]
    assert np.flatnonzero(online.valid.numpy() == 0).tolist() == invalid
    assert torch.isfinite(online.observations).all()


def test_a_stored_next_observation_that_is_not_finite_is_never_trained_on(
    interface, rows_of
):
    rows = rows_of([4, 4])
    assert rows["has_next"][3]
    rows["next_observation"][3, 0] = np.inf
    stream = make_stream(interface)
    stream.extend(rows)
    assert stream.replay.online.view().valid[3] == 0


def test_steps_without_a_row_are_counted(interface, rows_of):
    rows = rows_of([6, 6])
    lost = np.delete(rows, [2, 3, 6])
    lost["seq"] = np.arange(lost.size)
    stream = make_stream(interface)
    stream.extend(lost)
    assert stream.counters.unplayed == 3
