# SPDX-License-Identifier: Apache-2.0
"""`qam data`: generate, import, export, inspect and recover training data; list presets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

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
from sim.generate_cli import Generate, Presets
from sim.import_npz import export_npz, import_npz
from sim.inspect import describe, plot_coverage, summarise
from sim.many_files import import_files
from sim.render import render, trace_of

Positional = tyro.conf.Positional


@dataclass(frozen=True)
class Import:
    """Turn a recorded bag, or npz files of OGBench, into a training dataset.

    Attributes:
        sources: one bag (a folder with .mcap files); or .npz files and folders of them.
        output: folder to write (default: the first source's name + .dataset, beside it).
        world: (npz) world of the files (default: read from the first file's name).
        task: (npz) 1..5: rewards are those of this task.
        sparse: (npz) -1 for every unfinished state, in place of minus the unmet sub-goals.
        each: (npz) write every file as a dataset of its own, OUTPUT/000, 001, ..., for training that
            replaces its data at an interval; files that are there already are kept.
        robot: name or file of the robot interface (default: the bag's, or the world's).
    """

    sources: Annotated[list[Path], Positional]
    output: Path | None = None
    world: str | None = None
    task: int = 1
    sparse: bool = False
    each: bool = False
    robot: str | None = None

    def run(self) -> int:
        """Import and say what was written."""
        if not self.sources:
            raise ConfigError("name a bag, or .npz files or folders, to import")
        output = self.output or _beside(self.sources[0], ".dataset")
        if any(self.sources[0].glob("*.mcap")):
            manifests = [self._import_bag(output)]
        else:
            manifests = self._import_npz(output)
        rows = sum(manifest.rows for manifest in manifests)
        segments = sum(manifest.segments for manifest in manifests)
        files = f", {len(manifests)} files" if self.each else ""
        print(f"{output}: {rows} rows in {segments} segments{files}")
        return 0

    def _import_npz(self, output: Path) -> list[DatasetManifest]:
        options: dict[str, Any] = {
            "world": self.world,
            "task": self.task,
            "robot": self.robot,
            "sparse": self.sparse,
        }
        if self.each:
            return import_files(self.sources, output, **options)
        return [import_npz(self.sources, output, **options)]

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
    """Training data: generate, presets, import, export, inspect, recover."""
    commands: dict[str, Callable[..., Any]] = {
        "generate": Generate,
        "presets": Presets,
        "import": Import,
        "export": Export,
        "inspect": Inspect,
        "recover": Recover,
    }
    command = tyro.extras.subcommand_cli_from_dict(
        commands, args=list(argv), prog="qam data", description=__doc__
    )
    return int(command.run())


def _beside(path: Path, suffix: str) -> Path:
    path = path.resolve()
    stem = path.stem if path.suffix == ".npz" else path.name
    return path.with_name(stem + suffix)
