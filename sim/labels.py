# SPDX-License-Identifier: Apache-2.0
"""Rewards and masks of recorded states for one task, by OGBench's own rules."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qam_ros.contract.errors import DatasetError, check_shape
from sim.seeding import global_numpy_seed
from sim.simulators import quiet_simulators
from sim.worlds import make_world

LABEL_KEYS = ("qpos", "qvel", "button_states")


def label(
    world: str, task: int, states: dict[str, NDArray[Any]], *, sparse: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Label rows with the reward of their own state, as `success_timing='pre'` does.

    Manipulation: minus the number of unmet sub-goals (cube, drawer and window within 4 cm, buttons in
    the wanted state). Mazes: 0 near the goal (point 1 m, ant 0.5 m), else -1.

    Args:
        world: key of `WORLDS`.
        task: 1..5.
        states: qpos (N, nq) and, for scenes with buttons, button_states (N, n).
        sparse: -1 for every unfinished state in place of minus the number of unmet sub-goals.

    Returns:
        rewards (N,) and masks (N,), 0 where the task is solved.

    Raises:
        DatasetError: the recording lacks the states that the rule needs, or they are of another
            world.
    """
    with quiet_simulators():
        from ogbench.relabel_utils import relabel_dataset
    buttons = world == "scene" or world.startswith("puzzle")
    for key in ("qpos", "button_states") if buttons else ("qpos",):
        if key not in states:
            raise DatasetError(
                f"cannot label data of world {world!r}: array {key!r} is missing; "
                f"record it with the data (found {', '.join(sorted(states)) or 'none'})"
            )
    environment = _environment(world, task)
    where = f"states of world {world!r}"
    count = len(states["qpos"])
    shape = (count, environment.unwrapped.model.nq)
    check_shape("qpos", states["qpos"], shape, where, DatasetError)
    if buttons:
        shape = (count, environment.unwrapped._num_buttons)
        check_shape(
            "button_states", states["button_states"], shape, where, DatasetError
        )
    rows: dict[str, Any] = dict(states)
    with quiet_simulators(), global_numpy_seed(0):
        relabel_dataset(world, environment, rows)
    rewards = sparse_reward(rows["rewards"]) if sparse else rows["rewards"]
    return rewards.astype(np.float32), rows["masks"].astype(np.float32)


@lru_cache(maxsize=4)
def _environment(world: str, task: int) -> Any:
    """The task's environment, which knows the goal; building one takes seconds."""
    return make_world(world, task).environment


def sparse_reward(rewards: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """-1 where the reward is not zero, else 0."""
    return np.where(rewards != 0.0, -1.0, 0.0).astype(np.float32)
