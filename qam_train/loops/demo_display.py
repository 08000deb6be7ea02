# SPDX-License-Identifier: Apache-2.0
"""What the demo shows while it works: stage, how far, rate, time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    """Completed units per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {task.fields['unit']}/s")


class Bar:
    """One bar; `update` sets how far it is."""

    def __init__(self, progress: Progress, total: float, text: str, unit: str) -> None:
        self._progress = progress
        self._task = progress.add_task(text, total=total, unit=unit, note="")

    def update(self, completed: float, note: str = "") -> None:
        """Set what is done, with a remark."""
        self._progress.update(self._task, completed=completed, note=note)


class Display:
    """Stage headers and bars on a console.

    Args:
        console: where to.
        total: number of stages.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self._total = total
        self._count = 0

    def stage(self, title: str, *, done: bool = False) -> None:
        """Announce the next stage; ``done``: its result is there from before."""
        self._count += 1
        there = "  [dim](finished before)[/dim]" if done else ""
        self.console.print(
            f"\n[bold]{self._count}/{self._total}  {title}[/bold]{there}"
        )

    def result(self, text: str) -> None:
        """One line about what a stage gave."""
        self.console.print(f"      {text}", highlight=False)

    @contextmanager
    def bar(self, text: str, total: float, unit: str) -> Iterator[Bar]:
        """A bar for as long as the context lasts."""
        columns = (
            TextColumn("      {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            yield Bar(progress, total, text, unit)
