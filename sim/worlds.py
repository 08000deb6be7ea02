# SPDX-License-Identifier: Apache-2.0
"""Worlds: simulated robots that speak in message fields, not in observation arrays."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from qam_ros.contract.errors import ConfigError, nearest

Values = NDArray[np.float64]
Sensors = dict[str, dict[str, Values]]
"""topic -> message field -> values, float64, exactly as the ROS messages carry them."""
Commands = dict[str, dict[str, Values]]
"""topic -> message field -> values of the commands: absolute targets or velocities."""

Mode = Literal["task", "data_collection"]


@dataclass(frozen=True)
class StepResult:
    """What one control step gave.

    OGBench's single-task worlds report reward, termination and success of the state *before* the
    action (`success_timing='pre'`): success arrives one control step late. `fallen` is of the state
    after it: the robot lies where it cannot get up, which ends an episode of data, not of a task.
    """

    reward: float
    terminated: bool
    truncated: bool
    success: bool
    fallen: bool = False


class World(Protocol):
    """A simulated robot and its surroundings, advanced one control period at a time."""

    name: str
    task: int
    control_period_s: float
    max_episode_steps: int

    def reset(self, seed: int) -> None:
        """Start an episode; the same seed gives the same episode, whatever was played before."""

    def sensors(self) -> Sensors:
        """Raw sensor values of the present state."""

    def apply(self, commands: Commands) -> None:
        """Take over targets; topics that are left out keep their last target."""

    def act(self, action: NDArray[np.floating[Any]]) -> None:
        """Take over a normalised action in [-1, 1], as the environment's own `step` reads it."""

    def step(self) -> StepResult:
        """Advance by one control period towards the present targets."""

    def observation(self) -> Values:
        """The environment's own observation (O,), for data and tests; never for the plant."""

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """State for recordings: qpos (nq,), qvel (nv,) and, where there are any, button_states."""

    @property
    def environment(self) -> Any:
        """The OGBench environment, for oracles, relabelling and rendering."""


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


def environment_class(environment_id: str) -> tuple[Any, dict[str, Any], int]:
    """Constructor, arguments and step limit that OGBench registered for an environment.

    The worlds hold the bare environment: gymnasium's wrappers add nothing that they need.

    Args:
        environment_id: e.g. `cube-single-singletask-task1-v0`.
    """
    gymnasium = import_ogbench()
    spec = gymnasium.spec(environment_id)
    module, _, attribute = spec.entry_point.partition(":")
    with quiet_simulators():
        constructor = getattr(import_module(module), attribute)
    return constructor, dict(spec.kwargs), int(spec.max_episode_steps)


def import_ogbench() -> Any:
    """Import OGBench (a second or so), which registers its environments; returns gymnasium."""
    with quiet_simulators():
        import gymnasium
        import ogbench  # noqa: F401 - registers the environments
    return gymnasium


class quiet_simulators(warnings.catch_warnings):  # noqa: N801 - a context manager
    """Silence what the simulators warn of without harm: no X display, float32 action boxes."""

    def __enter__(self) -> None:
        """Add the filters."""
        super().__enter__()
        warnings.filterwarnings("ignore", message=".*X11.*")
        warnings.filterwarnings("ignore", message=".*precision lowered.*")
