# SPDX-License-Identifier: Apache-2.0
"""Metrics files: both forms hold the same rows, also after a resume."""

import csv

from qam_train.metrics import MetricsWriter, read_metrics


def _table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_appear_in_both_files_at_once(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(1, {"loss": 0.5})
        assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]
        assert _table(tmp_path / "metrics.csv") == [{"step": "1", "loss": "0.5"}]


def test_new_name_adds_a_column_to_earlier_rows(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(1, {"loss": 0.5})
        metrics.write(2, {"loss": 0.25, "critic/q_mean": 3.0})
        metrics.write(3, {"loss": 0.125})
    table = _table(tmp_path / "metrics.csv")
    assert [row["critic/q_mean"] for row in table] == ["", "3.0", ""]
    assert [row["loss"] for row in table] == ["0.5", "0.25", "0.125"]


def test_resumed_run_leaves_the_record_of_an_uninterrupted_one(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with MetricsWriter(whole) as metrics:
        for step in range(6):
            metrics.write(step, {"loss": step / 8})
    with MetricsWriter(broken) as metrics:
        for step in range(5):
            metrics.write(
                step, {"loss": step / 8, **({"late": 1.0} if step == 4 else {})}
            )
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    with MetricsWriter(broken, resume_step=2) as metrics:
        for step in range(3, 6):
            metrics.write(step, {"loss": step / 8})
    for name in ("metrics.jsonl", "metrics.csv"):
        assert (broken / name).read_text() == (whole / name).read_text()


def test_new_run_starts_empty(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(1, {"loss": 0.5})
    MetricsWriter(tmp_path).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    assert read_metrics(tmp_path / "none.jsonl") == []
