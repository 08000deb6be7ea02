# SPDX-License-Identifier: Apache-2.0
"""The worlds by name: which environment and robot each is, and how it is made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from qam_ros.contract.errors import ConfigError, nearest
from sim.world import Mode, World


@dataclass(frozen=True)
class WorldInfo:
    """One row of the table of worlds.

    Attributes:
        environment: OGBench's name without task and version.
        family: which robot is in it: `ur5e`, `point`, `ant` or `humanoid`.
        robot: name of the shipped robot interface that fits its observation; None where none does.
    """

    environment: str
    family: Literal["ur5e", "point", "ant", "humanoid"]
    robot: str | None


WORLDS: dict[str, WorldInfo] = {
    "cube-single": WorldInfo("cube-single", "ur5e", "ur5e_2f85"),
    "cube-double": WorldInfo("cube-double", "ur5e", "ur5e_cube_double"),
    "cube-triple": WorldInfo("cube-triple", "ur5e", "ur5e_cube_triple"),
    "cube-quadruple": WorldInfo("cube-quadruple", "ur5e", "ur5e_cube_quadruple"),
    "scene": WorldInfo("scene", "ur5e", "ur5e_scene"),
    "puzzle-3x3": WorldInfo("puzzle-3x3", "ur5e", "ur5e_puzzle_3x3"),
    "puzzle-4x4": WorldInfo("puzzle-4x4", "ur5e", "ur5e_puzzle_4x4"),
    "pointmaze-medium": WorldInfo("pointmaze-medium", "point", "mobile_base"),
    "pointmaze-large": WorldInfo("pointmaze-large", "point", "mobile_base"),
    "pointmaze-giant": WorldInfo("pointmaze-giant", "point", "mobile_base"),
    "antmaze-medium": WorldInfo("antmaze-medium", "ant", "ant"),
    "antmaze-large": WorldInfo("antmaze-large", "ant", "ant"),
    "antmaze-giant": WorldInfo("antmaze-giant", "ant", "ant"),
    "humanoidmaze-medium": WorldInfo("humanoidmaze-medium", "humanoid", "humanoid"),
    "humanoidmaze-large": WorldInfo("humanoidmaze-large", "humanoid", "humanoid"),
    "humanoidmaze-giant": WorldInfo("humanoidmaze-giant", "humanoid", "humanoid"),
}
TASKS = range(1, 6)
_SINGLETASK = re.compile(  # with or without the word for a data set, as OGBench takes either
    r"^(?P<world>.+?)(-(play|noisy|navigate|stitch|explore))?-singletask(-task(?P<task>\d))?-v0$"
)


def world_info(name: str) -> WorldInfo:
    """Look a world up.

    Raises:
        ConfigError: there is no such world.
    """
    if name not in WORLDS:
        raise ConfigError(f"world {name!r} is not known: {nearest(name, WORLDS)}")
    return WORLDS[name]


def split_name(name: str, task: int | None = None) -> tuple[str, int]:
    """Read `cube-single` or OGBench's `cube-single-singletask-task3-v0` as (world, task).

    Args:
        name: name of the world.
        task: 1..5; None takes the one of the name, else 1.

    Raises:
        ConfigError: unknown world, a task outside 1..5, or two tasks that contradict each other.
    """
    match = _SINGLETASK.match(name)
    world = match["world"] if match else name
    named = int(match["task"]) if match and match["task"] else None
    world_info(world)
    if task is not None and named is not None and task != named:
        raise ConfigError(
            f"world {name!r} names task {named}, but task {task} was asked for"
        )
    chosen = task or named or 1
    if chosen not in TASKS:
        raise ConfigError(f"task {chosen} of world {world!r} does not exist; give 1..5")
    return world, chosen


def make_world(name: str, task: int | None = None, mode: Mode = "task") -> World:
    """Build a world.

    Args:
        name: key of `WORLDS`, or OGBench's single-task name of one.
        task: 1..5 (default 1): initial state, goal and reward.
        mode: `task`; or `data_collection`: random scenes and targets, no task, no end at the goal
            (manipulation worlds only).

    Raises:
        ConfigError: unknown world or task, or a mode the world does not have.
    """
    world, task = split_name(name, task)
    info = WORLDS[world]
    if info.family != "ur5e" and mode != "task":
        raise ConfigError(f"world {world!r} has no mode {mode!r}; use mode 'task'")
    if info.family == "ant":
        from sim.ant import ANT
        from sim.walker import WalkerWorld

        return WalkerWorld(world, task, ANT)
    if info.family == "humanoid":
        from sim.humanoid import HUMANOID
        from sim.walker import WalkerWorld

        return WalkerWorld(world, task, HUMANOID)
    if info.family == "point":
        from sim.point import PointWorld

        return PointWorld(world, task)
    from sim.ur5e import UR5eWorld

    return UR5eWorld(world, task, mode)
