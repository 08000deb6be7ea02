# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: the machine in words, interleaved timing, one way to report."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Times of one variant [s]: quantiles of wall time, median of CPU time."""

    p50: float
    p99: float
    max: float
    cpu_p50: float
    runs: int


def machine(*packages: str) -> dict[str, Any]:
    """Processor, load and versions, for the head of a report."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if "model name" in line]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def interleave(
    variants: Mapping[str, Callable[[], object]],
    runs: int,
    warm_up: int,
    ahead: int = 0,
) -> dict[str, Timing]:
    """Time variants in turns, so that what else the machine does hits all of them alike.

    Args:
        variants: name -> one run.
        runs: timed runs of each.
        warm_up: runs before, not timed.
        ahead: runs of a variant before each timed one, so that it finds its own data in the caches
            and not those of the others.
    """
    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(warm_up + runs):
        for name, run in variants.items():
            for _ in range(ahead):
                run()
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            run()
            if index >= warm_up:
                cpu[name].append(time.process_time() - cpu_start)
                wall[name].append(time.perf_counter() - wall_start)
    return {
        name: Timing(
            p50=float(np.median(wall[name])),
            p99=float(np.quantile(wall[name], 0.99)),
            max=max(wall[name]),
            cpu_p50=float(np.median(cpu[name])),
            runs=runs,
        )
        for name in variants
    }


def report(
    title: str,
    about: Mapping[str, Any],
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    as_json: bool,
) -> None:
    """Print a result: JSON, or a heading, the machine and a table."""
    if as_json:
        found = [dict(zip(columns, row, strict=True)) for row in rows]
        print(json.dumps({"benchmark": title, "about": dict(about), "results": found}))
        return
    print(title)
    print("  " + ", ".join(f"{key} {value}" for key, value in about.items()))
    cells = [list(columns), *([_text(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    for row in cells:
        first, *rest = (
            value.ljust(width) if column == 0 else value.rjust(width)
            for column, (value, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  " + "  ".join([first, *rest]).rstrip())


def _text(value: object) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
