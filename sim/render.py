# SPDX-License-Identifier: Apache-2.0
"""Videos of recorded episodes, without a display; a labelled plot where no GL library exists.

The GL platform must be chosen before MuJoCo is imported, and a missing or broken one may abort the
process: so frames are rendered in a child process, once for each platform until one works.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qam_ros.contract.dataset import Dataset, DatasetManifest
from qam_ros.contract.errors import DatasetError
from sim.simulators import quiet_simulators
from sim.world import World
from sim.worlds import WORLDS, make_world

PLATFORMS = ("egl", "osmesa")
SIZE = (320, 240)  # width, height [px]; the video codec wants multiples of 16
DEFAULT_TIMEOUT_S = 300.0


@dataclass(frozen=True, eq=False)
class Trace:
    """States of one episode, one per control step.

    Attributes:
        world: key of `WORLDS`.
        task: 1..5, for the goal marker.
        qpos: (T, nq).
        title: written over the plot.
    """

    world: str
    task: int
    qpos: NDArray[np.floating[Any]]
    title: str = ""


def trace_of(dataset: Dataset, manifest: DatasetManifest, episode: int) -> Trace:
    """States of one episode of a dataset.

    Args:
        dataset: with recorded qpos.
        manifest: names world and task.
        episode: index of the segment, from 0.

    Raises:
        DatasetError: no such episode, or the dataset does not say its world or has no states.
    """
    if "qpos" not in dataset.extras or "world" not in manifest.meta:
        raise DatasetError(
            "the dataset has no recorded simulator states (qpos and world), so there is nothing to "
            "render; generate it with `qam data generate`"
        )
    if not 0 <= episode < dataset.segments:
        raise DatasetError(
            f"episode {episode} does not exist; there are {dataset.segments}, counted from 0"
        )
    ends = np.flatnonzero(dataset.terminals) + 1
    start = 0 if episode == 0 else ends[episode - 1]
    world, task = manifest.meta["world"], manifest.meta["task"]
    title = f"{world} task {task}, episode {episode}"
    return Trace(world, task, dataset.extras["qpos"][start : ends[episode]], title)


@dataclass(frozen=True)
class Rendering:
    """What came out.

    Attributes:
        kind: `video`, or `plot` where no platform could render.
        path: the file: .mp4 or .png.
        reason: why each platform failed, empty for a video.
    """

    kind: Literal["video", "plot"]
    path: Path
    reason: str


def render(
    trace: Trace,
    path: Path,
    *,
    stride: int = 2,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    platforms: Sequence[str] = PLATFORMS,
) -> Rendering:
    """Render an episode at its true speed.

    Software rendering takes about 0.15 CPU-seconds a frame.

    Args:
        trace: the episode.
        path: file to write, without or with suffix; the suffix becomes .mp4 or .png.
        stride: render every so many control steps.
        timeout_s: longest time for one platform [s].
        platforms: values of MUJOCO_GL to try.
    """
    reasons = []
    video = path.with_suffix(".mp4")
    with tempfile.TemporaryDirectory() as folder:
        states = Path(folder) / "states.npz"
        np.savez(states, qpos=trace.qpos[::stride])
        for platform in platforms:
            command = [sys.executable, "-m", "sim.render", str(states), str(video)]
            command += [trace.world, str(trace.task), str(stride)]
            reason = _run(command, platform, timeout_s)
            if reason is None:
                return Rendering("video", video, "")
            reasons.append(f"{platform}: {reason}")
    plot = path.with_suffix(".png")
    plot_trace(trace, plot)
    return Rendering("plot", plot, "; ".join(reasons))


def _run(command: list[str], platform: str, timeout_s: float) -> str | None:
    """Render in a child process; returns why it failed, or None."""
    environment = os.environ | {"MUJOCO_GL": platform, "PYOPENGL_PLATFORM": platform}
    try:
        result = subprocess.run(
            command,
            env=environment,
            timeout=timeout_s,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {timeout_s:.0f} s"
    if result.returncode == 0:
        return None
    lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
    return lines[-1]


def write_video(
    world: World, states: NDArray[np.floating[Any]], path: Path, stride: int
) -> None:
    """Render states in this process, whose MUJOCO_GL must be set.

    Args:
        world: in its initial state.
        states: (T, nq).
        path: .mp4 file to write.
        stride: control steps between two states.
    """
    import imageio.v2 as imageio
    import mujoco

    environment = world.environment
    model, data = environment.model, environment.data
    width, height = SIZE
    model.vis.global_.offwidth, model.vis.global_.offheight = width, height
    camera = getattr(environment, "custom_camera", "front")
    renderer = mujoco.Renderer(model, height=height, width=width)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    frames_per_s = 1.0 / (world.control_period_s * stride)
    writer: Any = imageio.get_writer(
        temporary, format="FFMPEG", fps=frames_per_s, codec="libx264", quality=7
    )
    with writer as video:
        for qpos in states:
            data.qpos[:] = qpos
            mujoco.mj_forward(model, data)
            if hasattr(environment, "post_step"):
                environment.post_step()  # colours objects that are at their goal
            renderer.update_scene(data, camera=camera)
            video.append_data(renderer.render())
    temporary.replace(path)


def plot_trace(trace: Trace, path: Path) -> None:
    """Draw the paths of robot and objects from above, and their heights over time.

    Args:
        trace: the episode.
        path: .png file to write.
    """
    from matplotlib.figure import Figure

    with quiet_simulators():
        world = make_world(trace.world, trace.task)
        world.reset(0)
    paths = _positions(world, trace.qpos)
    goal = _goal(world)
    figure = Figure(figsize=(8.0, 4.0), layout="constrained")
    figure.suptitle(trace.title)
    top, side = figure.subplots(1, 2)
    time_s = np.arange(len(trace.qpos)) * world.control_period_s
    for name, positions in paths.items():
        top.plot(positions[:, 0], positions[:, 1], label=name)
        top.plot(*positions[0, :2], "o", color="black", ms=4)
        side.plot(time_s, positions[:, 2], label=name)
    top.plot(*goal[:2], "*", ms=14, color="red", label="goal")
    top.set(title="from above (dot: start)", xlabel="x [m]", ylabel="y [m]")
    top.set_aspect("equal", adjustable="datalim")
    side.set(title="height", xlabel="time [s]", ylabel="z [m]")
    top.legend(fontsize=8)
    side.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _positions(
    world: World, states: NDArray[np.floating[Any]]
) -> dict[str, NDArray[np.float64]]:
    """Positions (T, 3) of every pose and odometry topic, along the states."""
    import mujoco

    environment = world.environment
    tracks: dict[str, list[NDArray[np.float64]]] = {}
    for qpos in states:
        environment.data.qpos[:] = qpos
        mujoco.mj_forward(environment.model, environment.data)
        for topic, fields in world.sensors().items():
            for field, values in fields.items():
                if field.endswith("position") and "." in field:
                    tracks.setdefault(topic, []).append(values)
    return {topic: np.array(track) for topic, track in tracks.items()}


def _goal(world: World) -> NDArray[np.float64]:
    environment = world.environment
    if WORLDS[world.name].family != "ur5e":
        return np.array([*environment.cur_goal_xy, 0.0])
    mocap = environment.data.mocap_pos
    return np.array(mocap[0]) if len(mocap) else np.full(3, np.nan)


def main(arguments: list[str]) -> int:
    """Child process: states file, video file, world, task, stride."""
    states, video, name, task, stride = arguments
    with np.load(states, allow_pickle=False) as file:
        qpos = file["qpos"]
    with quiet_simulators():
        world = make_world(name, int(task))
        world.reset(0)
        write_video(world, qpos, Path(video), int(stride))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
