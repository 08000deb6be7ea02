# SPDX-License-Identifier: Apache-2.0
"""The report's tables as CSV: one row per cell, task, domain, aggregate, profile and curve point."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from qam_train.suite.report.learning import curve, online_start
from qam_train.suite.report.published import Level
from qam_train.suite.report.run import BEHAVIOUR, OFFLINE, ONLINE, Task
from qam_train.suite.report.scores import ALL, Row, Scores
from qam_train.suite.report.statistics import Estimate
from qam_train.suite.report.summary_figures import (
    THRESHOLDS,
    aggregate_rows,
    phases,
    profile,
)

Table = tuple[Sequence[str], Iterable[Mapping[str, Any]]]
INTERVAL = ("", "_low", "_high")
SUMMARY = (
    *("method", "domain", "task", "seeds"),
    *(f"clone{end}" for end in INTERVAL),
    *(f"offline{end}" for end in INTERVAL),
    *(f"online{end}" for end in INTERVAL),
    *(f"gain{end}" for end in INTERVAL),
    *("published_offline", "published_offline_spread"),
    *("published_online", "published_online_spread"),
)

CURVES = (
    *("method", "domain", "task", "place", "phase"),
    *("success", "low", "high", "runs"),
)


def tables(scores: Scores) -> dict[str, str]:
    """File name to CSV text."""
    domains = [*scores.run.domains, ALL]
    held: dict[str, Table] = {
        "cells.csv": (
            (
                "method",
                "domain",
                "task",
                "seed",
                "clone",
                "offline",
                "online",
                "status",
            ),
            _cells(scores),
        ),
        "missing.csv": (
            ("method", "domain", "task", "seed", "status"),
            (
                _named(method, task) | {"seed": seed, "status": status}
                for method, task, seed, status in scores.run.incomplete()
            ),
        ),
        "tasks.csv": (
            SUMMARY,
            (_summary(r) for d in scores.run.domains for r in scores.task_rows(d)),
        ),
        "domains.csv": (
            SUMMARY,
            (_summary(r) for d in domains for r in scores.domain_rows(d)),
        ),
        "aggregates.csv": (
            ("method", "phase", "statistic", "value", "low", "high", "tasks", "runs"),
            _aggregates(scores),
        ),
        "profiles.csv": (
            ("method", "phase", "threshold", "share", "low", "high"),
            _profiles(scores),
        ),
        "curves.csv": (CURVES, _curves(scores)),
    }
    return {name: text(columns, rows) for name, (columns, rows) in held.items()}


def text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV with a header; numbers with at most six significant digits, None as nothing."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in columns])
    return buffer.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _named(method: str, task: Task) -> dict[str, Any]:
    return {"method": method, "domain": task[0], "task": task[1]}


def _bounded(name: str, score: Estimate | None) -> dict[str, Any]:
    if score is None:
        return {}
    return {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}


def _level(name: str, level: Level | None) -> dict[str, Any]:
    if level is None:
        return {}
    return {name: level.success, f"{name}_spread": level.spread}


def _summary(row: Row) -> dict[str, Any]:
    named = {"method": row.method, "domain": row.domain, "task": row.task}
    return (
        named
        | {"seeds": row.seeds}
        | _bounded("clone", row.clone)
        | _bounded("offline", row.offline)
        | _bounded("online", row.online)
        | _bounded("gain", row.gain)
        | _level("published_offline", row.published_offline)
        | _level("published_online", row.published_online)
    )


def _cells(scores: Scores) -> Iterator[dict[str, Any]]:
    for method in scores.run.methods:
        for task in scores.run.tasks:
            for cell in scores.run.of(method, task):
                ends = {
                    name: cell.at_end(phase)
                    for name, phase in (
                        ("clone", BEHAVIOUR),
                        ("offline", OFFLINE),
                        ("online", ONLINE),
                    )
                }
                seed = {"seed": cell.config.seed, "status": cell.status}
                yield _named(method, task) | seed | ends


def _aggregates(scores: Scores) -> Iterator[dict[str, Any]]:
    for phase in phases(scores):
        _, tasks = scores.common(phase)
        for method, middle, average in aggregate_rows(scores, phase):
            for name, score in (("iqm", middle), ("mean", average)):
                yield {
                    "method": method,
                    "phase": phase,
                    "statistic": name,
                    "value": score.value,
                    "low": score.low,
                    "high": score.high,
                    "tasks": len(tasks),
                    "runs": score.runs,
                }


def _profiles(scores: Scores) -> Iterator[dict[str, Any]]:
    for phase in phases(scores):
        for method, (share, interval) in profile(scores, phase).items():
            for place, threshold in enumerate(THRESHOLDS):
                bounded = (
                    {}
                    if interval is None
                    else {"low": interval[0][place], "high": interval[1][place]}
                )
                yield {
                    "method": method,
                    "phase": phase,
                    "threshold": float(threshold),
                    "share": float(share[place]),
                    **{name: float(value) for name, value in bounded.items()},
                }


def _curves(scores: Scores) -> Iterator[dict[str, Any]]:
    for method in scores.run.methods:
        for task in scores.run.tasks:
            start = online_start(scores.run, [task])
            for point in curve(scores.run, method, [task], start):
                score = point.score
                yield _named(method, task) | {
                    "place": point.place,
                    "phase": point.phase,
                    "success": score.value,
                    "low": score.low,
                    "high": score.high,
                    "runs": score.runs,
                }
