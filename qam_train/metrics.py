# SPDX-License-Identifier: Apache-2.0
"""Metrics of a run: one JSON object a line (the record), and the same rows as CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

STEP = "step"


class MetricsWriter:
    """Appends rows to metrics.jsonl and metrics.csv; every row is on its way to disk at once.

    On resume, rows after the resumed step and a half-written last line are dropped, so that a
    resumed run leaves the same record as an uninterrupted one. A new name adds a CSV column: the CSV
    is then rewritten from the JSON lines.
    """

    def __init__(self, directory: Path, resume_step: int | None = None) -> None:
        """Open the files.

        Args:
            directory: run directory, created where missing.
            resume_step: keep rows up to this step; None: start empty.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._json_path, self._csv_path = (
            directory / "metrics.jsonl",
            directory / "metrics.csv",
        )
        rows = [] if resume_step is None else read_metrics(self._json_path)
        kept = [
            row for row in rows if resume_step is not None and row[STEP] <= resume_step
        ]
        partial = self._json_path.with_suffix(".partial")
        partial.write_text("".join(_line(row) for row in kept))
        partial.replace(self._json_path)
        self._columns: list[str] = [STEP]
        for row in kept:
            self._add_columns(row)
        self._json = self._json_path.open("a")
        self._rewrite_csv()

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Append one row.

        Args:
            step: update the values belong to, not smaller than the last one.
            values: metric names, as documented in docs/algorithm.md, to values.
        """
        row = {STEP: step, **values}
        self._json.write(_line(row))
        self._json.flush()
        if self._add_columns(row):
            self._csv.close()
            self._rewrite_csv()
        else:
            self._table.writerow(row)
            self._csv.flush()

    def close(self) -> None:
        """Close both files."""
        self._json.close()
        self._csv.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _add_columns(self, row: Mapping[str, Any]) -> bool:
        new = [name for name in row if name not in self._columns]
        self._columns += new
        return bool(new)

    def _rewrite_csv(self) -> None:
        self._csv = self._csv_path.open("w", newline="")
        self._table = csv.DictWriter(self._csv, self._columns, restval="")
        self._table.writeheader()
        self._table.writerows(read_metrics(self._json_path))
        self._csv.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl in order; a half-written last line is left out."""
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        rows.append(json.loads(line))
    return rows


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"
