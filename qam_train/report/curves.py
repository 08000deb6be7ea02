# SPDX-License-Identifier: Apache-2.0
"""Learning curves: losses, value level and the size of the lean adjoint over the updates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qam_train.report.record import Array
from qam_train.report.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILION,
    new_figure,
    note,
    titled,
)


def smooth(values: Array, window: int) -> NDArray[np.float64]:
    """Running mean over the last ``window`` finite values, the same length as the input (N,)."""
    finite = np.isfinite(values)
    sums = np.cumsum(np.where(finite, values, 0.0))
    counts = np.cumsum(finite)
    shifted = np.arange(len(values)) - window
    before = np.where(shifted >= 0, sums[np.maximum(shifted, 0)], 0.0)
    count = counts - np.where(shifted >= 0, counts[np.maximum(shifted, 0)], 0)
    return (sums - before) / np.maximum(count, 1)


def _curve(
    axes: Axes, metrics: Mapping[str, Array], key: str, colour: str, label: str
) -> bool:
    if key not in metrics or not np.isfinite(metrics[key]).any():
        return False
    keep = np.isfinite(metrics[key])
    x, y = metrics["update"][keep], metrics[key][keep]
    axes.plot(x, y, color=colour, alpha=0.28, linewidth=0.8)
    axes.plot(x, smooth(y, max(1, len(y) // 25)), color=colour, label=label)
    return True


def _dashed(
    axes: Axes, metrics: Mapping[str, Array], key: str, colour: str, label: str
) -> None:
    """A number that a rule sets, as it is."""
    if key in metrics:
        axes.plot(
            metrics["update"], metrics[key], color=colour, linestyle="--", label=label
        )


def _boundary(axes: Axes, place: float, text: str) -> None:
    """Mark where a stage begins."""
    axes.axvline(place, color="#444444", linestyle=":", linewidth=1.2)
    transform = axes.get_xaxis_transform()
    axes.text(place, 1.0, f" {text}", transform=transform, va="top", fontsize=9)


def training_figure(
    behaviour: Mapping[str, Array], offline: Mapping[str, Array], method: str
) -> Figure:
    """Loss of the critic, value level and loss of the behaviour flow over the updates.

    Args:
        behaviour: metrics of the cloning stage, updates counted within it.
        offline: metrics of the stage after it.
        method: name of that stage's method.
    """
    figure, axes = new_figure(3)
    panels = (
        ("critic/td_loss", "critic: temporal-difference loss", VERMILION, "log"),
        ("critic/q_mean", "critic: mean value of the data", BLUE, "linear"),
    )
    for panel, (key, title, colour, scale) in zip(axes[:2], panels, strict=True):
        if not _curve(panel, offline, key, colour, key):
            note(panel, "not recorded")
        panel.set_yscale(scale)
        titled(panel, title, f"updates of {method}")
    cloned = (
        float(np.max(behaviour["update"])) if len(behaviour.get("update", ())) else 0.0
    )
    later = {**offline, "update": offline["update"] + cloned}
    drawn = [
        _curve(axes[2], part, "flow/loss", GREEN, "") for part in (behaviour, later)
    ]
    if not any(drawn):
        note(axes[2], "not recorded")
    titled(axes[2], "behaviour flow: loss", f"updates of cloning, then of {method}")
    _boundary(axes[2], cloned, method)
    return figure


def adjoint_figure(offline: Mapping[str, Array], online: Mapping[str, Array]) -> Figure:
    """Norm of the lean adjoint, offline and then online, and the matching loss."""
    figure, axes = new_figure(2)
    start = float(np.max(offline["update"])) if len(offline.get("update", ())) else 0.0
    later = {**online, "update": online["update"] + start} if "update" in online else {}
    panels = (
        (
            axes[0],
            "size of the lean adjoint",
            (("adjoint/norm_mean", BLUE, "mean"), ("adjoint/norm_max", ORANGE, "max")),
        ),
        (axes[1], "adjoint-matching loss", (("adjoint/loss", PURPLE, "loss"),)),
    )
    for panel, title, series in panels:
        drawn = [
            _curve(panel, part, key, colour, label if part is offline else "")
            for key, colour, label in series
            for part in (offline, later)
        ]
        if not any(drawn):
            note(panel, "not recorded")
            continue
        panel.set_yscale("log")
        titled(panel, title, "updates")
        _boundary(panel, start, "online")
        if len(series) > 1:
            panel.legend(loc="center right", frameon=False)
    return figure


def trust_region_figure(
    offline: Mapping[str, Array], online: Mapping[str, Array]
) -> Figure:
    """Path KL with its budget; the temperature that holds it there and the multiplier behind it."""
    figure, axes = new_figure(2)
    start = float(np.max(offline["update"])) if len(offline.get("update", ())) else 0.0
    later = {**online, "update": online["update"] + start} if "update" in online else {}
    for part, named in ((offline, True), (later, False)):
        _curve(axes[0], part, "dual/kl_estimate", BLUE, "estimate" if named else "")
        _curve(axes[1], part, "dual/lambda", VERMILION, "λ" if named else "")
        _dashed(axes[0], part, "dual/budget", "#444444", "budget" if named else "")
        name = "multiplier m" if named else ""
        _dashed(axes[1], part, "dual/multiplier", BLUE, name)
    titles = ("path KL [nats per action]", "temperature λ, multiplier m")
    for panel, title in zip(axes, titles, strict=True):
        panel.set_yscale("log")
        titled(panel, title, "updates")
        _boundary(panel, start, "online")
        panel.legend(loc="best", frameon=False)
    return figure
