# SPDX-License-Identifier: Apache-2.0
"""Cells that were found on disk, grouped by protocol; what is missing among them.

Cells of different protocols never meet: each protocol is a run of its own with its own page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from qam_ros.contract.errors import ConfigError, QamError
from qam_train.config import to_mapping
from qam_train.suite.cell_config import CellConfig, read_cell
from qam_train.suite.folder import CellFolder
from qam_train.suite.protocol import Protocol, load_protocol, protocol_names

Task = tuple[str, int]
"""Domain and task number."""
BEHAVIOUR, OFFLINE, ONLINE = "behaviour", "offline", "online"
FREE = ("device", "threads")


@dataclass(frozen=True)
class Evaluation:
    """One row of evaluations.csv: success rate at a step of a phase."""

    step: int
    phase: str
    success: float
    episodes: int


@dataclass(frozen=True)
class Cell:
    """One cell on disk.

    Args:
        config: its settings.
        path: its folder.
        evaluations: in order.
        done: whether it has finished.
        failure: what stopped it, in words; empty where nothing did.
    """

    config: CellConfig
    path: Path
    evaluations: tuple[Evaluation, ...]
    done: bool
    failure: str = ""

    @property
    def task(self) -> Task:
        """Domain and task."""
        return self.config.domain, self.config.task

    def at_end(self, phase: str) -> float | None:
        """Success rate at the end of a phase; None: not reached, or no such phase."""
        ends = {
            BEHAVIOUR: 0,
            OFFLINE: self.config.offline_updates,
            ONLINE: self.config.offline_updates + self.config.online_steps,
        }
        found = [
            row.success
            for row in self.evaluations
            if row.phase == phase and row.step == ends[phase]
        ]
        return found[-1] if found else None

    @property
    def status(self) -> str:
        """Where it stands, in words."""
        if self.done:
            return "done"
        last = self.evaluations[-1] if self.evaluations else None
        where = (
            f"after {last.phase}, step {last.step}" if last else "before any evaluation"
        )
        return (
            f"failed {where}: {self.failure}" if self.failure else f"unfinished {where}"
        )


@dataclass(frozen=True)
class Run:
    """All cells of one protocol."""

    protocol: str
    cells: tuple[Cell, ...]

    @cached_property
    def shipped(self) -> Protocol | None:
        """The protocol itself, where it is one of ours."""
        return _shipped(self.protocol)

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Methods found, in the protocol's order."""
        found = {cell.config.method for cell in self.cells}
        return _ordered(found, self.shipped.methods if self.shipped else ())

    @cached_property
    def domains(self) -> tuple[str, ...]:
        """Domains found, in the protocol's order."""
        found = {cell.config.domain for cell in self.cells}
        return _ordered(found, self.shipped.domains if self.shipped else ())

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks found, by domain and number."""
        found = {cell.task for cell in self.cells}
        return tuple(
            (domain, task)
            for domain in self.domains
            for task in range(1, 6)
            if (domain, task) in found
        )

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Seeds found."""
        return tuple(sorted({cell.config.seed for cell in self.cells}))

    @cached_property
    def _by_method_and_task(self) -> dict[tuple[str, Task], list[Cell]]:
        groups: dict[tuple[str, Task], list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault((cell.config.method, cell.task), []).append(cell)
        return groups

    def of(self, method: str, task: Task) -> list[Cell]:
        """Cells of a method on a task, by seed."""
        return self._by_method_and_task.get((method, task), [])

    def incomplete(self) -> Iterator[tuple[str, Task, int, str]]:
        """Method, task, seed and status of every cell that is not done.

        Expected are all methods on all tasks with all seeds that occur in the run.
        """
        for method in self.methods:
            for task in self.tasks:
                held = {cell.config.seed: cell for cell in self.of(method, task)}
                for seed in self.seeds:
                    cell = held.get(seed)
                    if cell is None:
                        yield method, task, seed, "not started"
                    elif not cell.done:
                        yield method, task, seed, cell.status

    def deviations(self) -> list[str]:
        """Settings that are not the protocol's, in words, with the number of cells."""
        if self.shipped is None:
            return [f"protocol '{self.protocol}' is not one of the shipped ones"]
        counts: Counter[str] = Counter()
        for cell in self.cells:
            counts.update(_differences(cell.config, self.shipped))
        return [
            f"{text} ({number} of {len(self.cells)} cells)"
            for text, number in sorted(counts.items())
        ]


@cache
def _shipped(name: str) -> Protocol | None:
    return load_protocol(name) if name in protocol_names() else None


def read_runs(directory: Path) -> dict[str, Run]:
    """Find all cells below a folder, by protocol.

    Args:
        directory: of `qam suite run --out`, or anything below that holds cells.

    Raises:
        ConfigError: no such folder, no cells, or a cell in a folder of another protocol, method, task
            or seed.
    """
    if not directory.is_dir():
        raise ConfigError(f"{directory}: expected a folder of suite results, no folder")
    by_protocol: dict[str, list[Cell]] = {}
    for path in sorted(directory.resolve().rglob("config.yaml")):
        if path.parent.name.startswith("seed"):
            cell = _read(path.parent)
            by_protocol.setdefault(cell.config.protocol, []).append(cell)
    if not by_protocol:
        raise ConfigError(
            f"{directory}: expected cells (protocol/method/domain-task/seed/config.yaml), found none; "
            "give the folder that `qam suite run` wrote to"
        )
    return {
        name: Run(name, tuple(sorted(cells, key=lambda cell: cell.config.seed)))
        for name, cells in sorted(by_protocol.items())
    }


def _read(path: Path) -> Cell:
    config = read_cell(path / "config.yaml")
    expected = config.folder.parts
    if path.parts[-len(expected) :] != expected:
        raise ConfigError(
            f"{path}: holds the cell {config.folder}; protocols, methods, tasks and seeds are never "
            "mixed in one table, so move it to a folder of that name"
        )
    folder = CellFolder(path)
    try:
        rows = tuple(
            Evaluation(row["step"], row["phase"], row["success"], row["episodes"])
            for row in folder.evaluations()
        )
    except (KeyError, ValueError) as error:
        raise QamError(f"{path}/evaluations.csv: not readable: {error}") from error
    failure = folder.failure
    reason = "" if failure is None else str(failure.get("message", "no reason noted"))
    return Cell(config, path, rows, folder.done is not None, reason)


def _ordered(found: set[str], order: Iterable[str]) -> tuple[str, ...]:
    known = [name for name in order if name in found]
    return (*known, *sorted(found - set(known)))


def _differences(config: CellConfig, protocol: Protocol) -> list[str]:
    """Settings of a cell that are not those of its protocol."""
    try:
        expected = protocol.cell(config.method, config.domain, config.task, config.seed)
    except ConfigError:
        return [f"{config.method} on {config.domain} is not part of the protocol"]
    ours, theirs = _flat(to_mapping(config)), _flat(to_mapping(expected))
    return [
        f"{key} = {value} instead of {theirs.get(key)}"
        for key, value in ours.items()
        if key not in FREE and value != theirs.get(key)
    ]


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
