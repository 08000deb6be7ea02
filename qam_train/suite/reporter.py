# SPDX-License-Identifier: Apache-2.0
"""How a cell says where it stands: metrics at intervals, progress about once a second."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from qam_train.agents.base import Metrics
from qam_train.metrics import MetricsWriter
from qam_train.suite.folder import CellFolder, Progress

PERIOD_S = 1.0


class Reporter:
    """Metrics and progress of one cell.

    Args:
        folder: of the cell.
        every: steps between two rows of metrics.
        resume_step: metrics after this step are dropped; None: a new cell.
        seconds: wall time of earlier runs of the cell [s].
    """

    def __init__(
        self,
        folder: CellFolder,
        every: int,
        resume_step: int | None,
        seconds: float,
    ) -> None:
        self.success: float | None = None
        self._folder = folder
        self.every = every
        self._metrics = MetricsWriter(folder.path, resume_step)
        self._origin = time.perf_counter() - seconds
        self._phase, self._first, self._total = "load", 0, 0
        self._phase_began = self._said = time.perf_counter()
        self._begun_at = 0
        self.begin("load", 0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._metrics.close()

    @property
    def seconds(self) -> float:
        """Wall time of the cell, earlier runs included [s]."""
        return time.perf_counter() - self._origin

    def begin(self, phase: str, first: int, total: int, done: int = 0) -> None:
        """Start of a phase.

        Args:
            phase: see folder.Progress.
            first: step, on the evaluations' scale, before the phase.
            total: steps of the phase.
            done: of those, done by an earlier run.
        """
        self._phase, self._first, self._total = phase, first, total
        self._phase_began, self._begun_at = time.perf_counter(), done
        self._say(phase, done)

    def advance(self, done: int) -> None:
        """So many steps of the phase are done."""
        if time.perf_counter() - self._said >= PERIOD_S:
            self._say(self._phase, done)

    def evaluating(self, done: int) -> None:
        """An evaluation begins."""
        self._say("evaluate", done)

    def log(self, done: int, metrics: Metrics | None, learning_rate: float) -> None:
        """Write metrics if it is time to."""
        if metrics is None or done % self.every != 0:
            return
        values = {name: float(value) for name, value in metrics.items()}
        row: dict[str, float | str] = {
            "stage": self._phase,
            "lr": learning_rate,
            "seconds": self.seconds,
            **values,
        }
        self._metrics.write(self._first + done, row)

    def _say(self, phase: str, done: int) -> None:
        now = time.perf_counter()
        elapsed = now - self._phase_began
        rate = (done - self._begun_at) / elapsed if elapsed > 0.0 else 0.0
        at = self._first if self._phase == "behaviour" else self._first + done
        self._folder.report(Progress(phase, at, done, self._total, rate, self.success))
        self._said = now
