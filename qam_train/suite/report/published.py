# SPDX-License-Identifier: Apache-2.0
"""Published success rates, from config/suite/reference (its README names the sources)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qam_ros.contract.errors import ConfigError
from qam_train.suite.cell_config import TASKS
from qam_train.suite.protocol import protocol_folder
from qam_train.suite.report.run import OFFLINE, ONLINE, Task

OFFLINE_END, ONLINE_END = 1_000_000, 1_500_000
SOURCES = {
    "qam": "mean and standard error over 12 seeds, released with ColinQiyangLi/qam @ f93efd2",
    "trqam": "mean over 8 seeds after 1,000,000 offline updates, posts of the authors of TRQAM and SQAM",
    "none": "",
}


@dataclass(frozen=True)
class Curve:
    """Published success over steps.

    Args:
        steps: (P,), offline updates, then environment steps on top of 1,000,000.
        success: (P,), share.
        spread: (P,), standard error over seeds.
    """

    steps: NDArray[np.int64]
    success: NDArray[np.float64]
    spread: NDArray[np.float64]


@dataclass(frozen=True)
class Level:
    """A published rate: share, and its standard error where one is published."""

    success: float
    spread: float | None


class Published:
    """Published results of one protocol.

    Args:
        kind: "qam" (curves per task), "trqam" (levels per domain) or "none".
        folder: of the tables; None: the shipped ones.
    """

    def __init__(self, kind: str, folder: Path | None = None) -> None:
        self.kind = kind
        self._folder = folder or protocol_folder() / "reference"

    @property
    def source(self) -> str:
        """Where the numbers come from, for captions."""
        return SOURCES[self.kind]

    def curve(self, method: str, tasks: Sequence[Task]) -> Curve | None:
        """Mean curve over some tasks; None where not all of them are published.

        The spread of a mean over tasks takes their seeds as independent.
        """
        curves = [self._curves.get((method, task)) for task in tasks]
        held = [curve for curve in curves if curve is not None]
        if not held or len(held) < len(curves):
            return None
        spread = np.sqrt(np.sum([c.spread**2 for c in held], axis=0)) / len(held)
        success = np.mean([c.success for c in held], axis=0)
        return Curve(held[0].steps, success, spread)

    def level(self, method: str, tasks: Sequence[Task], phase: str) -> Level | None:
        """Mean rate over some tasks at the end of a phase; None where not published."""
        if self.kind == "trqam":
            return self._domain_level(method, tasks) if phase == OFFLINE else None
        end = {OFFLINE: OFFLINE_END, ONLINE: ONLINE_END}[phase]
        curve = self.curve(method, tasks)
        if curve is None or end not in curve.steps:
            return None
        place = int(np.flatnonzero(curve.steps == end)[0])
        return Level(float(curve.success[place]), float(curve.spread[place]))

    def _domain_level(self, method: str, tasks: Sequence[Task]) -> Level | None:
        """Only whole domains are published."""
        domains = list(dict.fromkeys(domain for domain, _ in tasks))
        whole = {(domain, task) for domain in domains for task in TASKS}
        rates = [self._domains.get((method, domain)) for domain in domains]
        held = [rate for rate in rates if rate is not None]
        if not held or len(held) < len(rates) or set(tasks) != whole:
            return None
        return Level(float(np.mean(held)), None)

    @cached_property
    def _curves(self) -> dict[tuple[str, Task], Curve]:
        if self.kind != "qam":
            return {}
        rows: dict[tuple[str, Task], list[tuple[int, float, float]]] = {}
        for row in self._table("qam_tasks.csv"):
            key = row["method"], (row["domain"], int(row["task"]))
            numbers = int(row["step"]), float(row["success"]), float(row["stderr"])
            rows.setdefault(key, []).append(numbers)
        curves = {}
        for key, points in rows.items():
            step, success, spread = np.array(sorted(points)).T
            curves[key] = Curve(step.astype(np.int64), success, spread)
        return curves

    @cached_property
    def _domains(self) -> dict[tuple[str, str], float]:
        return {
            (row["method"], row["domain"]): float(row["success"])
            for row in self._table("trqam_domains.csv")
        }

    def _table(self, name: str) -> list[dict[str, str]]:
        path = self._folder / name
        if not path.is_file():
            raise ConfigError(
                f"{path}: expected the published results, found no file; reinstall the package"
            )
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
