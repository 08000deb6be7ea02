# SPDX-License-Identifier: Apache-2.0
"""Progress display of a training stage: bar, rate, time left and the loss."""

from __future__ import annotations

from types import TracebackType

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
from torch import Tensor

SHOW_EVERY = 20  # updates between redraws of the numbers


class _Rate(ProgressColumn):
    """Updates per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("-/s" if speed is None else f"{speed:.1f}/s")


class StageProgress:
    """Context that shows how far a stage is; does nothing where it is not enabled."""

    def __init__(self, name: str, total: int, completed: int, *, enabled: bool) -> None:
        """Prepare the display.

        Args:
            name: of the stage.
            total: updates of the stage.
            completed: updates already done before this run.
            enabled: False draws nothing.
        """
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]}"),
            disable=not enabled,
        )
        self._task = self._progress.add_task(
            name, total=total, completed=max(0, completed), loss="-"
        )
        self._pending = 0

    def advance(self, loss: Tensor, updates: int = 1) -> None:
        """So many updates are done."""
        self._pending += updates
        if self._pending >= SHOW_EVERY:
            self._progress.update(
                self._task, advance=self._pending, loss=f"{float(loss):.3g}"
            )
            self._pending = 0

    def __enter__(self) -> StageProgress:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.update(self._task, advance=self._pending)
        self._progress.stop()
