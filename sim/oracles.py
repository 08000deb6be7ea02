# SPDX-License-Identifier: Apache-2.0
"""Scripted drivers: OGBench's oracles, fed with targets, as sources of normalised actions."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.recipes import Recipe
from sim.worlds import Values, World, quiet_simulators

# Noise of the Markov oracle by action element: translation, yaw, gripper (OGBench's generator).
MARKOV_NOISE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])
# Probability of stacking, drawn once an episode (OGBench's generator).
STACKING = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
}
CUBE_HEIGHT_M = 0.02  # of the centre of a cube that lies on the table


class Driver(Protocol):
    """Chooses actions for one episode after another."""

    def begin(self, rng: np.random.Generator) -> None:
        """Start on the world's present state, right after a reset."""

    def action(self) -> Values:
        """Normalised action (A,) in [-1, 1] for the world's present state."""


def make_driver(world: World, recipe: Recipe) -> Driver:
    """The driver of a recipe, bound to a world in the recipe's mode."""
    if recipe.world.startswith("pointmaze"):
        return MazeDriver(world, recipe)
    if recipe.kind == "task":
        return CubeTaskDriver(world, recipe)
    return SceneDriver(world, recipe)


class CubeTaskDriver:
    """Pick-and-place attempts in the task world: some at the true goal, most at wrong places.

    Args:
        world: a cube world in task mode.
        recipe: goal_probability, min_goal_distance_m, target_yaw_rad and the oracle's settings.
    """

    def __init__(self, world: World, recipe: Recipe) -> None:
        with quiet_simulators():
            from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle

        self._env = world.environment
        self._recipe = recipe
        self._oracle: Any = CubePlanOracle(
            env=self._env,
            segment_dt=recipe.segment_s,
            noise=recipe.noise,
            noise_smoothing=recipe.noise_smoothing,
        )
        self._rng = np.random.default_rng(0)

    def begin(self, rng: np.random.Generator) -> None:
        """Aim for the first time."""
        self._rng = rng
        self._aim(self._env.compute_ob_info())

    def action(self) -> Values:
        """Follow the plan; aim anew when it is done."""
        info = self._env.compute_ob_info()
        if self._oracle.done:
            self._aim(info)
        return np.asarray(self._oracle.select_action(None, info), dtype=np.float64)

    def _aim(self, info: dict[str, Any]) -> None:
        recipe = self._recipe
        goal = self._env.data.mocap_pos[self._env._cube_target_mocap_ids[0]]
        target = np.array(goal)
        if self._rng.uniform() >= recipe.goal_probability:
            target = self._wrong_place(goal)
        yaw = self._rng.uniform(-1.0, 1.0) * recipe.target_yaw_rad
        privileged = {
            "privileged/target_block": 0,
            "privileged/target_block_pos": target,
            "privileged/target_block_yaw": np.array([yaw]),
        }
        self._oracle.reset(None, info | privileged)

    def _wrong_place(self, goal: Values) -> Values:
        while True:
            place = self._rng.uniform(*self._env._target_sampling_bounds)
            if np.linalg.norm(place - goal[:2]) >= self._recipe.min_goal_distance_m:
                return np.array([*place, CUBE_HEIGHT_M])


class SceneDriver:
    """Random targets in a random scene: OGBench's `play` and `noisy` data.

    Args:
        world: a manipulation world in data-collection mode.
        recipe: kind and noise settings.
    """

    def __init__(self, world: World, recipe: Recipe) -> None:
        self._env = world.environment
        self._recipe = recipe
        self._oracles = _scene_oracles(world, recipe)
        self._stacking = STACKING.get(world.name, (0.5, 0.5))
        self._stack_probability = 0.0
        self._noise = 0.0
        self._rng = np.random.default_rng(0)
        self._oracle: Any = None

    def begin(self, rng: np.random.Generator) -> None:
        """Draw the episode's stacking probability and noise; start on the scene's first target."""
        self._rng = rng
        self._stack_probability = rng.uniform(*self._stacking)
        self._noise = rng.uniform(0.0, self._recipe.noise)
        self._start(self._env.compute_ob_info())

    def action(self) -> Values:
        """Follow the oracle; choose a new target when it is done."""
        info = self._env.compute_ob_info()
        if self._oracle.done:
            _, info = self._env.set_new_target(p_stack=self._stack_probability)
            self._start(info)
        action = np.asarray(self._oracle.select_action(None, info), dtype=np.float64)
        if self._recipe.kind == "noisy":
            if self._rng.uniform() < self._recipe.random_action_probability:
                return self._rng.uniform(-1.0, 1.0, size=action.shape)
            action = (
                action
                + self._rng.normal(size=action.shape) * self._noise * MARKOV_NOISE
            )
        return np.clip(action, -1.0, 1.0)

    def _start(self, info: dict[str, Any]) -> None:
        self._oracle = self._oracles[info["privileged/target_task"]]
        self._oracle.reset(None, info)


def _scene_oracles(world: World, recipe: Recipe) -> dict[str, Any]:
    """One oracle for each kind of target the world can set."""
    with quiet_simulators():
        from ogbench.manipspace.oracles.markov import (
            button_markov,
            cube_markov,
            drawer_markov,
            window_markov,
        )
        from ogbench.manipspace.oracles.plan import (
            button_plan,
            cube_plan,
            drawer_plan,
            window_plan,
        )
    env = world.environment
    if recipe.kind == "noisy":
        common: dict[str, Any] = {"env": env}
        classes = {
            "cube": cube_markov.CubeMarkovOracle,
            "button": button_markov.ButtonMarkovOracle,
            "drawer": drawer_markov.DrawerMarkovOracle,
            "window": window_markov.WindowMarkovOracle,
        }
    else:
        common = {
            "env": env,
            "segment_dt": recipe.segment_s,
            "noise": recipe.noise,
            "noise_smoothing": recipe.noise_smoothing,
        }
        classes = {
            "cube": cube_plan.CubePlanOracle,
            "button": button_plan.ButtonPlanOracle,
            "drawer": drawer_plan.DrawerPlanOracle,
            "window": window_plan.WindowPlanOracle,
        }
    buttons = {"gripper_always_closed": True} if world.name.startswith("puzzle") else {}
    return {
        name: oracle(**common, **(buttons if name == "button" else {}))
        for name, oracle in classes.items()
    }


class MazeDriver:
    """Cell by cell along shortest paths: to random cells, or to the goal with some probability.

    Args:
        world: a point maze.
        recipe: kind `task` or `navigate`, goal_probability, noise.
    """

    def __init__(self, world: World, recipe: Recipe) -> None:
        self._env = world.environment
        self._recipe = recipe
        free = np.argwhere(self._env.maze_map == 0)
        self._cells = [(int(i), int(j)) for i, j in free]
        self._target = np.zeros(2)
        self._distances: NDArray[Any] = np.zeros(0)
        self._rng = np.random.default_rng(0)

    def begin(self, rng: np.random.Generator) -> None:
        """Draw the first target and, for `navigate`, the start."""
        self._rng = rng
        if self._recipe.kind == "navigate":
            start = self._cells[rng.integers(len(self._cells))]
            self._env.set_xy(np.array(self._env.ij_to_xy(start)))
        self._aim()

    def action(self) -> Values:
        """Unit step towards the next cell (or the target in the last one) plus noise."""
        position = self._env.get_xy()
        if np.linalg.norm(position - self._target) <= self._env._goal_tol:
            self._aim()
        offset = self._waypoint(position) - position
        direction = offset / max(float(np.linalg.norm(offset)), 1e-6)
        noise = self._rng.normal(0.0, self._recipe.noise, size=2)
        return np.clip(direction + noise, -1.0, 1.0)

    def _aim(self) -> None:
        goal = np.array(self._env.cur_goal_xy, dtype=np.float64)
        at_goal = self._recipe.kind == "task" and (
            self._rng.uniform() < self._recipe.goal_probability
        )
        cell = self._cells[self._rng.integers(len(self._cells))]
        self._target = (
            goal if at_goal else np.array(self._env.ij_to_xy(cell), dtype=np.float64)
        )
        _, self._distances = self._env.get_oracle_subgoal(
            self._env.get_xy(), self._target
        )

    def _waypoint(self, position: Values) -> Values:
        i, j = self._env.xy_to_ij(position)
        best = (i, j)
        for cell in ((i - 1, j), (i, j - 1), (i + 1, j), (i, j + 1)):
            if 0 <= self._distances[cell] < self._distances[best]:
                best = cell
        if self._distances[best] == 0:
            return self._target
        return np.array(self._env.ij_to_xy(best), dtype=np.float64)
