# SPDX-License-Identifier: Apache-2.0
"""Learning curves as small multiples: a panel per method, ours and the published one in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from qam_train.report.style import BLUE, GREY, VERMILION, new_grid
from qam_train.suite.report.labels import label
from qam_train.suite.report.learning import Point, aligned, curve, online_start
from qam_train.suite.report.run import BEHAVIOUR, OFFLINE, Task
from qam_train.suite.report.scores import Scores
from qam_train.suite.report.statistics import mean

WIDTH = 5  # panels in a row
PANEL_IN = 2.3, 1.75
SMALL = 8.5
CLONE = (0, (4, 1.5, 1, 1.5))  # dashes and dots, of the clone's level
X_LABEL = "offline updates, then environment steps online"
Y_LABEL = "success [%]"


def method_curves(scores: Scores, tasks: Sequence[Task]) -> Figure:
    """A panel per method, success averaged over some tasks.

    Args:
        scores: of the run.
        tasks: one task, or those of a domain.
    """
    methods = scores.run.methods
    columns = min(WIDTH, len(methods))
    rows = -(-len(methods) // columns)
    figure, axes = _grid(rows, columns)
    for panel, method in zip(axes, methods, strict=False):
        _panel(panel, scores, method, tasks)
        panel.set_title(label(method), loc="left", fontsize=10, fontweight="bold")
    for panel in axes[len(methods) :]:
        panel.set_axis_off()
        above = axes[axes.index(panel) - columns]
        above.xaxis.set_tick_params(labelbottom=True)
    _same_steps(axes)
    _outside(figure, scores, tasks)
    return figure


def task_curves(scores: Scores, domain: str) -> Figure:
    """A row per method and a column per task of a domain."""
    methods, tasks = scores.run.methods, scores.tasks_of(domain)
    figure, axes = _grid(len(methods), len(tasks))
    for row, method in enumerate(methods):
        for column, task in enumerate(tasks):
            panel = axes[row * len(tasks) + column]
            _panel(panel, scores, method, [task])
            title = f"{label(method)}, task {task[1]}"
            panel.set_title(title, loc="left", fontsize=10, fontweight="bold")
    _same_steps(axes)
    _outside(figure, scores, tasks)
    return figure


def _grid(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    width, height = PANEL_IN
    return new_grid(
        rows,
        columns,
        width=max(6.0, width * columns + 0.4),
        height=height * rows + 0.8,
        share=True,
    )


def _panel(panel: Axes, scores: Scores, method: str, tasks: Sequence[Task]) -> None:
    """Ours with its interval, published with its standard error, where online begins."""
    start = online_start(scores.run, tasks)
    cells = [cell for task in tasks for cell in scores.run.of(method, task)]
    online = any(cell.config.online_steps for cell in cells)
    if online and start:
        panel.axvline(start, color="#444444", linestyle=":", linewidth=1.2)
    _published(panel, scores, method, tasks, start, online=online)
    points = curve(scores.run, method, tasks, start)
    clone = scores.groups(method, tasks, BEHAVIOUR)
    if clone is not None:
        panel.axhline(100 * float(mean(clone)), color=GREY, linestyle=CLONE, lw=1.2)
    _ours(panel, [point for point in points if point.phase != BEHAVIOUR])
    if not points:
        panel.text(
            *(0.5, 0.5),
            "no result yet",
            transform=panel.transAxes,
            ha="center",
            fontsize=SMALL,
            color="#444444",
        )
    panel.set_ylim(-3, 103)
    panel.set_yticks([0, 50, 100])
    panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.tick_params(labelsize=SMALL)


def _ours(panel: Axes, points: Sequence[Point]) -> None:
    if not points:
        return
    places = [point.place for point in points]
    values = np.array([point.score.value for point in points])
    low, high = (
        np.array([np.nan if edge is None else edge for edge in edges])
        for edges in zip(*((p.score.low, p.score.high) for p in points), strict=True)
    )
    panel.fill_between(
        places, 100 * low, 100 * high, color=BLUE, alpha=0.22, linewidth=0
    )
    panel.plot(
        places, 100 * values, color=BLUE, marker="o", markersize=2.6, linewidth=1.5
    )


def _published(
    panel: Axes,
    scores: Scores,
    method: str,
    tasks: Sequence[Task],
    start: int,
    *,
    online: bool,
) -> None:
    found = scores.published.curve(method, tasks)
    if found is None:
        level = scores.published.level(method, tasks, OFFLINE)
        if level is not None:
            panel.axhline(
                100 * level.success, color=VERMILION, linestyle="--", linewidth=1.3
            )
        return
    places, kept = aligned(found, start)
    keep = (places <= start) | online
    success, spread = 100 * kept.success[keep], 100 * kept.spread[keep]
    places = places[keep]
    panel.fill_between(
        places, success - spread, success + spread, color=VERMILION, alpha=0.2, lw=0
    )
    panel.plot(
        places, success, color=VERMILION, linestyle="--", linewidth=1.2, zorder=3
    )


def _same_steps(axes: Sequence[Axes]) -> None:
    """One step axis for all panels, from 0 to the last step of any."""
    ends = [panel.dataLim.x1 for panel in axes]
    last = max((end for end in ends if np.isfinite(end)), default=0.0)
    axes[0].set_xlim(0.0, 1.03 * last if last > 0.0 else 1.0)


def _outside(figure: Figure, scores: Scores, tasks: Sequence[Task]) -> None:
    """Axis names and one legend for all panels."""
    figure.supxlabel(X_LABEL, fontsize=10)
    figure.supylabel(Y_LABEL, fontsize=10)
    cells = [cell for cell in scores.run.cells if cell.task in tasks]
    entries = [
        Line2D(
            [], [], color=BLUE, marker="o", markersize=3, label="ours, 95 % interval"
        )
    ]
    published = _published_name(scores, tasks)
    if published:
        entries.append(Line2D([], [], color=VERMILION, linestyle="--", label=published))
    if any(cell.config.behaviour_updates for cell in cells):
        entries.append(
            Line2D([], [], color=GREY, linestyle=CLONE, label="behaviour clone, ours")
        )
    if any(cell.config.online_steps for cell in cells):
        entries.append(
            Line2D([], [], color="#444444", linestyle=":", label="online begins")
        )
    figure.legend(
        handles=entries,
        loc="outside upper center",
        ncols=len(entries),
        frameon=False,
        fontsize=9,
    )


def _published_name(scores: Scores, tasks: Sequence[Task]) -> str:
    """What the legend calls the published results; empty where there are none."""
    methods = scores.run.methods
    if any(scores.published.curve(method, tasks) for method in methods):
        return "published, standard error"
    if any(scores.published.level(method, tasks, OFFLINE) for method in methods):
        return "published after 1M offline updates"
    return ""
