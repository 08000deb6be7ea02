# SPDX-License-Identifier: Apache-2.0
"""The trust region of the adjoint family over the updates: path KL, its budget, and lambda."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    MaxNLocator,
    StrMethodFormatter,
)

from qam_train.agents.bam import BAMConfig
from qam_train.config import MethodConfig
from qam_train.metrics import STEP, read_metrics
from qam_train.report.style import BLUE, ORANGE, VERMILION, new_grid
from qam_train.suite.report.labels import label
from qam_train.suite.report.learning import online_start
from qam_train.suite.report.run import OFFLINE, ONLINE, Cell, Run, Task
from qam_train.suite.report.scores import Scores
from qam_train.suite.report.statistics import Array

ESTIMATE, INNER, AVERAGE = "dual/kl_estimate", "dual/kl_inner", "dual/kl_average"
BUDGET, LAMBDA, MULTIPLIER = "dual/budget", "dual/lambda", "dual/multiplier"
KL = frozenset({ESTIMATE, INNER})
LIMIT = 400  # points of one line; more are thinned


@dataclass(frozen=True)
class Trace:
    """What one cell logged of its trust region.

    Args:
        place: (P,) steps on the axis of the evaluations.
        values: metric name to (P,); NaN where a row lacks it. Lambda of a fixed temperature is what
            fixed_temperature says.
        kl: metric that the path KL is read from: without the last step where no other is logged.
        fixed: how lambda follows from tau, where it is fixed; else empty.
    """

    place: Array
    values: dict[str, Array]
    kl: str = ESTIMATE
    fixed: str = ""


def read_trace(cell: Cell, start: int) -> Trace | None:
    """Trust region of a cell; None where it logs no path KL.

    Args:
        cell: the cell.
        start: where online begins on the axis.
    """
    rows = [
        row
        for row in read_metrics(cell.path / "metrics.jsonl")
        if row.get("stage") in (OFFLINE, ONLINE) and not row.keys().isdisjoint(KL)
    ]
    if not rows:
        return None
    rows = rows[:: -(-len(rows) // LIMIT)]
    names = (ESTIMATE, INNER, AVERAGE, BUDGET, LAMBDA, MULTIPLIER)
    shift = start - cell.config.offline_updates
    place = [row[STEP] + shift * (row["stage"] == ONLINE) for row in rows]
    values = {name: np.array([_number(row, name) for row in rows]) for name in names}
    fixed = ""
    if not np.isfinite(values[LAMBDA]).any():
        number, fixed = fixed_temperature(cell.config.agent)
        values[LAMBDA] = np.full(len(rows), number)
    kl = ESTIMATE if any(ESTIMATE in row for row in rows) else INNER
    return Trace(np.array(place, dtype=np.float64), values, kl, fixed)


def fixed_temperature(agent: MethodConfig) -> tuple[float, str]:
    """Lambda with which lambda * path KL - Q is what a method without a trust region minimises.

    1 / tau; n / tau in BAM, whose cost has no step size; NaN where there is no tau.
    """
    tau = float(getattr(agent, "tau", 0.0))
    if tau <= 0.0:
        return float("nan"), ""
    if isinstance(agent, BAMConfig):
        return agent.flow_steps / tau, "fixed: n/τ"
    return 1.0 / tau, "fixed: 1/τ"


def _number(row: dict[str, Any], name: str) -> float:
    value = float(row.get(name, np.nan))
    return value if np.isfinite(value) and value > 0.0 else float("nan")


def traces(run: Run, tasks: Sequence[Task], start: int) -> dict[str, list[Trace]]:
    """Methods that log a path KL on some tasks, with a trace per task and seed."""
    held = {
        method: [
            trace
            for task in tasks
            for cell in run.of(method, task)
            if (trace := read_trace(cell, start)) is not None
        ]
        for method in run.methods
    }
    return {method: many for method, many in held.items() if many}


def trust_region_figure(scores: Scores, tasks: Sequence[Task]) -> Figure | None:
    """Path KL with its budget (above), lambda and multiplier (below) on a domain; a column per method.

    None where no method logs a path KL.
    """
    start = online_start(scores.run, tasks)
    held = traces(scores.run, tasks, start)
    if not held:
        return None
    columns = len(held)
    figure, axes = new_grid(
        2, columns, width=max(4.5, 2.6 * columns + 0.6), height=4.6, share=False
    )
    for column, (method, many) in enumerate(held.items()):
        above, below = axes[column], axes[columns + column]
        above.set_title(label(method), loc="left", fontsize=10, fontweight="bold")
        _kl_panel(above, many)
        _lambda_panel(below, many)
        for panel in (above, below):
            panel.set_xlim(left=0)
            panel.xaxis.set_major_locator(MaxNLocator(3))
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
            panel.tick_params(which="both", labelsize=8.5)
            if any(trace.place.max() > start for trace in many):
                panel.axvline(start, color="#444444", linestyle=":", linewidth=1.2)
    _same_scale(axes[:columns])
    _same_scale(axes[columns:])
    axes[0].set_ylabel("path KL per period [nats]")
    axes[columns].set_ylabel("λ, multiplier m")
    figure.supxlabel("offline updates, then environment steps online", fontsize=10)
    handles, labels = axes[_most_lines(axes[:columns])].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=min(3, columns),  # a row of three is wider than two columns
        frameon=False,
        fontsize=9,
    )
    return figure


def _most_lines(axes: Sequence[Axes]) -> int:
    counts = [len(panel.get_legend_handles_labels()[1]) for panel in axes]
    return counts.index(max(counts))


def _plain_log(panel: Axes) -> None:
    """A logarithmic axis with plain numbers, also where it spans less than a decade."""
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    panel.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))


def _kl_panel(panel: Axes, many: Sequence[Trace]) -> None:
    _plain_log(panel)
    if many[0].kl == INNER:
        panel.set_title(
            "without the last step", loc="right", fontsize=9, color="#444444"
        )
    followed = any(np.isfinite(trace.values[AVERAGE]).any() for trace in many)
    for number, trace in enumerate(many):
        first = number == 0
        panel.plot(
            trace.place,
            trace.values[trace.kl],
            color=ORANGE,
            alpha=0.4 if followed else 0.8,
            linewidth=0.7 if followed else 1.0,
            label="estimate of one batch" if first else None,
        )
        if np.isfinite(trace.values[AVERAGE]).any():
            panel.plot(
                trace.place,
                trace.values[AVERAGE],
                color=BLUE,
                linewidth=1.3,
                label="moving average, a line per task and seed" if first else None,
            )
        if np.isfinite(trace.values[BUDGET]).any():
            panel.plot(
                trace.place,
                trace.values[BUDGET],
                color="#222222",
                linestyle="--",
                linewidth=1.2,
                zorder=4,
                label="budget" if first else None,
            )


def _lambda_panel(panel: Axes, many: Sequence[Trace]) -> None:
    """Lambda and the multiplier that the rule moves; a fixed temperature: the same loss up to a factor."""
    _plain_log(panel)
    lines = (
        (LAMBDA, "λ", VERMILION, "-"),
        (MULTIPLIER, "multiplier m", BLUE, "--"),
    )
    for trace in many:
        for metric, name, colour, style in lines:
            if np.isfinite(trace.values[metric]).any():
                panel.plot(
                    trace.place,
                    trace.values[metric],
                    color=colour,
                    linestyle=style,
                    linewidth=1.3,
                    label=name if trace is many[0] else None,
                )
    if many[0].fixed:
        panel.set_title(many[0].fixed, loc="right", fontsize=9, color="#444444")
    elif panel.lines:
        panel.legend(loc="best", frameon=False, fontsize=8.5)


def _same_scale(axes: Sequence[Axes]) -> None:
    """The same limits for all panels that hold lines."""
    limits = [panel.get_ylim() for panel in axes if panel.lines]
    if limits:
        low, high = min(low for low, _ in limits), max(high for _, high in limits)
        for panel in axes:
            panel.set_ylim(low, high)
