# SPDX-License-Identifier: Apache-2.0
"""One look for all figures: colours that stay apart for colour-blind readers, thin frames, SVG out."""

from __future__ import annotations

import base64
import io
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

# Okabe and Ito's palette; every series also carries a label or a marker of its own.
GREY, BLUE, ORANGE, GREEN, VERMILION, PURPLE = (
    "#767676",
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
)
STAGE_COLOURS = {"base": GREY, "offline": BLUE, "online": VERMILION}
STAGE_NAMES = {
    "base": "behaviour-cloned base",
    "offline": "trained offline",
    "online": "fine-tuned online",
}

_STYLE: Any = {  # matplotlib types its keys as literals
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "svg.hashsalt": "qam",  # the same figure gives the same file
}


def new_figure(
    columns: int = 1, *, width: float = 9.0, height: float = 3.4
) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side in the common style.

    Args:
        columns: number of panels.
        width: of the figure [inch].
        height: of the figure [inch].
    """
    return new_grid(1, columns, width=width, height=height)


def new_grid(
    rows: int,
    columns: int,
    *,
    width: float,
    height: float,
    share: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure with rows of panels in the common style; the panels row by row.

    Args:
        rows: number of rows.
        columns: panels in a row.
        width: of the figure [inch].
        height: of the figure [inch].
        share: all panels have the same axes; only the outer ones are labelled.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)
    return figure, list(axes.flat)


def svg(figure: Figure) -> str:
    """The figure as an SVG data address for an image tag."""
    buffer = io.BytesIO()
    with rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode(
        "ascii"
    )


def png(figure: Figure, dots_per_inch: int = 110) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    with rc_context(_STYLE):
        figure.savefig(buffer, format="png", dpi=dots_per_inch)
    return buffer.getvalue()


def titled(axes: Axes, title: str, x_label: str, y_label: str = "") -> None:
    """Title on the left, axis names, and plain numbers instead of powers on logarithmic axes."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if axes.get_yscale() == "log":
        plain = StrMethodFormatter("{x:g}")
        axes.yaxis.set_major_formatter(plain)
        axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        axes.yaxis.set_minor_formatter(plain)


def note(axes: Axes, text: str, x: float = 0.5, y: float = 0.5) -> None:
    """Say inside a panel why it is empty, or what stands out."""
    axes.text(
        x,
        y,
        text,
        transform=axes.transAxes,
        ha="center",
        va="center",
        color="#444444",
        wrap=True,
    )
