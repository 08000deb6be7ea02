# SPDX-License-Identifier: Apache-2.0
"""Success at the end by method and domain, interquartile means and performance profiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qam_train.report.style import BLUE, GREY, VERMILION, new_figure, new_grid, titled
from qam_train.suite.report.labels import label
from qam_train.suite.report.panels import CLONE, Y_LABEL
from qam_train.suite.report.run import OFFLINE, ONLINE
from qam_train.suite.report.scores import Row, Scores
from qam_train.suite.report.statistics import (
    Array,
    Estimate,
    bounds,
    estimate,
    interquartile_mean,
    mean,
    share_above,
)

COLOURS = {OFFLINE: BLUE, ONLINE: VERMILION}
MARKERS = {OFFLINE: "o", ONLINE: "s"}
NAMES = {OFFLINE: "end of offline training", ONLINE: "end of online training"}
THRESHOLDS = np.linspace(0.0, 0.99, 100)
WIDTH = 5


def phases(scores: Scores) -> list[str]:
    """Phases whose end any cell has reached."""
    return [
        phase
        for phase in (OFFLINE, ONLINE)
        if any(cell.at_end(phase) is not None for cell in scores.run.cells)
    ]


def final_figure(scores: Scores) -> Figure:
    """A panel per domain: success of every method at the end of its phases."""
    domains, methods = scores.run.domains, scores.run.methods
    columns = min(WIDTH, len(domains))
    rows = -(-len(domains) // columns)
    height = rows * (0.26 * len(methods) + 0.6) + 0.9
    width = 9.0 if columns == 1 else 2.3 * columns + 1.0
    figure, axes = new_grid(rows, columns, width=width, height=height)
    for place, (panel, domain) in enumerate(zip(axes, domains, strict=False)):
        _domain_panel(panel, scores, domain)
        panel.set_title(domain, loc="left", fontsize=10, fontweight="bold")
        named = place % columns == 0
        panel.set_yticks(
            range(len(methods)), [label(m) if named else "" for m in methods]
        )
        panel.set_ylim(len(methods) - 0.5, -0.5)
        panel.set_xlim(-3, 103)
        panel.tick_params(labelsize=9)
    for panel in axes[len(domains) :]:
        panel.set_axis_off()
    figure.supxlabel(Y_LABEL, fontsize=10)
    figure.legend(
        handles=_final_legend(scores),
        loc="outside upper center",
        ncols=3 if columns > 3 else 2,
        frameon=False,
        fontsize=9,
    )
    return figure


def _domain_panel(panel: Axes, scores: Scores, domain: str) -> None:
    clones = []
    apart = 0.16 if len(phases(scores)) > 1 else 0.0
    for place, row in enumerate(scores.domain_rows(domain)):
        for phase, shift in ((OFFLINE, -apart), (ONLINE, apart)):
            score, level = _ends(row, phase)
            if score is not None:
                _with_interval(panel, score, place + shift, phase)
            if level is not None:
                panel.plot(
                    100 * level,
                    place + shift,
                    marker="D",
                    markersize=4.5,
                    markerfacecolor="none",
                    markeredgecolor=COLOURS[phase],
                    linestyle="none",
                )
        if row.clone is not None:
            clones.append(row.clone.value)
    if clones:
        panel.axvline(100 * clones[0], color=GREY, linestyle=CLONE, linewidth=1.3)


def _ends(row: Row, phase: str) -> tuple[Estimate | None, float | None]:
    if phase == OFFLINE:
        score, level = row.offline, row.published_offline
    else:
        score, level = row.online, row.published_online
    return score, None if level is None else level.success


def _with_interval(panel: Axes, score: Estimate, place: float, phase: str) -> None:
    colour = COLOURS[phase]
    if score.low is not None and score.high is not None:
        panel.plot(
            [100 * score.low, 100 * score.high], [place, place], color=colour, lw=2.2
        )
    panel.plot(
        100 * score.value,
        place,
        marker=MARKERS[phase],
        markersize=5,
        color=colour,
        linestyle="none",
    )


def _final_legend(scores: Scores) -> list[Line2D]:
    reached = phases(scores)
    entries = [
        Line2D(
            [],
            [],
            color=COLOURS[p],
            marker=MARKERS[p],
            label=f"{NAMES[p]}, 95 % interval",
        )
        for p in reached
    ]
    if any(cell.config.behaviour_updates for cell in scores.run.cells):
        entries.append(
            Line2D([], [], color=GREY, linestyle=CLONE, label="behaviour clone")
        )
    if scores.published.kind != "none":
        entries += [
            Line2D(
                [],
                [],
                marker="D",
                markerfacecolor="none",
                markeredgecolor=COLOURS[phase],
                linestyle="none",
                label=f"published, {NAMES[phase]}",
            )
            for phase in reached
            if phase == OFFLINE or scores.published.kind == "qam"
        ]
    return entries


def aggregate_rows(scores: Scores, phase: str) -> list[tuple[str, Estimate, Estimate]]:
    """Method, interquartile mean and mean over the tasks that all methods share; best first."""
    methods, tasks = scores.common(phase)
    rows = []
    for method in methods:
        groups = scores.groups(method, tasks, phase)
        if groups is not None:
            middle = estimate(groups, interquartile_mean)
            rows.append((method, middle, estimate(groups, mean)))
    return sorted(rows, key=lambda row: -row[1].value)


def aggregate_figure(scores: Scores, reached: Sequence[str]) -> Figure:
    """Interquartile mean (filled, with interval) and mean (hollow) by method.

    Args:
        scores: of the run.
        reached: phases that have tasks in common; a panel each.
    """
    held = [(phase, aggregate_rows(scores, phase)) for phase in reached]
    most = max(len(rows) for _, rows in held)
    figure, axes = new_figure(
        len(held), width=4.6 * len(held) + 0.6, height=0.26 * most + 1.6
    )
    for panel, (phase, rows) in zip(axes, held, strict=True):
        for place, (_, middle, average) in enumerate(rows):
            _with_interval(panel, middle, place, phase)
            panel.plot(
                100 * average.value,
                place,
                marker="o",
                markersize=6,
                markerfacecolor="none",
                markeredgecolor="#444444",
                linestyle="none",
            )
        panel.set_yticks(range(len(rows)), [label(row[0]) for row in rows])
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.set_xlim(-3, 103)
        titled(panel, NAMES[phase], Y_LABEL)
    entries = [
        Line2D(
            [], [], color=BLUE, marker="o", label="interquartile mean, 95 % interval"
        ),
        Line2D(
            [],
            [],
            marker="o",
            linestyle="none",
            markerfacecolor="none",
            markeredgecolor="#444444",
            label="mean",
        ),
    ]
    figure.legend(
        handles=entries,
        loc="outside upper center",
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    return figure


def profile(
    scores: Scores, phase: str
) -> dict[str, tuple[Array, tuple[Array, Array] | None]]:
    """Method to the share of its runs above each of THRESHOLDS, and that share's interval."""
    methods, tasks = scores.common(phase)
    found = {}
    for method in methods:
        groups = scores.groups(method, tasks, phase)
        if groups is not None:
            statistic = share_above(THRESHOLDS)
            found[method] = statistic(groups), bounds(groups, statistic)
    return found


def profile_figure(scores: Scores, phase: str) -> Figure:
    """Performance profiles: a panel per method, the other methods in grey behind it."""
    held = profile(scores, phase)
    columns = min(WIDTH, len(held))
    rows = -(-len(held) // columns)
    figure, axes = new_grid(
        rows,
        columns,
        width=max(6.0, 2.3 * columns + 0.4),
        height=1.75 * rows + 0.6,
        share=True,
    )
    for panel, method in zip(axes, held, strict=False):
        _profile_panel(panel, held, method, COLOURS[phase])
    for panel in axes[len(held) :]:
        panel.set_axis_off()
        axes[axes.index(panel) - columns].xaxis.set_tick_params(labelbottom=True)
    figure.supxlabel(f"success threshold [%], {NAMES[phase]}", fontsize=10)
    figure.supylabel("runs above it [%]", fontsize=10)
    return figure


def _profile_panel(
    panel: Axes,
    held: dict[str, tuple[Array, tuple[Array, Array] | None]],
    method: str,
    colour: str,
) -> None:
    x = 100 * THRESHOLDS
    for other, (share, _) in held.items():
        if other != method:
            panel.step(x, 100 * share, where="post", color="#CCCCCC", linewidth=0.7)
    share, interval = held[method]
    if interval is not None:
        low, high = interval
        panel.fill_between(
            x, 100 * low, 100 * high, step="post", color=colour, alpha=0.25, linewidth=0
        )
    panel.step(x, 100 * share, where="post", color=colour)
    panel.set_title(label(method), loc="left", fontsize=10, fontweight="bold")
    panel.set_xlim(0, 100)
    panel.set_ylim(-3, 103)
    ticks: Sequence[int] = (0, 50, 100)
    panel.set_xticks(ticks)
    panel.set_yticks(ticks)
    panel.tick_params(labelsize=8.5)
