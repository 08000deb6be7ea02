# SPDX-License-Identifier: Apache-2.0
"""What is in a dataset: counts, returns, actions, and where the robot has been."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qam_ros.contract.blocks import ObservationBlock
from qam_ros.contract.dataset import Dataset, DatasetManifest
from qam_ros.contract.interface import RobotInterface
from sim.import_npz import segment_lengths

HISTOGRAM_BINS = 20


@dataclass(frozen=True)
class Summary:
    """Figures of a dataset.

    Attributes:
        rows: number of rows.
        segments: number of segments.
        valid: share of rows that may be trained on.
        goal_rows: share of rows with mask 0.
        successes: segments with a row of mask 0.
        length: {min, mean, max} rows of a segment.
        segment_return: {min, mean, max} sum of rewards of a segment.
        actions: by element name: {mean, std, low, high, at_bound}: the last is the share of rows
            at -1 or 1.
        action_histogram: by element name: counts in `HISTOGRAM_BINS` equal bins of [-1, 1].
    """

    rows: int
    segments: int
    valid: float
    goal_rows: float
    successes: int
    length: dict[str, float]
    segment_return: dict[str, float]
    actions: dict[str, dict[str, float]]
    action_histogram: dict[str, list[int]]


def summarise(dataset: Dataset, interface: RobotInterface) -> Summary:
    """Figures of a dataset.

    Args:
        dataset: the rows.
        interface: the robot they belong to.
    """
    lengths = segment_lengths(dataset)
    starts = np.cumsum(lengths) - lengths
    goals = np.add.reduceat(dataset.masks == 0, starts)
    names = action_names(interface)
    columns = dict(zip(names, dataset.actions.T, strict=True))
    return Summary(
        rows=len(dataset),
        segments=dataset.segments,
        valid=float(dataset.valid.mean()),
        goal_rows=float((dataset.masks == 0).mean()),
        successes=int(np.count_nonzero(goals)),
        length=_range(lengths),
        segment_return=_range(
            np.add.reduceat(dataset.rewards.astype(np.float64), starts)
        ),
        actions={name: _action_figures(column) for name, column in columns.items()},
        action_histogram={
            name: [int(n) for n in np.histogram(column, HISTOGRAM_BINS, (-1.0, 1.0))[0]]
            for name, column in columns.items()
        },
    )


def action_names(interface: RobotInterface) -> list[str]:
    """`block.element` of each action element; only the block where it has one element."""
    return [
        block.name if block.size == 1 else f"{block.name}.{element}"
        for block in interface.action
        for element in block.elements
    ]


def describe(summary: Summary, manifest: DatasetManifest) -> str:
    """The figures as text for a terminal."""
    meta: Mapping[str, Any] = manifest.meta
    lines = [
        f"robot {manifest.interface.robot}, world {meta.get('world', '?')}, "
        f"task {meta.get('task', '?')}, versions {meta.get('versions', '?')}",
        f"{summary.rows} rows in {summary.segments} segments, {summary.successes} reach the goal; "
        f"goal rows {100 * summary.goal_rows:.2f} %, valid {100 * summary.valid:.1f} %",
        "segment length " + _three(summary.length),
        "segment return " + _three(summary.segment_return),
        f"{'action':<26} {'mean':>7} {'std':>6} {'low':>6} {'high':>6} {'at bound':>9}  histogram",
    ]
    for name, figures in summary.actions.items():
        lines.append(
            f"{name:<26} {figures['mean']:7.3f} {figures['std']:6.3f} {figures['low']:6.2f} "
            f"{figures['high']:6.2f} {100 * figures['at_bound']:7.1f} %  "
            + _bars(summary.action_histogram[name])
        )
    return "\n".join(lines)


def plot_coverage(dataset: Dataset, interface: RobotInterface, path: Path) -> None:
    """Draw where positions have been, the actions, and the segments' returns and lengths.

    Args:
        dataset: the rows.
        interface: position blocks (elements x and y) give the maps.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    maps = [
        block for block in interface.observation if block.elements[:2] == ("x", "y")
    ]
    columns = max(len(maps), 3)
    figure = Figure(figsize=(4.2 * columns, 7.6), layout="constrained")
    grid = figure.subplots(2, columns, squeeze=False)
    for axes, block in zip(grid[0], maps, strict=False):
        positions = physical_observation(block, dataset.observations, interface)
        image = axes.hist2d(
            positions[:, 0], positions[:, 1], bins=60, norm="log", cmap="viridis"
        )
        figure.colorbar(image[3], ax=axes, label="rows")
        goal = dataset.masks == 0
        axes.plot(*positions[goal, :2].T, ".", ms=3, color="red", label="goal rows")
        axes.set(
            title=block.name, xlabel=f"x [{block.unit}]", ylabel=f"y [{block.unit}]"
        )
        axes.set_aspect("equal", adjustable="datalim")
        if goal.any():
            axes.legend(loc="upper right", fontsize=8)
    lengths = segment_lengths(dataset)
    returns = np.add.reduceat(
        dataset.rewards.astype(np.float64), np.cumsum(lengths) - lengths
    )
    for name, column in zip(action_names(interface), dataset.actions.T, strict=True):
        grid[1][0].hist(column, bins=60, range=(-1, 1), histtype="step", label=name)
    grid[1][0].set(title="actions", xlabel="normalised", ylabel="rows", yscale="log")
    grid[1][0].legend(fontsize=8)
    grid[1][1].hist(returns, bins=40)
    grid[1][1].set(
        title="return of a segment", xlabel="sum of rewards", ylabel="segments"
    )
    grid[1][2].hist(lengths, bins=40)
    grid[1][2].set(title="length of a segment", xlabel="rows", ylabel="segments")
    for axes in [*grid[0][len(maps) :], *grid[1][3:]]:
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def physical_observation(
    block: ObservationBlock,
    observations: NDArray[np.float32],
    interface: RobotInterface,
) -> NDArray[np.float64]:
    """Values of a block in its unit, offset and scale undone: (N, size)."""
    values = observations[:, interface.observation_slices[block.name]].astype(
        np.float64
    )
    return values / block.scale_array + block.offset_array


def _range(values: NDArray[Any]) -> dict[str, float]:
    return {
        "min": float(values.min()),
        "mean": float(values.mean()),
        "max": float(values.max()),
    }


def _three(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in figures.items())


def _action_figures(column: NDArray[np.float32]) -> dict[str, float]:
    return {
        "mean": float(column.mean()),
        "std": float(column.std()),
        "low": float(column.min()),
        "high": float(column.max()),
        "at_bound": float((np.abs(column) >= 1.0).mean()),
    }


def _bars(counts: list[int]) -> str:
    blocks = " ▁▂▃▄▅▆▇█"
    top = max(*counts, 1)
    return "".join(blocks[-(-8 * count // top)] for count in counts)
