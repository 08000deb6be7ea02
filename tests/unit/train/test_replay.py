# SPDX-License-Identifier: Apache-2.0
"""Growing replay and the share of online rows."""

import pytest
import torch

from qam_ros.contract.errors import DatasetError
from qam_train.data.dataset import FlatDataset
from qam_train.data.replay import OnlineRows, Replay


def _rows(first, count, *, end=False):
    index = torch.arange(first, first + count, dtype=torch.float32)
    terminals = torch.zeros(count)
    terminals[-1] = float(end)
    return OnlineRows(
        observations=index[:, None],
        actions=index[:, None] / 1e4,
        rewards=index,
        masks=torch.ones(count),
        terminals=terminals,
        valid=torch.ones(count),
        next_observations=index[-1:, None] + 0.5 if end else torch.zeros((0, 1)),
    )


def _offline(count=50):
    rows = _rows(0, count, end=True)
    end_index = torch.full((count,), -1)
    end_index[-1] = 0
    return FlatDataset(
        rows.observations,
        rows.actions,
        rows.rewards,
        rows.masks,
        rows.terminals,
        rows.valid,
        rows.next_observations,
        end_index,
    )


def test_rows_appended_in_pieces_equal_rows_appended_at_once():
    pieces, whole = Replay(_offline()), Replay(_offline())
    for first, count, end in (
        (100, 3, False),
        (103, 1, True),
        (200, 1500, False),
        (1700, 700, True),
    ):
        pieces.append(_rows(first, count, end=end))
    whole.append(_rows(100, 4, end=True))
    whole.append(_rows(200, 2200, end=True))
    first, second = pieces.online.view(), whole.online.view()
    for name in FlatDataset.__dataclass_fields__:
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert len(pieces) == 50 + 2204


def test_newest_row_is_not_sampled_until_its_next_observation_is_known():
    replay = Replay(_offline(), online_fraction=1.0)
    replay.append(_rows(100, 4))
    assert replay.online.view().starts(2) == 2
    replay.append(_rows(104, 1, end=True))
    assert replay.online.view().starts(2) == 4


def test_batch_has_the_asked_share_of_online_rows_in_random_order():
    replay = Replay(_offline(), online_fraction=0.25)
    replay.append(_rows(1000, 40, end=True))
    batch = replay.sample(64, 3, 0.99, torch.Generator().manual_seed(0))
    online = batch.observations.flatten() >= 1000
    assert online.sum() == 16
    assert 0 < online[:32].sum() < 16


def test_every_row_is_equally_likely_without_a_share():
    replay = Replay(_offline(50))
    replay.append(_rows(1000, 150, end=True))
    batch = replay.sample(20_000, 1, 0.99, torch.Generator().manual_seed(0))
    share = (batch.observations >= 1000).float().mean().item()
    assert share == pytest.approx(0.75, abs=0.012)  # four standard errors


def test_share_waits_for_a_first_online_chunk():
    replay = Replay(_offline(), online_fraction=0.5)
    replay.append(_rows(1000, 2))
    batch = replay.sample(16, 3, 0.99, torch.Generator().manual_seed(0))
    assert (batch.observations < 1000).all()


def test_online_rows_alone_are_enough():
    empty = Replay(_offline(1), online_fraction=0.5)
    empty.append(_rows(1000, 9, end=True))
    batch = empty.sample(8, 3, 0.99, torch.Generator().manual_seed(0))
    assert (batch.observations >= 1000).all()


def test_chunks_do_not_run_from_offline_into_online_rows():
    replay = Replay(_offline(5), online_fraction=None)
    replay.append(_rows(1000, 5, end=True))
    batch = replay.sample(256, 3, 0.99, torch.Generator().manual_seed(0))
    assert (batch.valid == 1).all()


def test_missing_next_observation_is_refused_before_anything_is_stored():
    replay = Replay(_offline())
    rows = _rows(100, 4, end=True)
    broken = OnlineRows(**{**vars(rows), "next_observations": torch.zeros((0, 1))})
    with pytest.raises(DatasetError, match="each of the 1 segment ends, got 0"):
        replay.append(broken)
    assert replay.online.size == 0


def test_impossible_share_is_refused():
    with pytest.raises(DatasetError, match=r"fraction in \[0, 1\], got 1.5"):
        Replay(_offline(), online_fraction=1.5)
