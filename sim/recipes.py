# SPDX-License-Identifier: Apache-2.0
"""Recipes: how scripted episodes are made, as data; and the episode that one recipe gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, cast, get_args

from qam_ros.contract.errors import ConfigError, nearest
from sim.world import Mode
from sim.worlds import WORLDS, split_name

Kind = Literal["task", "play", "noisy", "navigate"]
Setting = float | int | str

EPISODE_STEPS = 1000  # of the published play, noisy and navigate data
LONG_EPISODE_STEPS = 2000  # in giant mazes
# Range of the stacking probability of an episode, as in OGBench's generator. It is 0.5 in scenes
# and puzzles, where there is nothing to stack.
STACKING = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
}


@dataclass(frozen=True)
class Recipe:
    """Settings of the generator; fields that a kind does not read are ignored by it.

    Kinds:
        task: episodes from the task's own start, of which each attempt aims at the true goal with
            `goal_probability`, else at a wrong place. The mixture is multimodal by intent: a clone
            must copy the choice, a critic can learn which choice pays.
        play: random scenes, random targets, the planning oracle with smooth noise (OGBench "play").
        noisy: as play, with the Markov oracle, per-episode noise and random actions.
        navigate: mazes; from random cells to random cells with action noise.
    The defaults of the last three are those of OGBench's published data.

    Attributes:
        kind: see above.
        world: name of the world.
        task: 1..5: start and goal (`task`), and the rewards the data are labelled with.
        max_steps: rows of an episode without success.
        extra_rows: rows recorded after the first row in the goal (`task`), so that chunks that reach
            the goal are whole; take the chunk length.
        goal_probability: share of attempts that aim at the true goal (`task`).
        min_goal_distance_m: distance of wrong targets to the goal (`task`, manipulation).
        target_yaw_rad: targets are turned by up to this angle to either side (`task`, manipulation).
        noise: noise of the oracle; in mazes, standard deviation of action noise.
        noise_smoothing: width of the Gaussian filter over the plan's noise [control steps].
        segment_s: duration of a segment of the plan [s].
        random_action_probability: share of random actions (`noisy`).
        min_norm: shortest difference to a way point that the Markov oracle acts on [m] (`noisy`).
        stack_low: the probability of stacking a cube is drawn once an episode from
            [stack_low, stack_high] (`play` and `noisy`; matters where there are several cubes).
        stack_high: see stack_low.
    """

    kind: Kind = "task"
    world: str = "cube-single"
    task: int = 1
    max_steps: int = 194
    extra_rows: int = 5
    goal_probability: float = 0.2
    min_goal_distance_m: float = 0.08
    target_yaw_rad: float = 0.0
    noise: float = 0.1
    noise_smoothing: float = 0.5
    segment_s: float = 0.4
    random_action_probability: float = 0.1
    min_norm: float = 0.4
    stack_low: float = 0.0
    stack_high: float = 0.0

    @property
    def mode(self) -> Mode:
        """Mode of the world that the episodes are played in."""
        return "data_collection" if self.kind in ("play", "noisy") else "task"

    @property
    def fixed_length(self) -> bool:
        """Whether every episode has `max_steps` rows: nothing ends one early."""
        walker = WORLDS[self.world].family not in ("ur5e", "point")
        return self.kind != "task" and not walker

    def settings(self) -> dict[str, Setting]:
        """All fields, for metadata."""
        return asdict(self)


def make_recipe(
    kind: str = "task",
    world: str = "cube-single",
    task: int | None = None,
    **overrides: Any,
) -> Recipe:
    """A recipe with the defaults of its kind and world, and some fields overridden.

    Args:
        kind: `task`, `play`, `noisy` or `navigate`.
        world: key of `WORLDS` or OGBench's single-task name.
        task: 1..5 (default 1).
        **overrides: fields of `Recipe`; strings are converted.

    Raises:
        ConfigError: unknown kind, world or field, or a value out of range.
    """
    if kind not in get_args(Kind):
        raise ConfigError(
            f"recipe {kind!r} is not known: {nearest(kind, get_args(Kind))}"
        )
    world, task = split_name(world, task)
    defaults = replace(
        Recipe(),
        kind=cast(Kind, kind),
        world=world,
        task=task,
        **_defaults(kind, world),
    )
    types = {
        field.name: type(getattr(defaults, field.name)) for field in fields(Recipe)
    }
    converted: dict[str, Any] = {}
    for key, value in overrides.items():
        if key not in types:
            raise ConfigError(f"recipe has no setting {key!r}: {nearest(key, types)}")
        try:
            converted[key] = types[key](value)
        except ValueError as error:
            raise ConfigError(
                f"recipe setting {key!r} expects {types[key].__name__}, found {value!r}"
            ) from error
    recipe = replace(defaults, **converted)
    _check(recipe)
    return recipe


def _defaults(kind: str, world: str) -> dict[str, Any]:
    """Settings in which a kind of data of a world differs from the plain recipe."""
    if kind == "task":
        maze = {"max_steps": 300, "noise": 0.2}
        return maze if WORLDS[world].family == "point" else {}
    steps = LONG_EPISODE_STEPS if world.endswith("giant") else EPISODE_STEPS
    if kind == "navigate":
        point = WORLDS[world].family == "point"
        return {"max_steps": steps, "noise": 0.5 if point else 0.2}
    low, high = STACKING.get(world, (0.5, 0.5))
    random = 0.2 if world.startswith("puzzle") else 0.1
    return {
        "max_steps": steps,
        "random_action_probability": random,
        "stack_low": low,
        "stack_high": high,
    }


def kinds_of(world: str) -> tuple[str, ...]:
    """Kinds of data that can be made in a world; none where no expert is at hand."""
    family = WORLDS[world].family
    if family == "humanoid":
        return ()
    if family == "point":
        return ("task", "navigate")
    if family != "ur5e":
        return ("navigate",)
    return ("task", "play", "noisy") if world == "cube-single" else ("play", "noisy")


def check_expert(world: str) -> None:
    """Refuse a world in which no data can be made.

    Raises:
        ConfigError: nothing here can play in it; says where its data come from.
    """
    if not kinds_of(world):
        raise ConfigError(
            f"no data can be generated in world {world!r}: there is no expert for robot "
            f"{WORLDS[world].robot!r}; import the published files with "
            "`qam data import FILES --output FOLDER`"
        )


def _check(recipe: Recipe) -> None:
    check_expert(recipe.world)
    fitting = kinds_of(recipe.world)
    if recipe.kind not in fitting:
        raise ConfigError(
            f"recipe {recipe.kind!r} does not exist for world {recipe.world!r}; "
            f"use one of {', '.join(fitting)}"
        )
    for key in (
        "goal_probability",
        "random_action_probability",
        "stack_low",
        "stack_high",
    ):
        if not 0.0 <= getattr(recipe, key) <= 1.0:
            raise ConfigError(
                f"recipe setting {key!r} is a probability, found {recipe.settings()[key]}"
            )
    for key in (
        "noise",
        "noise_smoothing",
        "min_goal_distance_m",
        "target_yaw_rad",
        "extra_rows",
        "min_norm",
    ):
        if getattr(recipe, key) < 0:
            raise ConfigError(
                f"recipe setting {key!r} must be >= 0, found {recipe.settings()[key]}"
            )
    for key in ("max_steps", "segment_s"):
        if getattr(recipe, key) <= 0:
            raise ConfigError(
                f"recipe setting {key!r} must be > 0, found {recipe.settings()[key]}"
            )
    if recipe.stack_low > recipe.stack_high:
        raise ConfigError(
            f"recipe setting 'stack_low' must not exceed 'stack_high', found {recipe.stack_low} "
            f"and {recipe.stack_high}"
        )
