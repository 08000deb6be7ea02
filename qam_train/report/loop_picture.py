# SPDX-License-Identifier: Apache-2.0
"""The loop as an inline SVG: the processes of the demo, what flows between them, and how much."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class _Box:
    x: int
    y: int
    width: int
    title: str
    lines: tuple[str, ...]
    colour: str = "#F4F6F8"


_HEIGHT = 74
_BOXES = (
    _Box(
        20,
        20,
        190,
        "scripted data",
        ("oracle episodes,", "one in five aims right"),
        "#EFEFEF",
    ),
    _Box(
        265,
        20,
        190,
        "offline training",
        ("clone the behaviour,", "then QAM improves it"),
        "#DCE9F4",
    ),
    _Box(
        510,
        20,
        200,
        "policy artifact",
        ("graph + weights + probes,", "hashes, interface"),
    ),
    _Box(
        755,
        160,
        225,
        "policy node",
        ("flow sampler, every tick:", "observation → action chunk"),
        "#DCE9F4",
    ),
    _Box(
        510,
        160,
        200,
        "guard node",
        ("limits, ages, e-stop;", "owns the commands"),
        "#F9E3D3",
    ),
    _Box(
        265,
        160,
        190,
        "plant (MuJoCo UR5e)",
        ("joint states, poses out;", "pose targets in"),
        "#EFEFEF",
    ),
    _Box(
        510, 300, 200, "stream node", ("joins transitions,", "durable spool, resends")
    ),
    _Box(20, 300, 190, "learner", ("replay, QAM updates,", "new weights"), "#DCE9F4"),
)


def loop_picture(counts: dict[str, str]) -> str:
    """SVG of the loop; ``counts`` are the run's own numbers written on the arrows.

    Args:
        counts: texts for 'data', 'ticks', 'executed', 'replay' and 'swaps'.
    """
    arrows = [
        _arrow([(210, 57), (263, 57)], "", (0, 0)),
        _arrow([(455, 57), (508, 57)], "", (0, 0)),
        _arrow([(710, 57), (867, 57), (867, 158)], "loads, verifies", (785, 48)),
        _arrow([(755, 197), (712, 197)], "", (0, 0)),
        _arrow([(510, 197), (457, 197)], "", (0, 0)),
        _arrow(
            [(360, 160), (360, 128), (830, 128), (830, 158)],
            "observations by ROS topic",
            (565, 121),
        ),
        _arrow(
            [(610, 234), (610, 298)], counts["executed"], (618, 270), anchor="start"
        ),
        _arrow(
            [(867, 234), (867, 337), (712, 337)],
            counts["ticks"],
            (875, 290),
            anchor="start",
        ),
        _arrow([(510, 337), (212, 337)], counts["replay"], (361, 328)),
        _arrow(
            [(115, 374), (115, 402), (955, 402), (955, 236)],
            counts["swaps"],
            (535, 394),
        ),
        _arrow([(115, 94), (115, 298)], counts["data"], (123, 200), anchor="start"),
    ]
    boxes = "".join(_box(box) for box in _BOXES)
    return (
        '<svg class="loop" viewBox="0 0 1000 420" role="img" aria-label="Processes of the demo and what flows '
        'between them"><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#333"/></marker></defs>'
        f"{''.join(arrows)}{boxes}</svg>"
    )


def _box(box: _Box) -> str:
    middle = box.x + box.width / 2
    lines = "".join(
        f'<text x="{middle}" y="{box.y + 44 + 17 * row}" class="small">{escape(line)}</text>'
        for row, line in enumerate(box.lines)
    )
    return (
        f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{_HEIGHT}" rx="8" fill="{box.colour}" '
        f'stroke="#555"/><text x="{middle}" y="{box.y + 24}" class="title">{escape(box.title)}</text>{lines}'
    )


def _arrow(
    points: list[tuple[int, int]],
    label: str,
    at: tuple[int, int],
    anchor: str = "middle",
) -> str:
    path = " ".join(
        f"{'M' if i == 0 else 'L'}{x},{y}" for i, (x, y) in enumerate(points)
    )
    text = f'<text x="{at[0]}" y="{at[1]}" class="flow" style="text-anchor:{anchor}">{escape(label)}</text>'
    return (
        f'<path d="{path}" fill="none" stroke="#333" stroke-width="1.6" marker-end="url(#tip)"/>'
        + (text if label else "")
    )
