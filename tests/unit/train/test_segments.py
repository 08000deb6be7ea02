# SPDX-License-Identifier: Apache-2.0
"""RQL's chunk sampler and the released ring replay."""

import pytest
import torch

from qam_ros.contract.errors import DatasetError
from qam_train.agents.registry import METHODS
from qam_train.config import NetworkConfig
from qam_train.data.dataset import FlatDataset
from qam_train.data.ring import RingReplay, RingRows
from qam_train.data.segments import Segments, segment_batch, segment_windows


def _data(ends=(3, 4, 9)):
    rows = ends[-1] + 1
    terminals = torch.zeros(rows)
    terminals[list(ends)] = 1.0
    count = torch.arange(float(rows))
    return FlatDataset.from_arrays(
        count[:, None],
        count[:, None] / 100,
        count,
        1.0 - terminals,
        terminals,
        count[:, None] + 1,
    )


def _batch(start, h, episode=0, discount=0.5):
    data = _data()
    window = segment_windows(
        data, Segments.of(data), torch.tensor([episode]), torch.tensor([start]), h
    )
    return segment_batch(window, discount)


def test_every_row_but_the_last_of_an_episode_is_a_start():
    episode, start = Segments.of(_data()).starts()
    assert start.tolist() == [0, 1, 2, 5, 6, 7, 8]
    assert episode.tolist() == [0, 0, 0, 2, 2, 2, 2]


def test_episodes_are_drawn_equally_whatever_their_length():
    data = _data((1, 99))
    episode, start = Segments.of(data).draw(4000, torch.Generator().manual_seed(0))
    assert episode.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert start[episode == 0].unique().tolist() == [0]
    inside = start[episode == 1]
    assert (inside.min().item(), inside.max().item()) == (2, 98)


def test_chunk_inside_an_episode_is_plain():
    batch = _batch(0, 2)
    assert batch.rewards.item() == 0 + 0.5 * 1
    assert batch.next_observations.item() == 2
    assert (batch.valid.item(), batch.masks.item()) == (1.0, 1.0)
    assert batch.inside.tolist() == [[1.0, 1.0]]


def test_chunk_that_ends_with_its_episode_is_valid_and_bootstraps_at_the_last_row():
    batch = _batch(2, 2)
    assert batch.rewards.item() == 2 + 0.5 * 3
    assert batch.next_observations.item() == 3  # not 4: the row is repeated
    assert (batch.valid.item(), batch.masks.item()) == (1.0, 0.0)


def test_chunk_past_the_end_is_not_valid_but_keeps_its_executed_actions():
    batch = _batch(2, 4)
    assert batch.rewards.item() == 2 + 0.5 * 3
    assert batch.valid.item() == 0.0
    assert batch.inside.tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_rql_clones_the_executed_actions_of_a_chunk_past_the_end():
    method = METHODS["rql"]
    config = method.config(
        chunk=4,
        flow_steps=2,
        critics=2,
        actor=NetworkConfig((8,)),
        critic=NetworkConfig((8,)),
    )
    agent = method.agent.init(config, 1, 1, torch.Generator().manual_seed(0))
    assert agent.action_weights(_batch(2, 4)).tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_dataset_without_two_rows_in_an_episode_is_refused():
    with pytest.raises(DatasetError, match="an episode of two rows, got none"):
        Segments.of(_data((0, 1, 2))).draw(4, torch.Generator())


def _rows(first, count):
    value = torch.arange(float(first), float(first + count))
    return RingRows(
        value[:, None],
        value[:, None],
        value,
        value * 0 + 1,
        value * 0,
        value[:, None] + 1,
    )


def test_ring_overwrites_the_oldest_row_and_never_draws_its_last():
    ring = RingReplay(_rows(0, 2), 4)
    found = []
    for value in range(2, 8):
        ring.append(_rows(value, 1))
        found.append((ring.size, ring.pointer))
    assert found == [(3, 3), (3, 0), (3, 1), (3, 2), (3, 3), (3, 0)]
    assert ring.rows.rewards.tolist() == [4.0, 5.0, 6.0, 7.0]
    assert ring.view().rewards.tolist() == [4.0, 5.0, 6.0]
    assert ring.view().next_observations(torch.tensor([2])).item() == 7.0


def test_dataset_that_fills_the_ring_is_refused():
    with pytest.raises(DatasetError, match="capacity 2 must exceed the 2 rows"):
        RingReplay(_rows(0, 2), 2)
