# SPDX-License-Identifier: Apache-2.0
"""`qam data`: generate, import, export, inspect and recover training data."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from qam_ros.contract.errors import ConfigError
from sim.generate import Generation, Target, generate
from sim.recipes import make_recipe

Output = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class Generate:
    """Generate a dataset with scripted oracles; an interrupted run goes on when called again.

    Attributes:
        output: folder to write.
        recipe: task, play, noisy (manipulation) or task, navigate (mazes).
        world: e.g. cube-single or pointmaze-medium.
        task: 1..5, sets goal and rewards.
        rows: stop after the episode that reaches this many rows.
        episodes: make exactly this many episodes (with --rows 0).
        seed: same seed, same data, on any number of workers.
        workers: processes; 0 is one per core.
        robot: name or file of the robot interface (default: the world's robot).
        set: settings of the recipe, e.g. --set noise=0.2 goal_probability=0.3.
        json: print the result as JSON.
    """

    output: Output
    recipe: str = "task"
    world: str = "cube-single"
    task: int = 1
    rows: int = 30_000
    episodes: int = 0
    seed: int = 0
    workers: int = 0
    robot: str | None = None
    set: list[str] = field(default_factory=list)
    json: bool = False

    def run(self) -> int:
        """Generate, with a progress bar on stderr."""
        overrides = dict(_split(setting) for setting in self.set)
        recipe = make_recipe(self.recipe, self.world, self.task, **overrides)
        with _progress("rows" if self.rows else "episodes") as bar:
            task = bar.add_task("generate", total=self.rows or self.episodes)
            result = generate(
                self.output,
                recipe,
                Target(self.rows, self.episodes),
                seed=self.seed,
                workers=self.workers or os.cpu_count() or 1,
                robot=self.robot,
                progress=lambda rows, episodes: bar.update(
                    task, completed=rows if self.rows else episodes
                ),
            )
        _report(result, as_json=self.json)
        return 0


def data(argv: list[str]) -> int:
    """Entry point of `qam data`; returns the exit code."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"generate": Generate}, args=argv, prog="qam data", description=__doc__
    )
    return command.run()


def _split(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals:
        raise ConfigError(f"--set expects key=value, found {setting!r}")
    return key, value


def _progress(unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )


def _report(result: Generation, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(result)))
        return
    rate = result.made_rows / result.cpu_s if result.cpu_s else 0.0
    print(
        f"{result.rows} rows, {result.episodes} episodes, {result.successes} successful; "
        f"{result.wall_s:.1f} s, {rate:.0f} rows per CPU-second"
    )
