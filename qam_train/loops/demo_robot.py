# SPDX-License-Identifier: Apache-2.0
"""The demo's ROS graph: started and stopped through the supervisor, watched through its files.

The demo itself is no ROS participant: what it knows of the running graph it reads from what the
processes write below the run directory, as an operator would.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from qam_ros.contract.errors import QamError
from qam_ros.contract.transition import GuardMode
from qam_ros.runtime.bringup import find_executable, load_bringup
from qam_ros.runtime.guard_log import ROW, read_guard_log
from qam_ros.runtime.supervisor import Supervisor
from qam_train.learner import REPLAY_LOG
from qam_train.learner_config import LearnerConfig
from qam_train.metrics import read_metrics
from qam_train.versions import VersionFolder

BRINGUP = "sim_finetune"
PROCESSES_FILE = "processes.json"
POLL_S = 0.5
LOG_LINES = 15


@dataclass(frozen=True)
class End:
    """How a graph ended.

    Args:
        exit_code: of the supervisor; 0: every process ended by itself with 0 when asked.
        processes_left: processes of the graph that are still there.
        seconds: from the request to the end [s].
    """

    exit_code: int
    processes_left: int
    seconds: float


class Graph:
    """The processes of one bringup, running on a thread's behalf while the context lasts.

    Args:
        arguments: of the bringup.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        bringup = load_bringup(BRINGUP, arguments)
        self.run_dir = bringup.run_dir
        self._supervisor = Supervisor(bringup)
        self._exit_code = 1
        self._thread = threading.Thread(
            target=self._run, name="supervisor", daemon=True
        )
        self._pids: set[int] = set()

    def __enter__(self) -> Graph:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread.is_alive():
            self.stop()

    def check(self) -> None:
        """Note the processes; raise when the graph ended by itself.

        Raises:
            QamError: it ended; the message ends with the last lines of its logs.
        """
        self._note_processes()
        if not self._thread.is_alive():
            raise QamError(
                f"the ROS graph ended by itself (exit code {self._exit_code}); expected it to run until "
                f"it is stopped. Its logs are in {self.run_dir / 'logs'}:\n{last_lines(self.run_dir)}"
            )

    def stop(self) -> End:
        """Ask everything to end, wait, and count what is left."""
        self._note_processes()
        started = time.monotonic()
        self._supervisor.stop()
        self._thread.join()
        seconds = time.monotonic() - started
        mine = {child.pid for child in psutil.Process().children(recursive=True)}
        return End(self._exit_code, len(mine & self._pids), seconds)

    def _note_processes(self) -> None:
        path = self.run_dir / PROCESSES_FILE
        if path.is_file():
            entries = json.loads(path.read_text())["processes"].values()
            self._pids |= {entry["pid"] for entry in entries if entry["pid"]}

    def _run(self) -> None:
        self._exit_code = self._supervisor.run()


def last_lines(run_dir: Path) -> str:
    """The end of every process log of a run."""
    parts = []
    for path in sorted((run_dir / "logs").glob("*.log")):
        lines = path.read_text(errors="replace").splitlines()[-LOG_LINES:]
        parts += [f"--- {path.name}", *lines]
    return "\n".join(parts)


@dataclass(frozen=True)
class Progress:
    """How far a graph is.

    Args:
        rows: rows in the learner's replay log.
        updates: updates of the learner that are in its metrics.
        accepted: versions that the robot accepted.
        finished: all updates are done and the last version has its verdict.
    """

    rows: int
    updates: int
    accepted: int
    finished: bool


def read_progress(run_dir: Path, config: LearnerConfig) -> Progress:
    """Read how far the learner of a run is."""
    metrics = read_metrics(run_dir / "metrics.jsonl")
    updates = int(metrics[-1]["step"]) if metrics else 0
    versions = run_dir / "versions"
    records = VersionFolder(versions, 0).records.values() if versions.is_dir() else ()
    last = max((record.updates for record in records), default=0)
    judged = all(record.accepted is not None for record in records)
    return Progress(
        rows=count_rows(run_dir / REPLAY_LOG),
        updates=updates,
        accepted=sum(record.accepted is True for record in records),
        finished=updates >= config.total_updates
        and last >= config.total_updates
        and judged,
    )


def count_rows(path: Path) -> int:
    """Rows in a replay log that another process may be writing; 0 while there is none."""
    if not path.is_file():
        return 0
    try:
        with closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        ) as file:
            return int(file.execute("SELECT count(*) FROM rows").fetchone()[0])
    except sqlite3.OperationalError:  # being made, or locked for a moment
        return 0


class Operator:
    """Does what a person beside the robot would: resets the guard after it stopped.

    On a busy machine observations or proposals may come too late. Motion then resumes only on an
    explicit reset; in the demo nobody can be hurt.

    Args:
        run_dir: of the graph.
    """

    def __init__(self, run_dir: Path) -> None:
        self.resets = 0
        self._log = run_dir / "guard.log"
        self._seen_ns = 0

    def look(self) -> None:
        """Reset the guard if its newest row is one of a safe stop that was not seen before."""
        if not self._log.is_file():
            return
        records = read_guard_log(self._log)
        rows = records[records["kind"] == ROW]
        if not len(rows) or rows[-1]["mode"] != GuardMode.SAFE_STOP:
            return
        stamp_ns = int(rows[-1]["observation_stamp_ns"])
        if stamp_ns > self._seen_ns:
            self._seen_ns = stamp_ns
            done = subprocess.run([find_executable("qam"), "reset"], check=False)
            self.resets += done.returncode == 0


class Watch:
    """Raises when a run stands still.

    Args:
        graph: the running graph.
        start_timeout_s: longest time until the first row [s].
        stall_timeout_s: longest time without anything new after that [s].
    """

    def __init__(
        self, graph: Graph, start_timeout_s: float, stall_timeout_s: float
    ) -> None:
        self._graph = graph
        self._start_timeout_s = start_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._seen = (0, 0, 0)
        self._since = time.monotonic()

    def look(self, progress: Progress) -> None:
        """Compare with what was seen before.

        Raises:
            QamError: the graph ended, or nothing has moved for too long.
        """
        self._graph.check()
        now = (progress.rows, progress.updates, progress.accepted)
        if now != self._seen:
            self._seen, self._since = now, time.monotonic()
            return
        limit_s = self._stall_timeout_s if progress.rows else self._start_timeout_s
        if time.monotonic() - self._since > limit_s:
            raise QamError(
                f"nothing new from the ROS graph for {limit_s:.0f} s: {progress.rows} rows, "
                f"{progress.updates} updates; expected rows to arrive. Its logs are in "
                f"{self._graph.run_dir / 'logs'}:\n{last_lines(self._graph.run_dir)}"
            )
