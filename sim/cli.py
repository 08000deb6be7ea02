# SPDX-License-Identifier: Apache-2.0
"""`qam data`: generate, import, export, inspect and recover training data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
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

from qam_ros.contract.conversion import from_transitions
from qam_ros.contract.dataset import (
    DatasetManifest,
    read_dataset,
    read_dataset_manifest,
    write_dataset,
)
from qam_ros.contract.errors import ConfigError
from qam_ros.contract.interface import load_interface
from qam_ros.runtime.recording import import_bag, recorded_interface, recover
from sim.generate import Generation, Target, generate
from sim.import_npz import export_npz, import_npz
from sim.inspect import describe, plot_coverage, summarise
from sim.recipes import make_recipe
from sim.render import render, trace_of

Positional = tyro.conf.Positional


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

    output: Annotated[Path, Positional]
    recipe: str = "task"
    world: str = "cube-single"
    task: int | None = None
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


@dataclass(frozen=True)
class Import:
    """Turn a recorded bag, or npz files of OGBench, into a training dataset.

    Attributes:
        sources: one bag (a folder with .mcap files); or .npz files and folders of them.
        output: folder to write (default: the first source's name + .dataset, beside it).
        world: (npz) world of the files (default: read from the first file's name).
        task: (npz) 1..5: rewards are those of this task.
        sparse: (npz) -1 for every unfinished state, in place of minus the unmet sub-goals.
        robot: name or file of the robot interface (default: the bag's, or the world's).
    """

    sources: Annotated[list[Path], Positional]
    output: Path | None = None
    world: str | None = None
    task: int = 1
    sparse: bool = False
    robot: str | None = None

    def run(self) -> int:
        """Import and say what was written."""
        if not self.sources:
            raise ConfigError("name a bag, or .npz files or folders, to import")
        output = self.output or _beside(self.sources[0], ".dataset")
        if any(self.sources[0].glob("*.mcap")):
            manifest = self._import_bag(output)
        else:
            manifest = import_npz(
                self.sources,
                output,
                world=self.world,
                task=self.task,
                robot=self.robot,
                sparse=self.sparse,
            )
        print(f"{output}: {manifest.rows} rows in {manifest.segments} segments")
        return 0

    def _import_bag(self, output: Path) -> DatasetManifest:
        if len(self.sources) != 1:
            raise ConfigError(f"import one bag at a time, found {len(self.sources)}")
        bag = self.sources[0]
        interface = (
            load_interface(self.robot) if self.robot else recorded_interface(bag)
        )
        dataset = from_transitions(import_bag(bag, interface), interface)
        meta = {"bag": bag.name}
        return write_dataset(output, dataset, interface, meta)


@dataclass(frozen=True)
class Export:
    """Write a dataset as one npz file in OGBench's layout (without rewards and masks).

    Attributes:
        dataset: folder of the dataset.
        output: file to write (default: the dataset's name + .npz, beside it).
    """

    dataset: Annotated[Path, Positional]
    output: Path | None = None

    def run(self) -> int:
        """Export and say what was written."""
        output = self.output or _beside(self.dataset, ".npz")
        export_npz(read_dataset(self.dataset), output)
        print(output)
        return 0


@dataclass(frozen=True)
class Inspect:
    """Show counts, returns, action histograms and a plot of where the robot has been.

    Attributes:
        dataset: folder of the dataset.
        plot: PNG file to write (default: the dataset's name + .coverage.png, beside it).
        video: also render an episode into this file (.mp4; .png where no GL library exists).
        episode: which episode the video shows, from 0.
        json: print the figures as JSON.
    """

    dataset: Annotated[Path, Positional]
    plot: Path | None = None
    video: Path | None = None
    episode: int = 0
    json: bool = False

    def run(self) -> int:
        """Print the figures and draw the plot."""
        manifest = read_dataset_manifest(self.dataset)
        dataset = read_dataset(self.dataset)
        summary = summarise(dataset, manifest.interface)
        plot = self.plot or _beside(self.dataset, ".coverage.png")
        plot_coverage(dataset, manifest.interface, plot)
        files = {"plot": str(plot)}
        if self.video is not None:
            trace = trace_of(dataset, manifest, self.episode)
            files["video"] = str(render(trace, self.video).path)
        if self.json:
            print(json.dumps(asdict(summary) | files))
        else:
            print(describe(summary, manifest))
            print("\n".join(f"{name}: {file}" for name, file in files.items()))
        return 0


@dataclass(frozen=True)
class Recover:
    """Make a bag readable whose recorder was killed.

    Attributes:
        bag: folder of the bag.
    """

    bag: Annotated[Path, Positional]

    def run(self) -> int:
        """Recover and say what was repaired."""
        result = recover(self.bag)
        repaired = ", ".join(path.name for path in result.repaired) or "none"
        print(f"{result.bag}: {result.messages} messages; files repaired: {repaired}")
        return 0


def data(argv: Sequence[str]) -> int:
    """Training data: generate, import, export, inspect, recover."""
    commands: dict[str, Callable[..., Any]] = {
        "generate": Generate,
        "import": Import,
        "export": Export,
        "inspect": Inspect,
        "recover": Recover,
    }
    command = tyro.extras.subcommand_cli_from_dict(
        commands, args=list(argv), prog="qam data", description=__doc__
    )
    return int(command.run())


def _split(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals:
        raise ConfigError(f"--set expects key=value, found {setting!r}")
    return key, value


def _beside(path: Path, suffix: str) -> Path:
    path = path.resolve()
    stem = path.stem if path.suffix == ".npz" else path.name
    return path.with_name(stem + suffix)


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
        print(json.dumps(asdict(result)))
        return
    rate = result.made_rows / result.cpu_s if result.cpu_s else 0.0
    print(
        f"{result.rows} rows, {result.episodes} episodes, {result.successes} successful; "
        f"{result.wall_s:.1f} s, {rate:.0f} rows per CPU-second"
    )
