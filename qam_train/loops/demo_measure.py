# SPDX-License-Identifier: Apache-2.0
"""What a finished graph left behind, measured from its files: keys, episodes, swaps, timing."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qam_ros.contract.interface import RobotInterface
from qam_ros.contract.transition import Rows
from qam_ros.runtime.guard_log import executed_keys, read_guard_log
from qam_ros.runtime.store import TransitionStore
from qam_ros.runtime.timing import LATE, periods, read_timing
from qam_train.checkpoint import latest_checkpoint, read_checkpoint
from qam_train.learner import REPLAY_LOG
from qam_train.report.record import Episodes, RealTime, StreamCheck, Swap
from qam_train.versions import VersionRecord
from sim.timing import EPISODES_FILE

GUARD_LOG = "guard.log"
SPOOL = "spool.sqlite"
RUN_FILES = ("policy_timing.npz", "guard_timing.npz", "plant_timing.npz", EPISODES_FILE)
MS = 1e-6  # from nanoseconds


def read_rows(path: Path, interface: RobotInterface) -> Rows:
    """All rows of a transition store, in the order of their arrival."""
    with TransitionStore(path, interface) as store:
        return store.read(0, 10**9)[1]


def check_stream(run_dir: Path, interface: RobotInterface) -> StreamCheck:
    """Compare the keys the guard executed with the keys in replay, and those with the trainer's count.

    The log holds a key once by its own making; whether the trainer took a row in twice shows in the
    count that its newest checkpoint keeps.
    """
    executed = executed_keys(read_guard_log(run_dir / GUARD_LOG))
    rows = read_rows(run_dir / REPLAY_LOG, interface)
    replay = {
        (session.tobytes(), int(seq))
        for session, seq in zip(rows["session"], rows["seq"], strict=True)
    }
    taken_in = _rows_taken_in(run_dir)
    with TransitionStore(run_dir / SPOOL, interface) as spool:
        spooled = spool.last_position
    return StreamCheck(
        executed=len(executed),
        in_replay=len(replay),
        lost=len(executed - replay),
        duplicated=max(0, taken_in - len(replay)) + len(replay - executed),
        masked=int((rows["masked"] != 0).sum()),
        per_version=dict(Counter(rows["policy_version"].tolist())),
        counters={
            "rows_in_the_spool": spooled,
            "rows_taken_in": taken_in,
            "guard_sessions": len({key[0] for key in executed}),
        },
    )


def _rows_taken_in(run_dir: Path) -> int:
    """Rows that the trainer had taken in at its newest checkpoint; 0 without one."""
    newest = latest_checkpoint(run_dir / "checkpoints")
    return 0 if newest is None else int(read_checkpoint(newest).metadata["rows"])


def read_episodes(folder: Path, rows: Rows) -> Episodes:
    """Finished episodes of one run of the graph, in the order they were played.

    Args:
        folder: where `keep_files` put its files.
        rows: its replay rows; they say which policy version acted last in an episode.
    """
    with (folder / EPISODES_FILE).open(newline="", encoding="utf-8") as file:
        table = [
            line
            for line in csv.DictReader(file)
            if line["terminated"] == "1" or line["truncated"] == "1"
        ]
    version = dict(
        zip(rows["episode"].tolist(), rows["policy_version"].tolist(), strict=True)
    )
    return Episodes(
        end_step=np.cumsum([int(line["steps"]) for line in table]),
        success=np.array([int(line["success"]) for line in table], dtype=np.int64),
        version=np.array(
            [version.get(int(line["episode"]), 0) for line in table], dtype=np.int64
        ),
    )


def read_swaps(records: list[VersionRecord], rows: Rows) -> tuple[Swap, ...]:
    """Offered versions with their verdicts, and the row at which each took over."""
    versions = rows["policy_version"]
    swaps = []
    for record in sorted(records, key=lambda record: record.version):
        used = np.flatnonzero(versions == record.version)
        accepted = bool(record.accepted)
        swaps.append(
            Swap(
                version=record.version,
                accepted=accepted,
                reason=record.reason,
                probe_change=record.probe_change,
                swap_ms=record.swap_ms if accepted else None,
                env_step=int(used[0]) if len(used) else None,
            )
        )
    return tuple(swaps)


def keep_files(run_dir: Path, name: str) -> Path:
    """Put timing and episodes of a graph that ended into a folder of their own.

    Returns:
        The folder.
    """
    folder = run_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in RUN_FILES:
        if (run_dir / file).is_file():
            shutil.move(run_dir / file, folder / file)
    return folder


@dataclass(frozen=True)
class Lockstep:
    """Speed of the loop in lockstep.

    Args:
        steps_per_s: control ticks per wall second, everything included.
        credit_wait_s: time in which the plant waited for the learner [s].
        step_ms: median duration of simulating one step [ms].
        chunk_ms: median duration of sampling one chunk [ms].
    """

    steps_per_s: float
    credit_wait_s: float
    step_ms: float
    chunk_ms: float


def lockstep_speed(folder: Path) -> Lockstep:
    """Speed from the timing files of a lockstep run."""
    policy = read_timing(folder / "policy_timing.npz")
    plant = read_timing(folder / "plant_timing.npz")
    ticks = policy["tick_ns"]
    span_s = float(ticks[-1] - ticks[0]) * 1e-9 if len(ticks) > 1 else float("nan")
    return Lockstep(
        steps_per_s=(len(ticks) - 1) / span_s,
        credit_wait_s=float(plant["credit_wait_s"][0]),
        step_ms=float(np.median(plant["step_ns"])) * MS,
        chunk_ms=float(np.median(policy["sample_ns"])) * MS,
    )


def real_time(folder: Path, period_s: float, settle_s: float) -> RealTime:
    """Tick periods, late ticks and latencies of a real-time run.

    Args:
        folder: its timing files.
        period_s: control period [s].
        settle_s: time left out at the beginning [s].
    """
    policy = read_timing(folder / "policy_timing.npz")
    guard = read_timing(folder / "guard_timing.npz")
    kept = _after(policy["tick_ns"], settle_s)
    late = LATE * policy["publish_lateness_ns"][kept] > round(period_s * 1e9)
    latency = guard["latency_ns"]
    skipped = len(guard["tick_ns"]) - int(_after(guard["tick_ns"], settle_s).sum())
    return RealTime(
        period_ms=1e3 * period_s,
        ticks=int(kept.sum()),
        late_ticks=int(late.sum()) + _skipped(policy, kept, period_s),
        tick_period_ms=periods(policy["tick_ns"][kept].astype(np.int64)) * MS,
        latency_ms=latency[min(skipped, len(latency)) :] * MS,
    )


def _skipped(
    policy: dict[str, NDArray[np.number]], kept: NDArray[np.bool_], period_s: float
) -> int:
    """Deadlines that the policy left out, seen as gaps between those of its ticks.

    A tick starts at its deadline + wake-up + wait for sensors.
    """
    behind = policy["lateness_ns"] + policy["sensor_wait_ns"]
    deadlines = (policy["tick_ns"] - behind)[kept]
    return int((np.round(np.diff(deadlines) / (period_s * 1e9)) - 1).clip(0).sum())


def _after(ticks_ns: NDArray[np.number], seconds: float) -> NDArray[np.bool_]:
    """Ticks later than so long after the first."""
    if len(ticks_ns) == 0:
        return np.zeros(0, dtype=bool)
    return (ticks_ns - ticks_ns[0]) >= seconds * 1e9
