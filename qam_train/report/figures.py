# SPDX-License-Identifier: Apache-2.0
"""The figures of the report, each from measured arrays; no figure computes a result of its own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qam_train.report.curves import smooth
from qam_train.report.record import Episodes, RealTime, SuccessRate, Swap
from qam_train.report.style import (
    BLUE,
    GREEN,
    GREY,
    STAGE_COLOURS,
    STAGE_NAMES,
    VERMILION,
    new_figure,
    note,
    titled,
)


def success_figure(success: Mapping[str, SuccessRate]) -> Figure:
    """Success of the three policies with 95 % intervals."""
    figure, (axes,) = new_figure(height=2.7)
    names = [name for name in STAGE_NAMES if name in success]
    for row, name in enumerate(names):
        rate = success[name]
        axes.barh(row, rate.mean, color=STAGE_COLOURS[name], height=0.58, alpha=0.9)
        error = [[rate.mean - rate.low], [rate.high - rate.mean]]
        axes.errorbar(
            rate.mean, row, xerr=error, color="black", capsize=5, linewidth=1.4
        )
        text = (
            f"{100 * rate.mean:.0f} %   [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
        )
        axes.text(rate.high + 0.015, row, text, va="center", fontweight="bold")
    axes.set_yticks(range(len(names)), [STAGE_NAMES[name] for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.22)
    axes.set_xticks(
        np.linspace(0, 1, 6), [f"{round(100 * x)} %" for x in np.linspace(0, 1, 6)]
    )
    axes.set_xlabel(
        "episodes in which the cube reached its goal (bar: share, whisker: 95 % interval)"
    )
    axes.grid(visible=False, axis="y")
    return figure


def _band(axes: Axes, name: str, rate: SuccessRate, place: str) -> None:
    """An evaluated success rate with its interval, behind the episodes of the robot."""
    colour = STAGE_COLOURS[name]
    axes.axhspan(rate.low, rate.high, color=colour, alpha=0.10, linewidth=0)
    axes.axhline(rate.mean, color=colour, linewidth=1.2, linestyle="--")
    transform = axes.get_yaxis_transform()
    axes.text(1.005, rate.mean, name, transform=transform, color=colour, va=place)


def online_figure(
    episodes: Episodes, swaps: tuple[Swap, ...], success: Mapping[str, SuccessRate]
) -> Figure:
    """Success while the robot learns, over executed steps, with the weight swaps."""
    figure, (axes,) = new_figure(height=3.6)
    compared = {
        name: success[name] for name in ("offline", "online") if name in success
    }
    for name, rate in compared.items():
        lower = rate.mean < max(other.mean for other in compared.values())
        _band(axes, name, rate, "top" if lower else "bottom")
    for swap in swaps:
        if swap.env_step is not None:
            axes.axvline(
                swap.env_step, ymax=0.92, color=GREY, linewidth=0.8, linestyle=":"
            )
            axes.text(
                swap.env_step,
                1.13,
                f"v{swap.version}",
                fontsize=8,
                ha="center",
                color=GREY,
            )
    if len(episodes.end_step):
        x, y = episodes.end_step, episodes.success
        window = max(3, min(15, len(y) // 4))
        axes.plot(
            x, y, linestyle="none", marker="|", markersize=9, color="black", alpha=0.55
        )
        axes.plot(x, smooth(y, window), color="black")
        title = f"episodes of the robot itself; line: mean of the last {window}"
        titled(axes, title, "", "success")
    else:
        note(axes, "no finished episode")
    axes.set_ylim(-0.06, 1.2)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel(
        "control steps executed by the guard (ticks: single episodes; dotted: new weights in the robot)"
    )
    return figure


def realtime_figure(timing: RealTime) -> Figure:
    """Histograms of tick period and of latency in the real-time window."""
    figure, axes = new_figure(2, height=3.2)
    panels = (
        (
            axes[0],
            timing.tick_period_ms,
            "time between control ticks",
            BLUE,
            timing.period_ms,
        ),
        (axes[1], timing.latency_ms, "observation stamp to command", GREEN, None),
    )
    for panel, values, title, colour, nominal in panels:
        titled(panel, title, "ms", "ticks")
        if len(values) == 0:
            note(panel, "not recorded")
            continue
        panel.hist(values, bins=60, color=colour, alpha=0.85)
        panel.set_yscale("log")
        titled(panel, title, "ms", "ticks (logarithmic)")
        if nominal is not None:
            panel.axvline(nominal, color="black", linewidth=1.0, linestyle="--")
            panel.text(
                nominal,
                0.97,
                f"period {nominal:g} ms ",
                transform=panel.get_xaxis_transform(),
                va="top",
                ha="right",
            )
        for share in (50, 99):
            value = float(np.percentile(values, share))
            panel.axvline(value, color=VERMILION, linewidth=1.0, linestyle=":")
            place = 0.86 - 0.1 * (share == 99)
            text = f" p{share} {value:.2f}"
            panel.text(
                value,
                place,
                text,
                transform=panel.get_xaxis_transform(),
                color=VERMILION,
                fontsize=9,
            )
    return figure


def swap_figure(swaps: tuple[Swap, ...]) -> Figure:
    """Duration and size of every weight swap."""
    figure, axes = new_figure(2, height=2.9)
    taken = [swap for swap in swaps if swap.accepted]
    refused = [swap for swap in swaps if not swap.accepted]
    if not swaps:
        note(axes[0], "no version was offered")
        return figure
    timed = [(swap.version, swap.swap_ms) for swap in taken if swap.swap_ms is not None]
    axes[0].plot(
        [version for version, _ in timed],
        [1000 * ms for _, ms in timed],
        "o-",
        color=BLUE,
    )
    titled(
        axes[0],
        "copy of the weights between two chunks",
        "policy version",
        "microseconds",
    )
    axes[0].set_ylim(bottom=0)
    axes[1].plot(
        [s.version for s in taken],
        [s.probe_change for s in taken],
        "o-",
        color=GREEN,
        label="accepted",
    )
    if refused:
        x, y = [s.version for s in refused], [s.probe_change for s in refused]
        axes[1].plot(x, y, "x", color=VERMILION, markersize=9, label="refused")
    titled(axes[1], "mean change of the action on the probes", "policy version")
    axes[1].set_ylim(bottom=0)
    axes[1].legend(frameon=False)
    for panel in axes:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def stages_figure(seconds: Mapping[str, float]) -> Figure:
    """Wall time of every stage."""
    figure, (axes,) = new_figure(height=0.9 + 0.3 * len(seconds))
    names, values = list(seconds), list(seconds.values())
    axes.barh(range(len(names)), values, color=GREY, height=0.6)
    for row, value in enumerate(values):
        axes.text(value, row, f"  {value:.0f} s", va="center")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(values, default=1.0))
    axes.set_xlabel("wall time [s]")
    axes.grid(visible=False, axis="y")
    return figure
