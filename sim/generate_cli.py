# SPDX-License-Identifier: Apache-2.0
"""`qam data generate` and `qam data presets`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from qam_ros.contract.errors import ConfigError
from sim.generate import Generation, Target, generate
from sim.many_files import generate_files
from sim.presets import FILE_ROWS, Preset, find_preset, presets
from sim.recipes import make_recipe

DEFAULT_ROWS = 30_000


@dataclass(frozen=True)
class Generate:
    """Generate a dataset with scripted oracles; an interrupted run goes on when called again.

    Attributes:
        output: folder to write.
        preset: a published data set by name, e.g. cube-double-play; see `qam data presets`.
        recipe: (no preset) task, play, noisy (manipulation) or task, navigate (mazes).
        world: (no preset) e.g. cube-single or pointmaze-medium.
        task: 1..5, sets goal and rewards.
        rows: stop after the episode that reaches this many rows (default: the preset's, or 30000).
        episodes: make exactly this many episodes, in place of rows.
        files: write so many datasets OUTPUT/000, 001, ... each with its own seed and so many rows
            (default: the preset's number of files; a preset's files have at most a million rows).
        seed: same seed, same data, on any number of workers.
        workers: processes; 0 is one per core.
        robot: name or file of the robot interface (default: the world's robot).
        set: a setting of the recipe, e.g. --set noise=0.2; may be repeated.
        json: print the result as JSON.
    """

    output: Annotated[Path, tyro.conf.Positional]
    preset: str | None = None
    recipe: str | None = None
    world: str | None = None
    task: int | None = None
    rows: int | None = None
    episodes: int = 0
    files: int | None = None
    seed: int = 0
    workers: int = 0
    robot: str | None = None
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    json: bool = False

    def run(self) -> int:
        """Generate, with a progress bar on stderr."""
        preset = self._preset()
        overrides = dict(_split(setting) for setting in self.set)
        for key, option in (("kind", "recipe"), ("world", "world"), ("task", "task")):
            if key in overrides:
                raise ConfigError(f"--set {key} is not possible; use --{option}")
        if preset is None:
            recipe = make_recipe(
                self.recipe or "task",
                self.world or "cube-single",
                self.task,
                **overrides,
            )
        else:
            recipe = preset.recipe(self.task, **overrides)
        files = self._files(preset)
        target = self._target(preset, files)
        options: dict[str, Any] = {
            "seed": self.seed,
            "workers": self.workers or os.cpu_count() or 1,
            "robot": self.robot,
            "how": {} if preset is None else {"preset": preset.name},
        }
        total = (target.rows or target.episodes) * max(files, 1)
        with _progress("rows" if target.rows else "episodes") as bar:
            line = bar.add_task("generate", total=total)

            def report(rows: int, episodes: int) -> None:
                bar.update(line, completed=rows if target.rows else episodes)

            options["progress"] = report
            if files:
                result = generate_files(self.output, recipe, target, files, **options)
            else:
                result = generate(self.output, recipe, target, **options)
        _report(result, as_json=self.json)
        return 0

    def _preset(self) -> Preset | None:
        if self.preset is None:
            return None
        for name in ("recipe", "world"):
            if getattr(self, name) is not None:
                raise ConfigError(
                    f"--preset {self.preset} says what {name} to use; leave --{name} out"
                )
        return find_preset(self.preset)

    def _files(self, preset: Preset | None) -> int:
        """Number of files; 0 is a plain dataset."""
        if self.files is not None:
            if self.files < 1:
                raise ConfigError(f"--files must be at least 1, found {self.files}")
            return self.files
        return preset.files if preset is not None and preset.files > 1 else 0

    def _target(self, preset: Preset | None, files: int) -> Target:
        rows = self.rows
        if rows is None and not self.episodes:
            rows = DEFAULT_ROWS if preset is None else preset.rows
            if preset is not None and files:
                rows = min(rows, FILE_ROWS)
        return Target(rows or 0, self.episodes)


@dataclass(frozen=True)
class Presets:
    """List the published data sets that can be generated, with their sizes.

    Attributes:
        json: print them as JSON.
    """

    json: bool = False

    def run(self) -> int:
        """Print one line for each preset."""
        lines = [_line(preset) for preset in presets().values()]
        if self.json:
            print(json.dumps(lines))  # noqa: T201
            return 0
        text = [list(lines[0])] + [[_cell(v) for v in line.values()] for line in lines]
        widths = [max(map(len, column)) for column in zip(*text, strict=True)]
        for first, *others in text:
            cells = [cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True)]
            print("  ".join((first.ljust(widths[0]), *cells)))  # noqa: T201
        return 0


def _line(preset: Preset) -> dict[str, str | int | float]:
    recipe = preset.recipe()
    noisy, several = recipe.kind == "noisy", recipe.stack_high > recipe.stack_low
    return {
        "preset": preset.name,
        "rows": preset.rows * preset.files,
        "files": preset.files,
        "rows/episode": recipe.max_steps,
        "noise": recipe.noise,
        "random": recipe.random_action_probability if noisy else "",
        "stacking": f"{recipe.stack_low}-{recipe.stack_high}" if several else "",
        "GB": f"{preset.disk_bytes / 1e9:.2f}",
    }


def _cell(value: str | float) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


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
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _report(result: Generation, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(result)))  # noqa: T201
        return
    rate = result.made_rows / result.cpu_s if result.cpu_s else 0.0
    share = 100 * result.reached / max(result.targets, 1)
    print(  # noqa: T201
        f"{result.rows} rows, {result.episodes} episodes, {result.successes} successful; "
        f"{result.targets} targets, {share:.0f} % of them reached; {result.fallen} falls; "
        f"{result.wall_s:.1f} s, {rate:.0f} rows per CPU-second"
    )
