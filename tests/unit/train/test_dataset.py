# SPDX-License-Identifier: Apache-2.0
"""Chunk sampler: hand-written episodes, a slow second implementation, and the padding option."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qam_ros.contract.errors import DatasetError
from qam_train.data.dataset import ChunkBatch, FlatDataset

GAMMA = 0.9


def _dataset(segments, rewards=None, masks=None, valid=None):
    """Rows 0, 1, 2, ...: observation = row, action = row / 1000, next observation at ends = row + 0.5."""
    n = sum(segments)
    terminals = torch.zeros(n)
    terminals[torch.tensor(segments).cumsum(0) - 1] = 1
    index = torch.arange(n, dtype=torch.float32)
    ended = terminals > 0
    return FlatDataset(
        observations=index[:, None],
        actions=index[:, None] / 1000,
        rewards=torch.ones(n)
        if rewards is None
        else torch.tensor(rewards, dtype=torch.float32),
        masks=torch.ones(n)
        if masks is None
        else torch.tensor(masks, dtype=torch.float32),
        terminals=terminals,
        valid=torch.ones(n)
        if valid is None
        else torch.tensor(valid, dtype=torch.float32),
        end_observations=(index[ended] + 0.5)[:, None],
        end_index=torch.where(ended, ended.cumsum(0) - 1, -1),
    )


def _chunk(data, start, h=3, padding=None):
    first = None if padding is None else torch.tensor([padding])
    batch = data.chunks(torch.tensor([start]), h, GAMMA, first)
    return {name: getattr(batch, name)[0] for name in ChunkBatch.__dataclass_fields__}


def test_chunk_inside_an_episode():
    chunk = _chunk(_dataset([5], rewards=[1, 2, 3, 4, 5]), 1)
    assert chunk["rewards"].item() == pytest.approx(2 + GAMMA * 3 + GAMMA**2 * 4)
    assert (chunk["valid"], chunk["masks"]) == (1, 1)
    assert chunk["observations"].item() == 1
    assert chunk["next_observations"].item() == 4
    torch.testing.assert_close(
        chunk["actions"].flatten(), torch.tensor([1.0, 2.0, 3.0]) / 1000
    )


def test_chunk_that_ends_with_the_episode_is_valid_and_sees_the_stored_observation():
    chunk = _chunk(_dataset([5, 4]), 2)
    assert (chunk["valid"], chunk["masks"]) == (1, 1)
    assert chunk["next_observations"].item() == 4.5


def test_chunk_across_a_truncated_end_weighs_nothing():
    chunk = _chunk(_dataset([5, 4]), 3)
    assert chunk["valid"] == 0
    assert chunk["masks"] == 1
    assert chunk["rewards"].item() == pytest.approx(1 + GAMMA)
    assert chunk["next_observations"].item() == 4.5


def test_truncated_end_keeps_the_bootstrap_and_terminated_end_stops_it():
    truncated = _chunk(_dataset([5, 4]), 2)
    terminated = _chunk(_dataset([5, 4], masks=[1, 1, 1, 1, 0, 1, 1, 1, 1]), 2)
    assert (truncated["masks"], truncated["valid"]) == (1, 1)
    assert (terminated["masks"], terminated["valid"]) == (0, 1)


def test_goal_inside_an_episode_stops_the_bootstrap_but_not_the_reward():
    chunk = _chunk(_dataset([5], masks=[1, 1, 0, 1, 1]), 1)
    assert (chunk["masks"], chunk["valid"]) == (0, 1)
    assert chunk["rewards"].item() == pytest.approx(1 + GAMMA + GAMMA**2)


@pytest.mark.parametrize("bad", [1, 2, 3])
def test_chunk_that_touches_an_untrusted_row_weighs_nothing(bad):
    valid = [0 if row == bad else 1 for row in range(6)]
    data = _dataset([6], valid=valid)
    assert _chunk(data, 1)["valid"] == 0
    assert _chunk(data, 1, padding=3)["valid"] == 0
    assert _chunk(data, 0, h=bad)["valid"] == 1


def test_padding_keeps_a_chunk_across_a_terminated_end():
    data = _dataset([5, 4], masks=[1, 1, 1, 1, 0, 1, 1, 1, 1])
    chunk = _chunk(data, 3, padding=6)
    assert (chunk["valid"], chunk["masks"]) == (1, 0)
    assert chunk["rewards"].item() == pytest.approx(1 + GAMMA)
    torch.testing.assert_close(
        chunk["actions"].flatten(), torch.tensor([3.0, 4.0, 8.0]) / 1000
    )


def test_padding_leaves_truncated_ends_and_inner_chunks_alone():
    data = _dataset([5, 4])
    assert _chunk(data, 3, padding=6)["valid"] == 0
    assert torch.equal(
        _chunk(data, 1, padding=6)["actions"], _chunk(data, 1)["actions"]
    )


def test_padding_does_not_rescue_an_untrusted_row_before_the_end():
    data = _dataset(
        [5, 4], masks=[1, 1, 1, 1, 0, 1, 1, 1, 1], valid=[1, 1, 1, 0, 1, 1, 1, 1, 1]
    )
    assert _chunk(data, 3, padding=6)["valid"] == 0


def test_padding_ignores_untrusted_rows_after_the_end():
    data = _dataset(
        [5, 4], masks=[1, 1, 1, 1, 0, 1, 1, 1, 1], valid=[1, 1, 1, 1, 1, 0, 1, 1, 1]
    )
    assert _chunk(data, 3, padding=6)["valid"] == 1


def _slow_chunk(data, start, h):
    """The official rule, row by row."""
    total, mask, valid, ended, row = 0.0, 1.0, 1.0, False, start
    for i in range(h):
        mask = min(mask, data.masks[start + i].item())
        valid = min(valid, data.valid[start + i].item(), 0.0 if ended else 1.0)
        if not ended:
            row = start + i
            total += GAMMA**i * data.rewards[row].item()
        ended = ended or data.terminals[start + i].item() == 1
    following = row + 0.5 if data.terminals[row] == 1 else row + 1.0
    return total, mask, valid, following


@settings(max_examples=60, deadline=None)
@given(
    segments=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    h=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_chunks_equal_the_rule_applied_row_by_row(segments, h, seed):
    n = sum(segments)
    generator = torch.Generator().manual_seed(seed)
    flags = (torch.rand((2, n), generator=generator) > 0.3).float()
    rewards = torch.randn(n, generator=generator).tolist()
    data = _dataset(segments, rewards, flags[0].tolist(), flags[1].tolist())
    for start in range(data.starts(h)):
        chunk = _chunk(data, start, h)
        total, mask, valid, following = _slow_chunk(data, start, h)
        assert chunk["rewards"].item() == pytest.approx(
            total, rel=1e-5, abs=1e-5
        )  # float32 sums
        assert (chunk["masks"], chunk["valid"]) == (mask, valid)
        assert chunk["next_observations"].item() == following


def test_starts_cover_every_legal_row_and_no_other():
    data = _dataset([4, 3])
    assert [data.starts(h) for h in (1, 3, 7, 8)] == [7, 5, 1, 0]
    batch = data.sample(2000, 3, GAMMA, torch.Generator().manual_seed(0))
    assert sorted(set(batch.observations.flatten().tolist())) == [0, 1, 2, 3, 4]


def test_same_seed_draws_the_same_batch():
    data = _dataset([9, 8], masks=[1] * 8 + [0] * 9)
    first, second = (
        data.sample(32, 4, GAMMA, torch.Generator().manual_seed(3), pad_terminated=True)
        for _ in range(2)
    )
    for name in ChunkBatch.__dataclass_fields__:
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_too_few_rows_for_a_chunk_say_so():
    with pytest.raises(DatasetError, match="a chunk needs 5 rows, got 4"):
        _dataset([4]).sample(2, 5, GAMMA, torch.Generator())


def test_rows_with_their_own_next_observation_keep_only_the_differing_ones():
    data = _dataset([3, 2])
    following = data.next_observations(torch.arange(5))
    again = FlatDataset.from_arrays(
        data.observations,
        data.actions,
        data.rewards,
        data.masks,
        data.terminals,
        following,
    )
    assert again.end_observations.flatten().tolist() == [2.5, 4.5]
    assert torch.equal(again.next_observations(torch.arange(5)), following)
