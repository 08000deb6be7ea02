# SPDX-License-Identifier: Apache-2.0
"""Recipes: how scripted episodes are made, as data; and the episode that one recipe gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, cast, get_args

from qam_ros.contract.errors import ConfigError, nearest
from sim.worlds import WORLDS, Mode, split_name

Kind = Literal["task", "play", "noisy", "navigate"]
Setting = float | int | str


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

    @property
    def mode(self) -> Mode:
        """Mode of the world that the episodes are played in."""
        return "data_collection" if self.kind in ("play", "noisy") else "task"

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
    if WORLDS[world].family == "point":
        steps = 300 if kind == "task" else 1000
        noise = 0.2 if kind == "task" else 0.5  # OGBench's navigate data have 0.5
        return {"max_steps": steps, "noise": noise}
    return {} if kind == "task" else {"max_steps": 1000}


def _check(recipe: Recipe) -> None:
    maze = WORLDS[recipe.world].family == "point"
    fitting = ("task", "navigate") if maze else ("task", "play", "noisy")
    if (
        recipe.kind == "task"
        and not maze
        and not recipe.world.startswith("cube-single")
    ):
        fitting = ("play", "noisy")
    if recipe.kind not in fitting:
        raise ConfigError(
            f"recipe {recipe.kind!r} does not exist for world {recipe.world!r}; "
            f"use one of {', '.join(fitting)}"
        )
    for key in ("goal_probability", "random_action_probability"):
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
