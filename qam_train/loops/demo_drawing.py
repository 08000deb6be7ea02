# SPDX-License-Identifier: Apache-2.0
"""Line drawing of recorded positions, from the side and from above, without any GL library."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qam_train.report.film import Frame
from sim.world import World

_DOTS_PER_INCH = 80
_VIEWS = (
    ("from the side", 1, 2),
    ("from above", 1, 0),
)  # name, horizontal and vertical axis
_CUBE, _GOAL, _ARM = "#D55E00", "#009E73", "#333333"
_HALF_EDGE_M = 0.02


def draw_lines(
    positions: NDArray[np.float64], world: World, size: tuple[int, int]
) -> list[Frame]:
    """One picture for each row of positions.

    Args:
        positions: (T, nq).
        world: the world they were recorded in; its state is changed.
        size: height and width of a picture [pixels].
    """
    import mujoco

    world.reset(0)  # places the goal
    model, data = world.environment.model, world.environment.data
    goal = data.mocap_pos[0].copy()
    arm = _chain(model)
    canvas, lines = _prepare(size, goal)
    frames: list[Frame] = []
    for row in positions:
        data.qpos[:] = row
        mujoco.mj_kinematics(model, data)
        links = data.xpos[arm]  # (links, 3)
        fingers = [
            data.body(f"ur5e/robotiq/{side}_pad").xpos for side in ("left", "right")
        ]
        cube = data.joint("object_joint_0").qpos[:3]
        for line, (_, i, j) in zip(lines, _VIEWS, strict=True):
            line["arm"].set_data(links[:, i], links[:, j])
            for finger, place in zip(line["fingers"], fingers, strict=True):
                finger.set_data([links[-1, i], place[i]], [links[-1, j], place[j]])
            line["cube"].set_xy((cube[i] - _HALF_EDGE_M, cube[j] - _HALF_EDGE_M))
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return frames


def _chain(model: Any) -> list[int]:
    """Bodies from the base of the arm to the gripper."""
    names = (
        "base",
        "shoulder_link",
        "upper_arm_link",
        "forearm_link",
        "wrist_1_link",
        "wrist_2_link",
        "wrist_3_link",
    )
    return [model.body(f"ur5e/{name}").id for name in names] + [
        model.body("ur5e/robotiq/base").id
    ]


def _prepare(
    size: tuple[int, int], goal: NDArray[np.float64]
) -> tuple[FigureCanvasAgg, list[dict[str, Any]]]:
    height, width = size
    figure = Figure(
        (width / _DOTS_PER_INCH, height / _DOTS_PER_INCH),
        _DOTS_PER_INCH,
        layout="constrained",
    )
    canvas = FigureCanvasAgg(figure)
    lines: list[dict[str, Any]] = []
    for axes, (name, i, j) in zip(figure.subplots(1, 2), _VIEWS, strict=True):
        axes.set_title(name, fontsize=9)
        axes.set_aspect("equal")
        axes.set_xlim(-0.4, 0.4)
        axes.set_ylim((-0.05, 0.75) if j == 2 else (-0.1, 0.7))
        axes.tick_params(labelsize=7)
        _square(axes, goal[i], goal[j], _GOAL, alpha=0.45, scale=2.0)
        lines.append(
            {
                "arm": axes.plot([], [], "-o", color=_ARM, linewidth=3, markersize=4)[
                    0
                ],
                "fingers": [
                    axes.plot([], [], "-", color=_ARM, linewidth=1.5)[0]
                    for _ in range(2)
                ],
                "cube": _square(axes, 0.0, 0.0, _CUBE, alpha=1.0),
            }
        )
    return canvas, lines


def _square(
    axes: Any, x: float, y: float, colour: str, *, alpha: float, scale: float = 1.0
) -> Any:
    from matplotlib.patches import Rectangle

    half = scale * _HALF_EDGE_M
    square = Rectangle(
        (x - half, y - half), 2 * half, 2 * half, color=colour, alpha=alpha
    )
    axes.add_patch(square)
    return square
