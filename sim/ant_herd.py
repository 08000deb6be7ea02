# SPDX-License-Identifier: Apache-2.0
"""Many ants at once, each told a direction: where the walking expert learns and is measured.

Half of them walk on a plane, in directions that change at random; half in the maze `large`, from
random cells to random cells along shortest paths. This is bare MuJoCo with OGBench's models, steps and
resets: 5 x 20 ms for one step of control.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from sim.ant import fallen
from sim.ant_driver import heading
from sim.ant_expert import AntExpert
from sim.ant_frame import ACTIONS, Array
from sim.maze_drivers import distances_to, free_cells, is_corridor
from sim.simulators import environment_class, quiet_simulators

MAZE: Final = "antmaze-large"
SUBSTEPS: Final = 5
PERIOD_S: Final = 0.1
RESET_NOISE: Final = 0.1  # as OGBench's
GOAL_TOLERANCE_M: Final = 0.5
EPISODE_STEPS: Final = 500
STEPS_PER_DIRECTION: Final = (20, 100)  # drawn uniformly


class Herd:
    """Ants with a wanted direction each; the first half walks on the plane.

    Args:
        ants: how many, an even number.
        rng: source of all draws.
    """

    def __init__(self, ants: int, rng: np.random.Generator) -> None:
        import mujoco

        constructor, arguments, _ = environment_class(f"{MAZE}-singletask-task1-v0")
        with quiet_simulators():
            maze = constructor(**arguments)
            import ogbench
        self._mujoco = mujoco
        plane = Path(ogbench.__file__).parent / "locomaze" / "assets" / "ant.xml"
        models = [mujoco.MjModel.from_xml_path(str(plane)), maze.model]
        self._models = [models[2 * ant >= ants] for ant in range(ants)]
        self._data = [mujoco.MjData(model) for model in self._models]
        self._in_maze = [2 * ant >= ants for ant in range(ants)]
        self._start = maze.init_qpos.copy()
        self._rng = rng
        self._maze = maze
        cells = free_cells(maze)
        self._starts = [np.array(maze.ij_to_xy(cell)) for cell in cells]
        self._goals = [
            np.array(maze.ij_to_xy(cell))
            for cell in cells
            if not is_corridor(maze, cell)
        ]
        self._targets: Array = np.zeros((ants, 2))
        self._distances = [maze.maze_map] * ants
        self._until = np.zeros(ants, dtype=np.int64)  # steps to the next direction
        self._left = np.zeros(ants, dtype=np.int64)  # steps to the end of the episode
        self.direction: Array = np.zeros((ants, 2))
        self.goals = 0
        for ant in range(ants):
            self._reset(ant)

    def state(self) -> tuple[Array, Array, Array]:
        """Generalised positions (N, 15), velocities (N, 14) and directions (N, 2)."""
        qpos = np.array([data.qpos for data in self._data])
        return qpos, np.array([data.qvel for data in self._data]), self.direction

    def step(self, actions: Array) -> tuple[Array, Array]:
        """Move all by one step of control.

        Args:
            actions: (N, 8) motor commands.

        Returns:
            speed along the direction (N,) [m/s] and 1 for the fallen (N,).
        """
        before = np.array([data.qpos[:2] for data in self._data])
        for model, data, action in zip(self._models, self._data, actions, strict=True):
            data.ctrl[:] = action
            self._mujoco.mj_step(model, data, nstep=SUBSTEPS)
        qpos = np.array([data.qpos for data in self._data])
        speed = np.sum((qpos[:, :2] - before) * self.direction, axis=1) / PERIOD_S
        return speed, fallen(qpos).astype(np.float64)

    def go_on(self, fell: Array) -> None:
        """Give new directions where they are due; start the fallen and the finished anew."""
        self._left -= 1
        self._until -= 1
        for ant in range(len(self._data)):
            if fell[ant] or self._left[ant] <= 0:
                self._reset(ant)
            elif self._in_maze[ant]:
                self._lead(ant)
            elif self._until[ant] <= 0:
                self._turn(ant)

    def _reset(self, ant: int) -> None:
        data, rng = self._data[ant], self._rng
        self._mujoco.mj_resetData(self._models[ant], data)
        data.qpos[:] = self._start + rng.uniform(-RESET_NOISE, RESET_NOISE, 15)
        data.qvel[:] = RESET_NOISE * rng.standard_normal(14)
        if self._in_maze[ant]:
            data.qpos[:2] = self._starts[rng.integers(len(self._starts))]
        self._mujoco.mj_forward(self._models[ant], data)
        self._left[ant] = EPISODE_STEPS
        if self._in_maze[ant]:
            self._aim(ant)
            self._lead(ant)
        else:
            self._turn(ant)

    def _turn(self, ant: int) -> None:
        angle = self._rng.uniform(-np.pi, np.pi)
        self.direction[ant] = np.cos(angle), np.sin(angle)
        self._until[ant] = self._rng.integers(*STEPS_PER_DIRECTION)

    def _aim(self, ant: int) -> None:
        self._targets[ant] = self._goals[self._rng.integers(len(self._goals))]
        self._distances[ant] = distances_to(self._maze, self._targets[ant])

    def _lead(self, ant: int) -> None:
        position, target = self._data[ant].qpos[:2], self._targets[ant]
        if np.linalg.norm(position - target) <= GOAL_TOLERANCE_M:
            self.goals += 1
            self._aim(ant)
        self.direction[ant] = heading(
            self._maze, position, self._targets[ant], self._distances[ant]
        )


@dataclass(frozen=True)
class Walk:
    """How well an expert walks.

    Attributes:
        speed_m_s: mean speed along the wanted direction.
        falls_per_1000: falls per 1000 steps.
        goals_per_1000: goals reached per 1000 steps in the maze.
    """

    speed_m_s: float
    falls_per_1000: float
    goals_per_1000: float


def measure(
    expert: AntExpert,
    seed: int,
    *,
    noise: float = 0.2,
    ants: int = 16,
    steps: int = 500,
) -> Walk:
    """Let a herd walk by an expert with action noise.

    Args:
        expert: who walks.
        seed: of starts, directions and noise.
        noise: standard deviation of the action noise.
        ants: how many, an even number.
        steps: of each.
    """
    rng = np.random.default_rng(seed)
    herd = Herd(ants, rng)
    speeds, falls = 0.0, 0.0
    for _ in range(steps):
        actions = expert.actions(*herd.state()) + rng.normal(
            0.0, noise, (ants, ACTIONS)
        )
        speed, fell = herd.step(np.clip(actions, -1.0, 1.0))
        speeds += float(speed.mean())
        falls += float(fell.sum())
        herd.go_on(fell)
    rows = ants * steps
    return Walk(speeds / steps, 1000.0 * falls / rows, 2000.0 * herd.goals / rows)
