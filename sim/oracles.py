# SPDX-License-Identifier: Apache-2.0
"""Scripted drivers: OGBench's oracles, fed with targets, as sources of normalised actions."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.ant_driver import AntNavigator
from sim.driver import Driver, Tally
from sim.maze_drivers import MazeNavigator, MazeTaskDriver
from sim.recipes import Recipe
from sim.simulators import quiet_simulators
from sim.world import Values, World
from sim.worlds import world_info

# Noise of the Markov oracle by action element: translation, yaw, gripper (OGBench's generator).
MARKOV_NOISE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])
CUBE_HEIGHT_M = 0.02  # of the centre of a cube that lies on the table
CUBE_TOLERANCE_M = 0.04  # OGBench's: a cube this near to its target is there


def make_driver(world: World, recipe: Recipe) -> Driver:
    """The driver of a recipe, bound to a world in the recipe's mode."""
    if world_info(recipe.world).family == "point":
        navigate = recipe.kind == "navigate"
        return (MazeNavigator if navigate else MazeTaskDriver)(world, recipe)
    if world_info(recipe.world).family == "ant":
        return AntNavigator(world, recipe)
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
        self._target = np.zeros(3)
        self.tally = Tally()

    def begin(self, rng: np.random.Generator) -> None:
        """Aim for the first time."""
        self._rng = rng
        self.tally = Tally()
        self._aim(self._env.compute_ob_info())

    def action(self) -> Values:
        """Follow the plan; aim anew when it is done."""
        info = self._env.compute_ob_info()
        if self._oracle.done:
            miss_m = np.linalg.norm(info["privileged/block_0_pos"] - self._target)
            self.tally.count(reached=bool(miss_m <= CUBE_TOLERANCE_M))
            self._aim(info)
        return np.asarray(self._oracle.select_action(None, info), dtype=np.float64)

    def _aim(self, info: dict[str, Any]) -> None:
        recipe = self._recipe
        goal = self._env.data.mocap_pos[self._env._cube_target_mocap_ids[0]]
        target = np.array(goal)
        if self._rng.uniform() >= recipe.goal_probability:
            target = self._wrong_place(goal)
        self._target = target
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
        recipe: kind, noise and stacking settings.
    """

    def __init__(self, world: World, recipe: Recipe) -> None:
        self._env = world.environment
        self._recipe = recipe
        self._oracles = _scene_oracles(world, recipe)
        self._stack_probability = 0.0
        self._noise = 0.0
        self._rng = np.random.default_rng(0)
        self._oracle: Any = None
        self.tally = Tally()

    def begin(self, rng: np.random.Generator) -> None:
        """Draw the episode's stacking probability and noise; start on the scene's first target."""
        self._rng = rng
        self.tally = Tally()
        self._stack_probability = rng.uniform(
            self._recipe.stack_low, self._recipe.stack_high
        )
        self._noise = rng.uniform(0.0, self._recipe.noise)
        self._start(self._env.compute_ob_info())

    def action(self) -> Values:
        """Follow the oracle; choose a new target when it is done."""
        info = self._env.compute_ob_info()
        if self._oracle.done:
            self.tally.count(reached=bool(self._env._success))
            _, info = self._env.set_new_target(p_stack=self._stack_probability)
            self._start(info)
        noisy = self._recipe.kind == "noisy"
        if noisy and self._rng.uniform() < self._recipe.random_action_probability:
            return self._rng.uniform(-1.0, 1.0, size=len(MARKOV_NOISE))
        action = np.asarray(self._oracle.select_action(None, info), dtype=np.float64)
        if noisy:
            noise = self._rng.normal(size=action.shape) * MARKOV_NOISE
            action = action + self._noise * noise
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
        # OGBench also sets max_step of the scene's cube oracle, which the oracle's reset undoes.
        common: dict[str, Any] = {"env": env, "min_norm": recipe.min_norm}
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
