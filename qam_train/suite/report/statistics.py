# SPDX-License-Identifier: Apache-2.0
"""Means, interquartile means and performance profiles over runs, with bootstrap intervals.

A run is one seed of one task; scores come as one array (seeds,) per task. The bootstrap is stratified:
seeds are drawn anew within each task, tasks stay (Agarwal et al., arXiv 2108.13264). It is seeded, so
that the same results give the same report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

Array = NDArray[np.float64]
Statistic = Callable[[Sequence[Array]], Array]

LEVEL = 0.95
RESAMPLES = 2000
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A statistic and its interval.

    Args:
        value: of all runs.
        low, high: percentile bootstrap interval at LEVEL; None where no task has two seeds.
        runs: number of runs it is taken over.
    """

    value: float
    low: float | None
    high: float | None
    runs: int


def mean(groups: Sequence[Array]) -> Array:
    """Mean over tasks of the mean over seeds.

    Args:
        groups: one array (..., seeds) per task.

    Returns:
        (...), the leading axes.
    """
    return np.mean([group.mean(axis=-1) for group in groups], axis=0)


def interquartile_mean(groups: Sequence[Array]) -> Array:
    """Mean of the middle half of all runs: a quarter is cut at either end (rounded down).

    Args:
        groups: one array (..., seeds) per task.

    Returns:
        (...), the leading axes.
    """
    runs = np.concatenate(groups, axis=-1)
    return np.asarray(trim_mean(runs, 0.25, axis=-1))


def share_above(thresholds: Array) -> Statistic:
    """The performance profile: share of all runs that score above each threshold.

    Args:
        thresholds: (T,).

    Returns:
        statistic of groups (..., seeds) with values (..., T).
    """

    def statistic(groups: Sequence[Array]) -> Array:
        runs = np.concatenate(groups, axis=-1)
        above = runs[..., None, :] > thresholds[:, None]
        return np.asarray(above.mean(axis=-1))

    return statistic


def resampled(groups: Sequence[Array], resamples: int = RESAMPLES) -> list[Array]:
    """Seeds drawn with replacement within each task.

    Args:
        groups: one array (seeds,) per task.
        resamples: R.

    Returns:
        one array (R, seeds) per task.
    """
    generator = np.random.default_rng(SEED)
    return [
        group[generator.integers(0, len(group), (resamples, len(group)))]
        for group in groups
    ]


def bounds(
    groups: Sequence[Array], statistic: Statistic, resamples: int = RESAMPLES
) -> tuple[Array, Array] | None:
    """Percentile bootstrap interval of a statistic; None where no task has two seeds."""
    if max(len(group) for group in groups) < 2:
        return None
    values = statistic(resampled(groups, resamples))
    edge = 50.0 * (1.0 - LEVEL)
    low, high = np.percentile(values, [edge, 100.0 - edge], axis=0)
    return low, high


def estimate(
    groups: Sequence[Array],
    statistic: Statistic = mean,
    resamples: int = RESAMPLES,
) -> Estimate:
    """A statistic of runs with its stratified bootstrap interval.

    Args:
        groups: one array (seeds,) per task, none empty.
        statistic: of groups (..., seeds) with values (...).
        resamples: of the bootstrap.
    """
    found = bounds(groups, statistic, resamples)
    low, high = (None, None) if found is None else map(float, found)
    runs = sum(len(group) for group in groups)
    return Estimate(float(statistic(groups)), low, high, runs)
