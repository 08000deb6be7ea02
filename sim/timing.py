# SPDX-License-Identifier: Apache-2.0
"""Times of a plant's steps, kept in bounded memory and written beside the run."""

from __future__ import annotations

import csv
import math
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from qam_ros.runtime.timing import TimingRing, write_timing
from sim.plant import EpisodeRecord

TIMING_FILE = "plant_timing.npz"
EPISODES_FILE = "episodes.csv"
MISSING = -1  # no command came in time


class PlantTiming:
    """The last `capacity` control steps, and totals.

    Attributes:
        skipped: control periods left out because the plant was late (real time).
        credit_wait_s: wall time spent waiting for the learner [s].
        timeouts: steps for which not every command came in time.

    Args:
        capacity: steps kept.
    """

    def __init__(self, capacity: int = 200_000) -> None:
        self._rings = {
            name: TimingRing(capacity)
            for name in ("stamp_ns", "lateness_ns", "command_latency_ns", "step_ns")
        }
        self.skipped = 0
        self.credit_wait_s = 0.0
        self.timeouts = 0

    def append(
        self,
        *,
        stamp_ns: int,
        lateness_s: float,
        command_latency_s: float,
        step_s: float,
    ) -> None:
        """Add one control step.

        Args:
            stamp_ns: its stamp [ns].
            lateness_s: publication less deadline [s]; 0 in lockstep.
            command_latency_s: last command less publication [s]; NaN when one did not come in time.
            step_s: duration of simulating and labelling the step [s].
        """
        missing = math.isnan(command_latency_s)
        self.timeouts += missing
        self._rings["stamp_ns"].append(stamp_ns)
        self._rings["lateness_ns"].append(round(lateness_s * 1e9))
        self._rings["command_latency_ns"].append(
            MISSING if missing else round(command_latency_s * 1e9)
        )
        self._rings["step_ns"].append(round(step_s * 1e9))

    @property
    def steps(self) -> int:
        """Control steps so far."""
        return self._rings["stamp_ns"].count

    def write(self, run_dir: Path) -> None:
        """Write `plant_timing.npz`, whole or not at all."""
        series = {name: ring.values() for name, ring in self._rings.items()}
        totals = {
            "skipped": np.array([self.skipped]),
            "timeouts": np.array([self.timeouts]),
            "credit_wait_s": np.array([self.credit_wait_s]),
        }
        write_timing(run_dir / TIMING_FILE, series | totals)


class EpisodeLog:
    """`episodes.csv`: one line an episode, flushed at once.

    Args:
        run_dir: folder of the run; made if it is not there.
    """

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / EPISODES_FILE
        new = not path.exists() or path.stat().st_size == 0
        self._file = path.open("a", newline="", encoding="utf-8")
        names = [field.name for field in fields(EpisodeRecord)]
        self._writer = csv.DictWriter(self._file, names)
        if new:
            self._writer.writeheader()
            self._file.flush()

    def append(self, record: EpisodeRecord) -> None:
        """Add one episode."""
        row = {
            name: int(value) if isinstance(value, bool) else value
            for name, value in asdict(record).items()
        }
        self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
