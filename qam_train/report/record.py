# SPDX-License-Identifier: Apache-2.0
"""What a demo run measured, as data: the only input of the figures, the page and the summary."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qam_ros.contract.errors import ConfigError

Array = NDArray[Any]


@dataclass(frozen=True)
class SuccessRate:
    """Share of successful episodes with its 95 % interval.

    Args:
        mean: share in [0, 1].
        low: lower end of the interval.
        high: upper end of the interval.
        episodes: number of episodes.
    """

    mean: float
    low: float
    high: float
    episodes: int


@dataclass(frozen=True)
class Percentiles:
    """Middle, tail and worst case of a measured quantity; None where nothing was measured."""

    p50: float | None
    p99: float | None
    max: float | None

    @classmethod
    def of(cls, values: Array) -> Percentiles:
        """Percentiles of (N,) values."""
        if len(values) == 0:
            return cls(None, None, None)
        p50, p99 = np.percentile(values, [50, 99])
        return cls(float(p50), float(p99), float(np.max(values)))


@dataclass(frozen=True)
class RealTime:
    """Timing of the graph in real time.

    Args:
        period_ms: control period [ms].
        ticks: control ticks in the window.
        late_ticks: ticks that were published more than a fifth of a period after their deadline, as
            the policy node counts them, and those it skipped.
        tick_period_ms: (ticks - 1,), time between consecutive ticks [ms].
        latency_ms: observation stamp to command publication [ms].
    """

    period_ms: float
    ticks: int
    late_ticks: int
    tick_period_ms: Array
    latency_ms: Array


@dataclass(frozen=True)
class Swap:
    """One offered policy version and the robot's verdict.

    Args:
        version: offered version.
        accepted: whether it runs now.
        reason: the robot's words.
        probe_change: mean action change on the 64 probes.
        swap_ms: duration of the copy at the chunk boundary [ms]; None where refused.
        env_step: rows executed before it took over; None where refused or never used.
    """

    version: int
    accepted: bool
    reason: str
    probe_change: float
    swap_ms: float | None
    env_step: int | None


@dataclass(frozen=True)
class Episodes:
    """Online episodes in the order they were executed.

    Args:
        end_step: (N,), executed rows up to the end of the episode.
        success: (N,), 1 where the episode reached its goal.
        version: (N,), policy version of its last row.
    """

    end_step: Array
    success: Array
    version: Array


@dataclass(frozen=True)
class StreamCheck:
    """What the guard executed compared with what is in replay, as sets of keys.

    Args:
        executed: keys that the guard logged inside an episode.
        in_replay: keys in the learner's replay log.
        lost: executed keys that are not in replay.
        duplicated: rows the trainer took in beyond those of the log, and keys never executed.
        masked: rows where the guard held or stopped; in replay, never trained on.
        per_version: rows by the policy version that proposed them.
        counters: what stream and learner counted themselves (batches, resends, ...).
    """

    executed: int
    in_replay: int
    lost: int
    duplicated: int
    masked: int
    per_version: Mapping[int, int]
    counters: Mapping[str, float]


@dataclass(frozen=True)
class Film:
    """Episode before and after fine-tuning, for the page.

    Args:
        data: an mp4 (h264).
        caption: what is seen, and how it was drawn.
    """

    data: bytes
    caption: str


@dataclass(frozen=True)
class Record:
    """All measurements of one demo run."""

    seed: int
    method: str  # as its paper writes it
    machine: Mapping[str, str]
    dataset: Mapping[str, float]
    success: Mapping[str, SuccessRate]  # base, offline, online
    behaviour: Mapping[
        str, Array
    ]  # metric -> values, with 'update' counted within the stage
    offline: Mapping[str, Array]
    online: Mapping[str, Array]
    episodes: Episodes
    swaps: tuple[Swap, ...]
    stream: StreamCheck
    lockstep_steps_per_s: float
    realtime: RealTime
    parity: Mapping[str, float]
    stages: Mapping[str, float]  # seconds
    peak_rss_mib: float
    clean_stop: Mapping[str, float]
    lockstep: Mapping[str, float]
    settings: str = ""
    film: Film | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def accepted(self) -> int:
        """Swaps that took place."""
        return sum(swap.accepted for swap in self.swaps)


def summary(record: Record) -> dict[str, Any]:
    """Numbers of the run with the keys that `summary.json` promises."""
    timing = record.realtime
    return {
        **{f"{name}_success": asdict(rate) for name, rate in record.success.items()},
        "transitions_executed": record.stream.executed,
        "transitions_in_replay": record.stream.in_replay,
        "lost": record.stream.lost,
        "duplicated": record.stream.duplicated,
        "swaps": record.accepted,
        "refused_swaps": len(record.swaps) - record.accepted,
        "lockstep_steps_per_s": record.lockstep_steps_per_s,
        "realtime": {
            "ticks": timing.ticks,
            "late_ticks": timing.late_ticks,
            "tick_period_ms": asdict(Percentiles.of(timing.tick_period_ms)),
            "latency_ms": asdict(Percentiles.of(timing.latency_ms)),
        },
        "seconds": dict(record.stages),
        "peak_rss_mib": record.peak_rss_mib,
        "versions": dict(record.machine),
    }


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    os.replace(partial, path)


def columns(
    rows: Sequence[Mapping[str, Any]], stage: str | None = None
) -> dict[str, Array]:
    """Metric rows as columns: name -> (N,) float64, NaN where a row lacks the name.

    Args:
        rows: as qam_train.metrics.read_metrics gives them; 'step' becomes 'update', counted from
            the end of the stage before.
        stage: keep the rows of this stage only; None keeps all.

    Raises:
        ConfigError: no row is left.
    """
    kept = [row for row in rows if stage is None or row.get("stage") == stage]
    if not kept:
        raise ConfigError(
            f"metrics: expected rows of stage '{stage}', found none among {len(rows)}"
        )
    names = dict.fromkeys(
        name
        for row in kept
        for name, value in row.items()
        if isinstance(value, int | float)
    )
    table = {
        name: np.asarray([row.get(name, np.nan) for row in kept], dtype=np.float64)
        for name in names
    }
    before = max(
        (row["step"] for row in rows if row["step"] < kept[0]["step"]), default=0
    )
    table["update"] = table.pop("step") - (before if stage is not None else 0)
    return table
