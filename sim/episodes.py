# SPDX-License-Identifier: Apache-2.0
"""One scripted episode: played, recorded and labelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.driver import Driver
from sim.oracles import make_driver
from sim.recipes import Recipe
from sim.seeding import SeedStream, episode_seed, global_numpy_seed
from sim.simulators import quiet_simulators
from sim.world import World
from sim.worlds import make_world

MAX_ATTEMPTS = 20


@dataclass(frozen=True)
class Episode:
    """Rows of one episode; row k is (s_k, a_k) with the reward and mask of s_k.

    Attributes:
        index: index of the episode in the run.
        observations: (T, O) float32.
        actions: (T, A) float32, in [-1, 1].
        rewards: (T,) float32; zeros until labelled where the world has no task.
        masks: (T,) float32, 0 where the goal is reached, else 1; ones until labelled.
        end_observation: (O,) float32, after the last row.
        extras: qpos (T, nq), qvel (T, nv) float32, button_states (T, n) int64 where there are any.
        success: the task's goal was reached in some row.
        targets: targets of the driver that were over before the end of the episode.
        reached: those of them that it reached.
    """

    index: int
    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    masks: NDArray[np.float32]
    end_observation: NDArray[np.float32]
    extras: dict[str, NDArray[Any]]
    success: bool
    targets: int
    reached: int


class EpisodeMaker:
    """A world with its driver, kept between episodes because building a world takes seconds.

    Args:
        recipe: how to play.
        seed: seed of the run.
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self._recipe = recipe
        self._seed = seed
        self._world = make_world(recipe.world, recipe.task, recipe.mode)
        self._driver = make_driver(self._world, recipe)

    def make(self, index: int) -> Episode:
        """Play episode `index`; discarded ones are replaced, up to `MAX_ATTEMPTS` times.

        Raises:
            RuntimeError: every attempt was discarded.
        """
        for attempt in range(MAX_ATTEMPTS):
            seed = episode_seed(self._seed, index, SeedStream.DATA, attempt)
            with global_numpy_seed(seed), quiet_simulators():
                episode = play_episode(
                    self._world, self._driver, self._recipe, seed, index
                )
            if not _discard(self._recipe, episode, self._world.snapshot()["qpos"]):
                return episode
        raise RuntimeError(f"episode {index} was discarded {MAX_ATTEMPTS} times")


def play_episode(
    world: World, driver: Driver, recipe: Recipe, seed: int, index: int = 0
) -> Episode:
    """Play and record one episode.

    Args:
        world: in the recipe's mode.
        driver: bound to that world.
        recipe: its max_steps and extra_rows end the episode, and so does a fall.
        seed: 32-bit seed of the episode.
        index: index of the episode in the run.
    """
    world.reset(seed)
    driver.begin(np.random.default_rng(seed))
    task = recipe.kind == "task"
    observations, actions, rewards, masks = [], [], [], []
    snapshots: list[dict[str, NDArray[Any]]] = []
    rows_left, success = recipe.max_steps, False
    while rows_left > 0:
        observations.append(world.observation())
        snapshots.append(world.snapshot())
        action = driver.action().astype(np.float32)
        world.act(action)
        result = world.step()
        actions.append(action)
        rewards.append(result.reward)
        masks.append(1.0 - result.success)
        rows_left = 0 if result.fallen else rows_left - 1
        if task and result.success and not success:
            success, rows_left = True, recipe.extra_rows
    return Episode(
        index=index,
        observations=np.array(observations, dtype=np.float32),
        actions=np.array(actions, dtype=np.float32),
        rewards=np.array(rewards, dtype=np.float32),
        masks=np.array(masks, dtype=np.float32),
        end_observation=world.observation().astype(np.float32),
        extras={key: _stack(snapshots, key) for key in snapshots[0]},
        success=success,
        targets=driver.tally.targets,
        reached=driver.tally.reached,
    )


def _stack(snapshots: list[dict[str, NDArray[Any]]], key: str) -> NDArray[Any]:
    array = np.array([snapshot[key] for snapshot in snapshots])
    return array.astype(np.int64 if key == "button_states" else np.float32)


def _discard(recipe: Recipe, episode: Episode, end_qpos: NDArray[Any]) -> bool:
    """Scene episodes whose cube left the visible zone other than into the drawer (as OGBench)."""
    if recipe.world != "scene":
        return False
    y, z = np.vstack([episode.extras["qpos"], end_qpos])[:, 15:17].T
    in_drawer = (z >= 0.06) & (z <= 0.08)
    return bool(np.any(y >= 0.29) or np.any((y <= -0.3) & ~in_drawer))
