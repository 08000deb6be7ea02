# SPDX-License-Identifier: Apache-2.0
"""Where cells stand, read from their folders; and when a run will be over."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qam_ros.contract.errors import ConfigError
from qam_train.suite.cell_config import read_cell
from qam_train.suite.folder import CellFolder
from qam_train.suite.matrix import Cell

State = Literal["waiting", "running", "stopped", "done", "failed"]


@dataclass(frozen=True)
class Standing:
    """One cell now.

    Args:
        state: "stopped": begun, but no process works on it.
        phase: see folder.Progress; "" before its first second.
        step: on the evaluations' scale.
        steps: at its end.
        rate: steps per second; 0: not known.
        success: of the last evaluation; None: none yet.
        note: of a failed cell: why.
    """

    state: State
    phase: str
    step: int
    steps: int
    rate: float
    success: float | None
    note: str = ""

    @property
    def remaining_s(self) -> float | None:
        """Time to its end at the present rate [s]; None: not known."""
        return (self.steps - self.step) / self.rate if self.rate > 0.0 else None


def standing(cell: Cell) -> Standing:
    """Where a cell stands."""
    folder = cell.folder
    done = folder.done
    if done is not None:
        return Standing("done", "", cell.steps, cell.steps, 0.0, done["success"])
    state: State = "waiting"
    failure, progress = folder.failure, folder.progress
    if folder.held():
        state = "running"
    elif failure is not None:
        state = "failed"
    elif progress is not None:
        state = "stopped"
    if progress is None:
        return Standing(state, "", 0, cell.steps, 0.0, None, _note(failure))
    rate = progress.rate if state == "running" else 0.0
    return Standing(
        state,
        progress.phase,
        progress.step,
        cell.steps,
        rate,
        progress.success,
        _note(failure) if state == "failed" else "",
    )


def _note(failure: dict[str, object] | None) -> str:
    return "" if failure is None else str(failure["message"])


def find_cells(directory: Path) -> list[Cell]:
    """All cells below a folder, by method, domain, task and seed.

    Raises:
        ConfigError: there is none, or a config.yaml is damaged.
    """
    paths = sorted(directory.glob("**/seed*/config.yaml"))
    if not paths:
        raise ConfigError(
            f"{directory}: expected results of qam suite run, found no cell; give its --out"
        )
    cells = [Cell(read_cell(path), CellFolder(path.parent)) for path in paths]
    return sorted(cells, key=_order)


def _order(cell: Cell) -> tuple[str, str, str, int, int]:
    c = cell.config
    return c.protocol, c.method, c.domain, c.task, c.seed


class Forecast:
    """When a run will be over: the steps that are left at the rate of the run so far.

    Args:
        cells: all cells of the run that were not done when it began.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._total = sum(cell.steps for cell in cells)
        self._began = time.perf_counter()
        self._at: dict[Path, int] = {}
        self._first = self._update(cells)

    def look(self, cells: Iterable[Cell]) -> float | None:
        """Time to the end [s]; None: not known yet.

        Args:
            cells: those that may have moved since the last look.
        """
        now = self._update(cells)
        elapsed = time.perf_counter() - self._began
        gained = now - self._first
        if gained <= 0:
            return None
        return (self._total - now) * elapsed / gained

    def give_up(self, cell: Cell) -> None:
        """A failed cell goes no further."""
        self._total -= cell.steps - self._at.get(cell.folder.path, 0)

    def _update(self, cells: Iterable[Cell]) -> int:
        for cell in cells:
            self._at[cell.folder.path] = standing(cell).step
        return sum(self._at.values())
