# SPDX-License-Identifier: Apache-2.0
"""An episode before and after, drawn for the report.

Episodes are played with the robot's own software and recorded as joint positions; drawing them is a
process of its own, because MuJoCo chooses its GL library when it is imported, and because a GL
library that is half installed may end the process that tries it. Where neither EGL nor OSMesa
draws, the same positions become a line drawing from the side and from above.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qam_train.loops.evaluator import EvaluationConfig, Evaluator
from qam_train.report.film import Frame, encode_mp4, label, side_by_side
from qam_train.report.record import Film
from sim.world import StepResult, World
from sim.worlds import make_world

GL_BACKENDS = ("egl", "osmesa")
EVERY = 2  # control steps between two frames: software rendering costs a tenth of a second each
DRAW_TIMEOUT_S = 120.0
SIZE = (320, 400)  # height, width of one episode's picture

Positions = NDArray[np.float64]


@dataclass(frozen=True)
class Take:
    """One recorded episode.

    Args:
        positions: (T, nq), joint positions before every control step and at the end.
        success: whether the cube reached its goal.
    """

    positions: Positions
    success: bool


class _Recorder:
    """A world that notes its joint positions before every step; all else is the world's."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.positions: list[Positions] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    def reset(self, seed: int) -> None:
        """Start an episode and a new recording."""
        self._world.reset(seed)
        self.positions = [self._world.snapshot()["qpos"]]

    def step(self) -> StepResult:
        """Advance and note."""
        result = self._world.step()
        self.positions.append(self._world.snapshot()["qpos"])
        return result


def take(config: EvaluationConfig, index: int) -> Take:
    """Play one evaluation episode again and keep its positions."""
    recorder = _Recorder(make_world(config.world, config.task))
    record = Evaluator(config, recorder).play(index)
    return Take(np.stack(recorder.positions), record.success)


def make_film(
    before: Take,
    after: Take,
    names: tuple[str, str],
    *,
    world: str,
    task: int,
    folder: Path,
) -> Film:
    """Both episodes side by side, at the robot's own speed.

    Args:
        before: left.
        after: right.
        names: captions of the two policies.
        world: name of the world they were played in.
        task: its task.
        folder: for the positions and the frames.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shots = {"before": before, "after": after}
    for name, shot in shots.items():
        np.save(folder / f"{name}.npy", shot.positions[::EVERY], allow_pickle=False)
    backend = next((gl for gl in GL_BACKENDS if _drawn(gl, world, task, folder)), None)
    period_s = make_world(world, task).control_period_s
    pictures = [_pictures(folder, name, backend, world, task) for name in shots]
    colours = ("#767676", "#A34700")
    labelled = [
        [
            label(
                frame,
                f"{text}   {EVERY * period_s * i:4.1f} s   {_outcome(shot, i)}",
                colour,
            )
            for i, frame in enumerate(frames)
        ]
        for frames, text, shot, colour in zip(
            pictures, names, shots.values(), colours, strict=True
        )
    ]
    drawn = (
        f"MuJoCo, {backend}"
        if backend
        else "a line drawing, because no GL library was found"
    )
    caption = (
        f"The same start, left {names[0]}, right {names[1]}; the green square is the goal. "
        f"Real speed; drawn by {drawn}."
    )
    data = encode_mp4(side_by_side(*labelled), 1.0 / (EVERY * period_s))
    return Film(data, caption)


def _outcome(shot: Take, frame: int) -> str:
    last = (len(shot.positions) - 1) // EVERY
    if frame < last:
        return ""
    return "goal reached" if shot.success else "goal not reached"


def _drawn(backend: str, world: str, task: int, folder: Path) -> bool:
    """Whether a process with this GL library drew both episodes."""
    command = [
        sys.executable,
        "-m",
        "qam_train.loops.demo_film",
        world,
        str(task),
        str(folder),
    ]
    environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            timeout=DRAW_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _pictures(
    folder: Path, name: str, backend: str | None, world: str, task: int
) -> list[Frame]:
    if backend is not None:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            return list(file["frames"])
    from qam_train.loops.demo_drawing import draw_lines

    positions = np.load(folder / f"{name}.npy", allow_pickle=False)
    return draw_lines(positions, make_world(world, task), SIZE)


def render(world: World, positions: Positions) -> list[Frame]:
    """Pictures of recorded positions by MuJoCo's renderer."""
    import mujoco

    world.reset(0)  # places the goal
    model, data = world.environment.model, world.environment.data
    height, width = SIZE
    model.vis.global_.offheight, model.vis.global_.offwidth = height, width
    camera = mujoco.MjvCamera()
    camera.lookat[:] = (0.40, 0.0, 0.12)
    camera.distance, camera.azimuth, camera.elevation = 1.05, 155.0, -24.0
    goal = data.mocap_pos[0].copy()
    frames: list[Frame] = []
    with mujoco.Renderer(model, height, width) as renderer:
        for row in positions:
            data.qpos[:] = row
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera=camera)
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = (
                False  # a third of the time
            )
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
            _mark(renderer.scene, goal)
            frames.append(renderer.render().copy())
    return frames


def _mark(scene: Any, goal: NDArray[np.float64]) -> None:
    """Add a flat green square under the goal."""
    import mujoco

    marker = scene.geoms[scene.ngeom]
    mujoco.mjv_initGeom(
        marker,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=np.array([0.04, 0.04, 0.001]),
        pos=np.array([goal[0], goal[1], 0.002]),
        mat=np.eye(3).ravel(),
        rgba=np.array([0.0, 0.75, 0.45, 0.9], dtype=np.float32),
    )
    scene.ngeom += 1


def main(argv: Sequence[str]) -> int:
    """Draw the recorded episodes of a folder: WORLD TASK FOLDER."""
    name, task, folder = argv[0], int(argv[1]), Path(argv[2])
    world = make_world(name, task)
    for shot in ("before", "after"):
        frames = render(world, np.load(folder / f"{shot}.npy", allow_pickle=False))
        np.savez(folder / f"{shot}.npz", frames=np.stack(frames))
    sys.stdout.write(json.dumps({"frames": len(frames)}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
