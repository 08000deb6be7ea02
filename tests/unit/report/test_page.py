# SPDX-License-Identifier: Apache-2.0
"""The page stands alone, escapes what it prints, and summary.json holds the promised keys."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from qam_ros.contract.errors import ConfigError
from qam_train.report.page import page
from qam_train.report.record import Record, columns, summary, write_json
from qam_train.report.terminal import summary_table


def test_page_refers_to_nothing_outside_itself(record: Record) -> None:
    text = page(record)
    links = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert links
    assert all(link.startswith("data:") for link in links)
    assert not re.findall(r"url\((?!#)", text)


def test_page_shows_the_numbers_of_the_run(record: Record) -> None:
    text = page(record)
    assert "12 → 80 → 91 %" in text
    assert "3010 executed" in text
    assert "5 accepted, 1 refused" in text
    assert "mean probe change 0.31" in text
    assert "nothing lost, nothing twice" in text


def test_page_says_when_transitions_were_lost(record: Record) -> None:
    lost = dataclasses.replace(
        record, stream=dataclasses.replace(record.stream, lost=2)
    )
    assert "2 lost, 0 duplicated" in page(lost)


def test_page_escapes_text_of_the_run(record: Record) -> None:
    text = page(
        dataclasses.replace(record, settings="robot: <script>alert(1)</script>")
    )
    assert "<script>" not in text
    assert "before and after &lt;side by side&gt;" in text


def test_page_without_a_film_has_no_empty_section(record: Record) -> None:
    assert "Before and after" not in page(dataclasses.replace(record, film=None))


def test_summary_holds_exactly_the_promised_keys(record: Record) -> None:
    found = summary(record)
    assert set(found) == {
        "base_success", "offline_success", "online_success", "transitions_executed",
        "transitions_in_replay", "lost", "duplicated", "swaps", "refused_swaps",
        "lockstep_steps_per_s", "realtime", "seconds", "peak_rss_mib", "versions",
    }  # fmt: skip
    assert set(found["base_success"]) == {"mean", "low", "high", "episodes"}
    assert set(found["realtime"]) == {
        "ticks",
        "late_ticks",
        "tick_period_ms",
        "latency_ms",
    }
    assert set(found["realtime"]["latency_ms"]) == {"p50", "p99", "max"}
    assert (found["swaps"], found["refused_swaps"]) == (5, 1)


def test_summary_of_a_run_without_real_time_is_still_json(
    record: Record, tmp_path: Path
) -> None:
    timing = dataclasses.replace(
        record.realtime, ticks=0, tick_period_ms=np.zeros(0), latency_ms=np.zeros(0)
    )
    path = tmp_path / "summary.json"
    write_json(path, summary(dataclasses.replace(record, realtime=timing)))
    assert json.loads(path.read_text())["realtime"]["tick_period_ms"]["p50"] is None
    assert list(tmp_path.iterdir()) == [path]


def test_a_number_that_is_not_finite_is_refused_in_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "summary.json", {"mean": float("nan")})


def test_metric_rows_become_columns_of_their_stage() -> None:
    rows = [
        {"step": 20, "stage": "behaviour", "flow/loss": 0.5},
        {"step": 40, "stage": "offline", "flow/loss": 0.3, "critic/td_loss": 2.0},
        {"step": 60, "stage": "offline", "flow/loss": 0.2},
    ]
    found = columns(rows, "offline")
    np.testing.assert_array_equal(found["update"], [20, 40])
    np.testing.assert_array_equal(found["critic/td_loss"], [2.0, np.nan])


def test_metric_rows_without_the_stage_are_an_error() -> None:
    with pytest.raises(ConfigError, match="offline"):
        columns([{"step": 20, "stage": "behaviour"}], "offline")


def test_terminal_summary_names_success_and_loss(record: Record) -> None:
    console = Console(width=110)
    with console.capture() as captured:
        console.print(summary_table(record, Path("runs/demo/report.html")))
    text = captured.get()
    assert "80 %  [71, 87]  of 100 episodes" in text
    assert "3010 executed, 3010 in replay, 0 lost, 0 twice" in text
    assert "runs/demo/report.html" in text
