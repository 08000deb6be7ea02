# SPDX-License-Identifier: Apache-2.0
"""Scripted drivers of the point mazes: cell by cell along shortest paths, with noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.driver import Tally
from sim.recipes import Recipe
from sim.world import Values, World

Cell = tuple[int, int]
NEIGHBOURS = ((-1, 0), (0, -1), (1, 0), (0, 1))


class MazeTaskDriver:
    """From the task's start to its goal with some probability, else to random cells.

    Args:
        world: a point maze.
        recipe: goal_probability and noise.
    """

    def __init__(self, world: World, recipe: Recipe) -> None:
        self._env = world.environment
        self._recipe = recipe
        self._cells = free_cells(self._env)
        self._target = np.zeros(2)
        self._distances: NDArray[Any] = np.zeros(0)
        self._rng = np.random.default_rng(0)
        self.tally = Tally()

    def begin(self, rng: np.random.Generator) -> None:
        """Draw the first target."""
        self._rng = rng
        self.tally = Tally()
        self._aim()

    def action(self) -> Values:
        """Unit step towards the next cell (or the target in the last one) plus noise."""
        position = self._env.get_xy()
        if np.linalg.norm(position - self._target) <= self._env._goal_tol:
            self.tally.count(reached=True)
            self._aim()
        cell = next_cell(self._env, position, self._distances)
        last = self._distances[cell] == 0
        way_point = self._target if last else np.array(self._env.ij_to_xy(cell))
        return noisy_step(way_point - position, self._recipe.noise, self._rng)

    def _aim(self) -> None:
        goal = np.array(self._env.cur_goal_xy, dtype=np.float64)
        at_goal = self._rng.uniform() < self._recipe.goal_probability
        cell = self._cells[self._rng.integers(len(self._cells))]
        self._target = (
            goal if at_goal else np.array(self._env.ij_to_xy(cell), dtype=np.float64)
        )
        self._distances = distances_to(self._env, self._target)


class MazeNavigator:
    """OGBench's `navigate` data: random starts, and a new random goal whenever one is reached.

    Starts lie in any free cell, goals in cells that are no plain corridor; both are moved from the
    centre of the cell by up to a quarter of its size. Way points are centres of cells.

    Args:
        world: a point maze; its own task plays no part.
        recipe: noise.
    """

    def __init__(self, world: World, recipe: Recipe) -> None:
        self._env = world.environment
        self._recipe = recipe
        self._cells = free_cells(self._env)
        self._goals = [c for c in self._cells if not is_corridor(self._env, c)]
        self._target = np.zeros(2)
        self._distances: NDArray[Any] = np.zeros(0)
        self._rng = np.random.default_rng(0)
        self.tally = Tally()

    def begin(self, rng: np.random.Generator) -> None:
        """Draw start and first goal, and put the base at the start."""
        self._rng = rng
        self.tally = Tally()
        self._env.set_xy(self._place(self._cells))
        self._aim()

    def action(self) -> Values:
        """Unit step towards the centre of the next cell, plus noise."""
        position = self._env.get_xy()
        if np.linalg.norm(position - self._target) <= self._env._goal_tol:
            self.tally.count(reached=True)
            self._aim()
        cell = next_cell(self._env, position, self._distances)
        offset = np.array(self._env.ij_to_xy(cell)) - position
        return noisy_step(offset, self._recipe.noise, self._rng)

    def _aim(self) -> None:
        self._target = self._place(self._goals)
        self._distances = distances_to(self._env, self._target)

    def _place(self, cells: list[Cell]) -> Values:
        """A place in one of the cells (2,) [m]."""
        centre = np.array(self._env.ij_to_xy(cells[self._rng.integers(len(cells))]))
        reach = self._env._noise * self._env._maze_unit / 4
        return np.asarray(centre + self._rng.uniform(-reach, reach, size=2))


def free_cells(environment: Any) -> list[Cell]:
    """Cells of a maze that are no wall."""
    return [(int(i), int(j)) for i, j in np.argwhere(environment.maze_map == 0)]


def is_corridor(environment: Any, cell: Cell) -> bool:
    """Whether a free cell only leads straight on."""
    i, j = cell
    up, left, down, right = (
        environment.maze_map[i + di, j + dj] == 0 for di, dj in NEIGHBOURS
    )
    return (up, left, down, right) in (
        (True, False, True, False),
        (False, True, False, True),
    )


def distances_to(environment: Any, target: Values) -> NDArray[Any]:
    """Number of cells between each cell and a target (2,) [m]; -1 for walls."""
    _, distances = environment.get_oracle_subgoal(environment.get_xy(), target)
    return np.asarray(distances)


def next_cell(environment: Any, position: Values, distances: NDArray[Any]) -> Cell:
    """Neighbour of the cell of a position (2,) [m] that is nearest to the target, or the cell."""
    i, j = environment.xy_to_ij(position)
    best: Cell = (i, j)
    for di, dj in NEIGHBOURS:
        cell = (i + di, j + dj)
        if 0 <= distances[cell] < distances[best]:
            best = cell
    return best


def noisy_step(offset: Values, noise: float, rng: np.random.Generator) -> Values:
    """Action (2,) of full length along an offset (2,), plus Gaussian noise, in [-1, 1]."""
    direction = offset / max(float(np.linalg.norm(offset)), 1e-6)
    return np.clip(direction + rng.normal(0.0, noise, size=2), -1.0, 1.0)
