# SPDX-License-Identifier: Apache-2.0
"""The matrix of a run: which cells, in which order, and driving them through a pool."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol as Interface

from qam_ros.contract.errors import ConfigError
from qam_train.suite.cell import check_settings
from qam_train.suite.cell_config import CellConfig, read_cell
from qam_train.suite.data import dataset_files
from qam_train.suite.folder import CellFolder, config_hash, refuse_other
from qam_train.suite.protocol import Protocol
from sim.worlds import split_name

POLL_S = 0.2


@dataclass(frozen=True)
class Cell:
    """One cell of a run and where it lies."""

    config: CellConfig
    folder: CellFolder

    @property
    def name(self) -> str:
        """As in "qam scene-task1 seed 0"."""
        c = self.config
        return f"{c.method} {c.domain}-task{c.task} seed {c.seed}"

    @property
    def steps(self) -> int:
        """Steps from its start to its end, on the evaluations' scale."""
        return self.config.offline_updates + self.config.online_steps


@dataclass(frozen=True)
class Selection:
    """Which part of a protocol; an empty tuple: all of it (seeds: the published ones)."""

    methods: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    tasks: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Lengths:
    """Other lengths than the protocol's; None: the protocol's.

    Args:
        offline_updates: a method without an offline phase keeps none.
        online_steps: 0: offline only.
    """

    offline_updates: int | None = None
    online_steps: int | None = None

    def applied(self, config: CellConfig) -> CellConfig:
        """The cell with these lengths."""
        offline, online = config.offline_updates, config.online_steps
        if self.offline_updates is not None and offline > 0:
            offline = self.offline_updates
        if self.online_steps is not None:
            online = self.online_steps
        return replace(config, offline_updates=offline, online_steps=online)


class Pool(Interface):
    """Where cells run."""

    def free(self) -> int:
        """How many more cells it takes now."""

    def start(self, cell: Cell) -> None:
        """Begin with a cell whose folder is claimed."""

    def ended(self) -> list[tuple[Cell, str]]:
        """Cells that ended since the last call, and how one died that left no word, else ''."""

    def stop(self) -> None:
        """End all cells that run; they can be continued."""


class Watcher(Interface):
    """Who shows a run."""

    def started(self, cell: Cell) -> None:
        """A cell begins."""

    def ended(self, cell: Cell, death: str) -> None:
        """A cell is done or failed; `death`: how it died that left no word."""

    def look(self, running: Sequence[Cell]) -> None:
        """Time to look at the cells that run."""


def plan(
    protocol: Protocol,
    selection: Selection,
    overrides: Sequence[str],
    lengths: Lengths,
    out: Path,
) -> list[Cell]:
    """Cells of a part of a protocol, seeds innermost: cells that share a clone are far apart.

    Args:
        protocol: of which.
        selection: which part.
        overrides: "dotted.key=value" on top of the protocol, for all cells.
        lengths: on top of both.
        out: folder of all results.

    Raises:
        ConfigError: a name is unknown (names the nearest), or an override is wrong.
    """
    cells = [
        protocol.cell(method, domain, task, seed, overrides)
        for method in selection.methods or protocol.methods
        for domain in selection.domains or protocol.domains
        for task in selection.tasks or protocol.tasks(domain)
        for seed in selection.seeds or protocol.seeds
    ]
    configs = [lengths.applied(config) for config in dict.fromkeys(cells)]
    return [Cell(config, CellFolder(out / config.folder)) for config in configs]


def check(cells: Sequence[Cell], data: Path) -> list[Cell]:
    """Cells that are still to be run.

    Raises:
        ConfigError: a domain's world is not known, a cell's settings contradict each other, its
            folder holds another cell, or a dataset is missing; before anything starts.
    """
    _check_worlds(cells)
    waiting: list[Cell] = []
    for cell in cells:
        check_settings(cell.config)
        if cell.folder.config_path.is_file():
            then = read_cell(cell.folder.config_path)
            refuse_other(cell.config, then, cell.folder.path)
        done = cell.folder.done
        if done is None or done["config_hash"] != config_hash(cell.config):
            waiting.append(cell)
    for dataset in {cell.config.data for cell in waiting}:
        dataset_files(dataset, data)
    return waiting


def _check_worlds(cells: Sequence[Cell]) -> None:
    """Refuse domains that cannot be played here, all at once."""
    worlds = {cell.config.domain: cell.config.world for cell in cells}
    missing: dict[str, ConfigError] = {}
    for domain, world in worlds.items():
        try:
            split_name(world)
        except ConfigError as error:
            missing[domain] = error
    if not missing:
        return
    first = next(iter(missing.values()))
    rest = " ".join(domain for domain in worlds if domain not in missing)
    way_out = f"leave them out: --domains {rest}" if rest else "choose others"
    raise ConfigError(
        f"domains without a world: {', '.join(missing)}: {first}; {way_out}"
    ) from first


def drive(waiting: Sequence[Cell], pool: Pool, watcher: Watcher) -> list[Cell]:
    """Run cells until all are done or failed; returns those that failed.

    When it is interrupted, the cells that run are ended; the next run continues them.
    """
    queue, running, failed = deque(waiting), list[Cell](), list[Cell]()
    try:
        while queue or running:
            while queue and pool.free() > 0:
                cell = queue.popleft()
                cell.folder.claim(cell.config)
                cell.folder.clear_failure()
                pool.start(cell)
                running.append(cell)
                watcher.started(cell)
            for cell, death in pool.ended():
                running.remove(cell)
                if death and not cell.folder.held():
                    cell.folder.fail({"error": "died", "message": death})
                if cell.folder.done is None:
                    failed.append(cell)
                watcher.ended(cell, death)
            watcher.look(running)
            time.sleep(POLL_S)
    finally:
        pool.stop()
    return failed
