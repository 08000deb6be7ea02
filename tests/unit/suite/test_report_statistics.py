# SPDX-License-Identifier: Apache-2.0
"""Means, interquartile means, profiles and bootstrap intervals against hand-computed and scipy values."""

import numpy as np
import pytest
from scipy import stats

from qam_train.suite.report.statistics import (
    bounds,
    estimate,
    interquartile_mean,
    mean,
    resampled,
    share_above,
)


def test_the_mean_weighs_tasks_alike_however_many_seeds_they_have() -> None:
    groups = [np.array([0.2, 0.4]), np.array([1.0, 1.0, 1.0, 0.6])]
    assert mean(groups) == pytest.approx((0.3 + 0.9) / 2)


def test_the_interquartile_mean_is_the_mean_of_the_middle_half() -> None:
    groups = [np.array([0.0, 0.7, 0.1, 0.2]), np.array([0.3, 1.0, 0.5, 0.4])]
    # sorted: 0 .1 | .2 .3 .4 .5 | .7 1
    assert interquartile_mean(groups) == pytest.approx(0.35)


def test_the_interquartile_mean_is_scipys_trimmed_mean_over_all_runs() -> None:
    generator = np.random.default_rng(1)
    groups = [generator.random(7) for _ in range(5)]
    expected = stats.trim_mean(np.concatenate(groups), 0.25)
    assert interquartile_mean(groups) == pytest.approx(expected, rel=1e-12)


def test_one_outlier_moves_the_mean_but_not_the_interquartile_mean() -> None:
    scores = np.full(8, 0.5)
    with_outlier = scores.copy()
    with_outlier[0] = 0.0
    assert mean([with_outlier]) < mean([scores])
    assert interquartile_mean([with_outlier]) == interquartile_mean([scores]) == 0.5


def test_the_profile_counts_runs_strictly_above_each_threshold() -> None:
    groups = [np.array([0.0, 0.5]), np.array([0.5, 1.0])]
    share = share_above(np.array([0.0, 0.49, 0.5, 0.99]))(groups)
    np.testing.assert_allclose(share, [0.75, 0.75, 0.25, 0.25])


def test_the_interval_of_a_mean_is_that_of_normal_theory_for_many_seeds() -> None:
    scores = np.random.default_rng(2).normal(0.5, 0.1, 200)
    found = estimate([scores])
    half = 1.96 * scores.std(ddof=1) / np.sqrt(200)
    assert found.value == pytest.approx(scores.mean())
    assert found.low is not None
    assert found.high is not None
    # 2000 draws place each quantile within about 6 % of the half width
    assert found.low == pytest.approx(scores.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(scores.mean() + half, abs=0.1 * half)


def test_the_interval_is_scipys_percentile_bootstrap() -> None:
    scores = np.array([0.1, 0.35, 0.4, 0.42, 0.8, 0.9])
    found = estimate([scores])
    expected = stats.bootstrap(
        (scores,),
        np.mean,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    # quantile noise of 2000 draws at this width
    assert found.low == pytest.approx(expected.low, abs=0.02)
    assert found.high == pytest.approx(expected.high, abs=0.02)


def test_the_bootstrap_is_stratified_tasks_are_never_exchanged() -> None:
    groups = [np.zeros(5), np.ones(5)]
    found = estimate(groups, interquartile_mean)
    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)
    for held, group in zip(resampled(groups), groups, strict=True):
        assert (held == group[0]).all()


def test_seeds_are_drawn_with_replacement_within_their_task() -> None:
    held = resampled([np.arange(4.0)], 500)[0]
    assert held.shape == (500, 4)
    assert set(np.unique(held)) == {0.0, 1.0, 2.0, 3.0}
    assert any(len(set(row)) < 4 for row in held)


def test_a_single_seed_has_no_interval() -> None:
    found = estimate([np.array([0.3]), np.array([0.5])])
    assert (found.value, found.low, found.high, found.runs) == (0.4, None, None, 2)
    assert bounds([np.array([0.3])], mean) is None


def test_the_same_runs_give_the_same_interval() -> None:
    scores = [np.random.default_rng(3).random(5)]
    assert estimate(scores) == estimate(scores)


def test_the_interval_of_a_profile_encloses_it() -> None:
    groups = [np.random.default_rng(4).random(8) for _ in range(3)]
    statistic = share_above(np.linspace(0, 0.9, 10))
    found = bounds(groups, statistic)
    assert found is not None
    low, high = found
    assert (low <= statistic(groups)).all()
    assert (statistic(groups) <= high).all()
