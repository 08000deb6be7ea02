# SPDX-License-Identifier: Apache-2.0
"""The summary that ends a demo run on the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from qam_train.report.record import Percentiles, Record, SuccessRate
from qam_train.report.style import STAGE_NAMES


def summary_table(record: Record, report: Path) -> Table:
    """What the run measured, one line per promise."""
    table = Table(
        title=f"demo, seed {record.seed}",
        title_justify="left",
        show_header=False,
        min_width=70,
    )
    table.add_column(style="bold")
    table.add_column()
    for name, text in STAGE_NAMES.items():
        if name in record.success:
            table.add_row(f"success, {text}", success_text(record.success[name]))
    stream = record.stream
    kept = f"{stream.executed} executed, {stream.in_replay} in replay, {stream.lost} lost, {stream.duplicated} twice"
    table.add_row("transitions", kept)
    refused = len(record.swaps) - record.accepted
    table.add_row("weight swaps", f"{record.accepted} accepted, {refused} refused")
    table.add_row("lockstep", f"{record.lockstep_steps_per_s:.1f} control steps/s")
    timing = record.realtime
    period, latency = (
        Percentiles.of(timing.tick_period_ms),
        Percentiles.of(timing.latency_ms),
    )
    table.add_row("real time", f"{timing.ticks} ticks, {timing.late_ticks} late")
    table.add_row("  tick period", _milliseconds(period))
    table.add_row("  observation to command", _milliseconds(latency))
    total = sum(record.stages.values())
    table.add_row(
        "work", f"{total / 60:.1f} min, {record.peak_rss_mib:.0f} MiB at most"
    )
    table.add_row("report", str(report))
    return table


def success_text(rate: SuccessRate) -> str:
    """For example ``80 %  [71, 87]  of 100 episodes``."""
    bounds = f"[{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
    return f"{100 * rate.mean:3.0f} %  {bounds}  of {rate.episodes} episodes"


def _milliseconds(value: Percentiles) -> str:
    if value.p50 is None or value.p99 is None or value.max is None:
        return "not measured"
    return f"p50 {value.p50:.2f}  p99 {value.p99:.2f}  max {value.max:.2f} ms"
