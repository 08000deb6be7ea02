# SPDX-License-Identifier: Apache-2.0
"""What a cell leaves on disk, and who may write there.

    config.yaml        the whole cell; another one is refused
    evaluations.csv    one row per evaluation
    metrics.csv        losses and the like (.jsonl: the same)
    checkpoints/       one file per evaluation, the newest kept, and the one that ends offline training
    online/            environment steps of the online phase, one file per evaluation interval
    progress.json      where it stands, about once a second while it runs
    done.json          final figures, or failed.json: what stopped it
    lock               held by the process that works on it

Every file but metrics and progress appears whole or not at all, so a kill leaves a folder that the
next run continues.
"""

from __future__ import annotations

import csv
import dataclasses
import fcntl
import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qam_ros.contract.errors import ConfigError, QamError
from qam_train.config import to_mapping
from qam_train.suite.cell_config import CellConfig, read_cell, write_cell

COLUMNS = (
    *("step", "phase", "success", "low", "high"),
    *("episodes", "return", "length", "seconds"),
)
# Settings that a continued cell may change: they say where it runs, not what it computes. From a CPU
# to a GPU or back it cannot go once it has a checkpoint: their generators have other states.
FREE = ("device", "threads")

LOCK_PATIENCE_S = 0.5  # who asks whether a cell is held takes its lock for an instant

Row = dict[str, Any]
"""One evaluation: COLUMNS to values; seconds: wall time of its episodes."""


@dataclass(frozen=True)
class Progress:
    """Where a running cell stands.

    Args:
        phase: "load", "behaviour", "offline", "evaluate" or "online".
        step: of the evaluations' scale: offline updates, then environment steps on top.
        phase_step, phase_total: within the phase.
        rate: steps per second in this phase, evaluations included; 0: not known yet.
        success: of the last evaluation; None before the first.
    """

    phase: str
    step: int = 0
    phase_step: int = 0
    phase_total: int = 0
    rate: float = 0.0
    success: float | None = None


class CellFolder:
    """The folder of one cell."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.online = path / "online"
        self.log = path / "log.txt"
        self.config_path = path / "config.yaml"
        self._evaluations = path / "evaluations.csv"

    def claim(self, config: CellConfig) -> None:
        """Write the cell's settings, or check that the folder holds the same cell.

        Raises:
            ConfigError: it holds another one; names the first setting that differs.
        """
        if self.config_path.is_file():
            refuse_other(config, read_cell(self.config_path), self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self.path / ".config.yaml.partial"
        write_cell(config, partial)
        partial.replace(self.config_path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the cell.

        Raises:
            QamError: another process works on it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a") as file:
            if not _take(file, LOCK_PATIENCE_S):
                raise QamError(
                    f"{self.path}: another process works on this cell; wait for it or end it"
                )
            yield

    def held(self) -> bool:
        """Whether a process works on the cell now."""
        try:
            with (self.path / "lock").open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @property
    def done(self) -> dict[str, Any] | None:
        """Final figures of a finished cell."""
        return read_json(self.path / "done.json")

    @property
    def failure(self) -> dict[str, Any] | None:
        """What stopped the cell: keys error, message, phase, step, terms."""
        return read_json(self.path / "failed.json")

    @property
    def progress(self) -> Progress | None:
        """Where it stands or stood; None before its first second."""
        found = read_json(self.path / "progress.json")
        return None if found is None else Progress(**found)

    def finish(self, figures: Mapping[str, Any]) -> None:
        """Mark the cell as done."""
        write_json(self.path / "done.json", figures)

    def fail(self, reason: Mapping[str, Any]) -> None:
        """Mark the cell as failed."""
        write_json(self.path / "failed.json", reason)

    def clear_failure(self) -> None:
        """Forget an earlier failure: the cell runs again."""
        (self.path / "failed.json").unlink(missing_ok=True)

    def report(self, progress: Progress) -> None:
        """Say where the cell stands."""
        write_json(self.path / "progress.json", dataclasses.asdict(progress))

    def write_evaluations(self, rows: Sequence[Row]) -> None:
        """Replace evaluations.csv."""
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        partial = self.path / ".evaluations.csv.partial"
        partial.write_text(text.getvalue())
        partial.replace(self._evaluations)

    def evaluations(self) -> list[Row]:
        """Rows of evaluations.csv, numbers as numbers; none where there is no file yet."""
        if not self._evaluations.is_file():
            return []
        with self._evaluations.open(newline="") as file:
            return [_numbers(row) for row in csv.DictReader(file)]


def _take(file: IO[str], patience_s: float) -> bool:
    """Lock a file for this process alone; False where another one keeps it for so long."""
    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.01)
        else:
            return True


def _numbers(row: Mapping[str, str]) -> Row:
    whole = ("step", "episodes")
    return {
        key: value if key == "phase" else (int(value) if key in whole else float(value))
        for key, value in row.items()
    }


def config_hash(config: CellConfig) -> str:
    """SHA-256 (hex) of everything that decides a cell's numbers."""
    text = json.dumps(_fixed(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_other(now: CellConfig, then: CellConfig, where: Path) -> None:
    """Compare two cells.

    Raises:
        ConfigError: they differ; names the first key.
    """
    before, after = _flat(_fixed(then)), _flat(_fixed(now))
    for key in [*after, *(key for key in before if key not in after)]:
        if before.get(key) != after.get(key):
            raise ConfigError(
                f"{where}: holds a cell with {key} = {before.get(key)}, now it is {after.get(key)}; "
                "run it with its own settings, or give another --out",
                key=key,
            )


def _fixed(config: CellConfig) -> dict[str, Any]:
    return {k: v for k, v in to_mapping(config).items() if k not in FREE}


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON mapping; None where there is no such file."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    found: dict[str, Any] = json.loads(text)
    return found


def write_json(path: Path, mapping: Mapping[str, Any]) -> None:
    """Replace a JSON file."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(mapping, indent=1) + "\n")
    partial.replace(path)
