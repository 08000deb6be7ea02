# SPDX-License-Identifier: Apache-2.0
"""Cells in processes of this machine, one each; none outlives the process that started it."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace

from qam_ros.runtime.child import Child
from qam_train.suite.cell import RunSettings
from qam_train.suite.matrix import Cell
from qam_train.suite.worker import FAILED, command_line

GPU_WORKERS = 4  # cells that share a GPU unless --workers says otherwise
LAST_LINES = 5
STOP_S = 5.0
_THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class LocalPool:
    """A process for each cell.

    Args:
        devices: one entry for each cell that may run at the same time; a GPU may stand there
            several times, its cells share it.
        settings: of all cells; its device is replaced by one of `devices`.
    """

    def __init__(self, devices: Sequence[str], settings: RunSettings) -> None:
        self._free = list(devices)
        self._settings = settings
        self._running: list[tuple[Cell, Child, str]] = []

    def free(self) -> int:
        """Processes that may still be started."""
        return len(self._free)

    def start(self, cell: Cell) -> None:
        """Start the cell's process; its output goes to log.txt of its folder."""
        device = self._free.pop(0)
        command = command_line(cell.folder.path, replace(self._settings, device=device))
        threads = dict.fromkeys(_THREAD_LIMITS, str(cell.config.threads))
        child = Child(command, cell.folder.log, {**os.environ, **threads})
        self._running.append((cell, child, device))

    def ended(self) -> list[tuple[Cell, str]]:
        """Cells whose process ended."""
        found = [entry for entry in self._running if entry[1].exit_code() is not None]
        for entry in found:
            self._running.remove(entry)
            self._free.append(entry[2])
        return [(cell, _death(cell, child)) for cell, child, _ in found]

    def stop(self) -> None:
        """End all processes."""
        for _, child, _ in self._running:
            child.ask_to_stop(signal.SIGTERM)
        for _, child, _ in self._running:
            if child.wait(STOP_S) is None:
                child.kill()
        self._running = []


def _death(cell: Cell, child: Child) -> str:
    """How a process died that noted nothing itself; '' where it did."""
    code = child.exit_code()
    if code == 0 or (code == FAILED and cell.folder.failure is not None):
        return ""
    said = " | ".join(child.last_lines(LAST_LINES))
    return f"the process ended with code {code}; its last lines: {said}"
