# SPDX-License-Identifier: Apache-2.0
"""What a run shows: a live table on a terminal, plain lines elsewhere, a table of a folder."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, JustifyMethod
from rich.live import Live
from rich.table import Table
from rich.text import Text

from qam_train.suite.matrix import Cell
from qam_train.suite.standing import Forecast, Standing, standing

LAST_EVENTS = 6
COLUMNS = ("cell", "phase", "step", "steps/s", "success", "left")


class PlainLines:
    """One line for every cell that begins or ends, and for every evaluation.

    Args:
        console: where.
        cells: cells of the run that are still to be run.
        total: cells of the run, those done before included.
    """

    def __init__(self, console: Console, cells: Sequence[Cell], total: int) -> None:
        self._console = console
        self._total = total
        self._over = total - len(cells)
        self._seen: dict[str, int] = {}
        self._forecast = Forecast(cells)

    def started(self, cell: Cell) -> None:
        """Say so."""
        self._seen[cell.name] = len(cell.folder.evaluations())
        self._say(f"{cell.name}: begins")

    def ended(self, cell: Cell, death: str) -> None:
        """Say how."""
        self._evaluated(cell)
        self._over += 1
        if cell.folder.done is None:
            self._forecast.give_up(cell)
        self._say(describe_end(cell, death))

    def look(self, running: Sequence[Cell]) -> None:
        """Say what was evaluated since the last look."""
        for cell in running:
            self._evaluated(cell)

    def close(self) -> None:
        """Nothing to put back."""

    def _evaluated(self, cell: Cell) -> None:
        rows = cell.folder.evaluations()
        for row in rows[self._seen.get(cell.name, 0) :]:
            left = duration(self._forecast.look([cell]))
            self._say(
                f"{cell.name}: {row['phase']} {row['step']} of {cell.steps}, "
                f"success {row['success']:.2f} [{row['low']:.2f}, {row['high']:.2f}], "
                f"all cells in {left}"
            )
        self._seen[cell.name] = len(rows)

    def _say(self, line: str) -> None:
        text = f"[{self._over}/{self._total}] {line}"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveTable:
    """A table of the cells that run, redrawn in place.

    Args:
        console: a terminal.
        cells: cells of the run that are still to be run.
        total: cells of the run, those done before included.
    """

    def __init__(self, console: Console, cells: Sequence[Cell], total: int) -> None:
        self._waiting = len(cells)
        self._total = total
        self._done, self._failed = total - len(cells), 0
        self._events: list[str] = []
        self._forecast = Forecast(cells)
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def started(self, cell: Cell) -> None:  # noqa: ARG002 - it shows in the next table
        """One less waits."""
        self._waiting -= 1

    def ended(self, cell: Cell, death: str) -> None:
        """Count it and keep a line about it."""
        self._forecast.look([cell])
        if cell.folder.done is None:
            self._failed += 1
            self._forecast.give_up(cell)
        else:
            self._done += 1
        self._events = [*self._events, describe_end(cell, death)][-LAST_EVENTS:]

    def look(self, running: Sequence[Cell]) -> None:
        """Redraw; the last look, at no cell, leaves the table as it stands."""
        left = duration(self._forecast.look(running))
        title = (
            f"{self._done} of {self._total} cells done, {self._failed} failed, "
            f"{self._waiting} wait; all done in {left}"
        )
        table = cell_table("", [(cell.name, standing(cell)) for cell in running])
        lines = [
            Text(event, no_wrap=True, overflow="ellipsis") for event in self._events
        ]
        self._live.update(Group(Text(title), table, *lines), refresh=True)

    def close(self) -> None:
        """Leave the table."""
        self._live.stop()


def cell_table(title: str, rows: Sequence[tuple[str, Standing]]) -> Table:
    """Table of single cells."""
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE)
    for name in COLUMNS:
        justify: JustifyMethod = "left" if name in COLUMNS[:2] else "right"
        table.add_column(name, justify=justify, no_wrap=name != COLUMNS[0])
    for name, now in rows:
        table.add_row(
            name,
            now.phase or now.state,
            f"{now.step} / {now.steps}",
            f"{now.rate:.1f}" if now.rate > 0.0 else "",
            "" if now.success is None else f"{now.success:.2f}",
            duration(now.remaining_s) if now.state == "running" else now.state,
        )
    return table


def group_table(cells: Sequence[Cell]) -> Table:
    """Table of methods and domains: how many cells are how far."""
    table = Table(title=f"{len(cells)} cells", title_justify="left", box=box.SIMPLE)
    for name in ("protocol", "method", "domain", "done"):
        table.add_column(name, no_wrap=True)
    table.add_column("the others")
    for name in ("steps", "success"):
        table.add_column(name, justify="right", no_wrap=True)
    groups: dict[tuple[str, str, str], list[Standing]] = {}
    for cell in cells:
        c = cell.config
        key = (c.protocol, c.method, c.domain)
        groups.setdefault(key, []).append(standing(cell))
    for key, found in groups.items():
        counts = Counter(s.state for s in found)
        share = sum(s.step for s in found) / max(1, sum(s.steps for s in found))
        last = [s.success for s in found if s.success is not None]
        table.add_row(
            *key,
            f"{counts.pop('done', 0)} of {len(found)}",
            ", ".join(f"{count} {state}" for state, count in sorted(counts.items())),
            f"{share:.0%}",
            f"{sum(last) / len(last):.2f}" if last else "",
        )
    return table


def describe_end(cell: Cell, death: str) -> str:
    """One line about a cell that ended."""
    done, failure = cell.folder.done, cell.folder.failure
    if done is not None:
        success = done["success"]
        shown = "no evaluation" if success is None else f"success {success:.2f}"
        return f"{cell.name}: done, {shown}, {duration(done['seconds'])}"
    why = death if failure is None else str(failure["message"])
    return f"{cell.name}: FAILED: {why}"


def duration(seconds: float | None) -> str:
    """As in "1:02:03"; "?" where it is not known."""
    if seconds is None:
        return "?"
    return str(dt.timedelta(seconds=round(seconds)))
