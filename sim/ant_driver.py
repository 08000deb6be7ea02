# SPDX-License-Identifier: Apache-2.0
"""The scripted driver of the ant mazes: the walking expert, led along shortest paths."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.ant_expert import read_expert
from sim.ant_frame import ACTIONS
from sim.driver import Tally
from sim.maze_drivers import (
    Cell,
    distances_to,
    free_cells,
    is_corridor,
    next_cell,
)
from sim.recipes import Recipe
from sim.world import Values, World


class AntNavigator:
    """OGBench's `navigate` data: random starts, and a new random goal whenever one is reached.

    Starts lie in any free cell, goals in cells that are no plain corridor; both are moved from the
    centre of the cell by up to a quarter of its size. The way leads over the centres of the cells
    and, into the last one, to the goal itself: OGBench's generator steers to the centre there, too,
    which most goals are out of reach of (0.5 m).

    Args:
        world: an ant maze; its own task plays no part.
        recipe: noise: standard deviation of the action noise.
    """

    def __init__(self, world: World, recipe: Recipe) -> None:
        self._env = world.environment
        self._noise = recipe.noise
        self._expert, _ = read_expert()
        self._cells = free_cells(self._env)
        self._goals = [c for c in self._cells if not is_corridor(self._env, c)]
        self._target = np.zeros(2)
        self._distances: NDArray[Any] = np.zeros(0)
        self._rng = np.random.default_rng(0)
        self.tally = Tally()

    def begin(self, rng: np.random.Generator) -> None:
        """Draw start and first goal, and put the ant at the start."""
        self._rng = rng
        self.tally = Tally()
        self._env.set_xy(self._place(self._cells))
        self._aim()

    def action(self) -> Values:
        """Step of the expert along the way, plus noise."""
        position = self._env.get_xy()
        if np.linalg.norm(position - self._target) <= self._env._goal_tol:
            self.tally.count(reached=True)
            self._aim()
        direction = heading(self._env, position, self._target, self._distances)
        data = self._env.data
        action = self._expert.actions(
            data.qpos[None], data.qvel[None], direction[None]
        )[0]
        noise = self._rng.normal(0.0, self._noise, size=ACTIONS)
        return np.asarray(np.clip(action + noise, -1.0, 1.0))

    def _aim(self) -> None:
        self._target = self._place(self._goals)
        self._distances = distances_to(self._env, self._target)

    def _place(self, cells: list[Cell]) -> Values:
        """A place in one of the cells (2,) [m]."""
        centre = np.array(self._env.ij_to_xy(cells[self._rng.integers(len(cells))]))
        reach = self._env._noise * self._env._maze_unit / 4
        return np.asarray(centre + self._rng.uniform(-reach, reach, size=2))


def heading(
    environment: Any, position: Values, target: Values, distances: NDArray[Any]
) -> Values:
    """Unit vector (2,) towards the centre of the next cell, or the target where that is the last.

    Args:
        environment: an OGBench maze.
        position: (2,) [m].
        target: (2,) [m].
        distances: number of cells from each cell to the target.
    """
    cell = next_cell(environment, position, distances)
    last = distances[cell] == 0
    offset = (target if last else np.array(environment.ij_to_xy(cell))) - position
    return np.asarray(offset / max(float(np.linalg.norm(offset)), 1e-6))
