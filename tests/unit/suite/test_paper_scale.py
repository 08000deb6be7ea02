# SPDX-License-Identifier: Apache-2.0
"""The paper-scale script in miniature: tiny data, tiny nets, few updates, the same path."""

import csv
import importlib
import json
from pathlib import Path

import pytest

from qam_train.checkpoint import checkpoints, read_checkpoint

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SETTINGS = [
    "episodes=2", "max_episode_steps=10", "agent.actor.widths=[8]", "agent.critic.widths=[8]",
    "agent.critics=2", "agent.batch_size=8", "agent.flow_steps=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setattr("sim.generate.SHARD_EPISODES", 1)  # of 1000 rows
        yield importlib.import_module("paper_scale")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("paper")


@pytest.fixture(scope="module")
def one_call(script, folder):
    """Exit code, record and results of a call that had the time for everything."""
    return _call(script, folder, "whole", "--minutes", "5")


def _call(script, folder, work, *more):
    out, data = folder / work / "out", folder / "data"
    arguments = [
        *("--out", str(out), "--work", str(folder / work), "--data", str(data)),
        *("--rows", "500", "--workers", "1", "--device", "cpu"),
        *("--updates", "8", "--every", "4", "--speed-seconds", "0.2"),
        *more,
    ]
    code = script.main([*arguments, "--set", *SETTINGS])
    whole = json.loads((out / "paper_scale.json").read_text())
    return code, whole, out


@pytest.mark.slow
def test_one_call_makes_data_trains_evaluates_and_stands_beside_the_published_curve(
    script, one_call
):
    code, whole, out = one_call
    assert code == script.COMPLETE
    places = [(row["task"], row["step"]) for row in whole["table"]]
    assert places == [(1, 4), (1, 8), (2, 4), (2, 8)]
    assert all(0.0 <= row["low"] <= row["success"] <= 1.0 for row in whole["table"])
    assert whole["about"]["matmul_precision"] == "high"
    assert whole["data"]["rows"] >= 500
    speed = whole["speed"]
    assert speed["difference"] == 0.0  # both eager on the CPU: the very same numbers
    assert min(speed["eager"], speed["recorded"]) > 0.0
    assert whole["training"]["updates"] == 16
    rows = list(csv.DictReader((out / "evaluations.csv").read_text().splitlines()))
    assert len(rows) == 4
    assert "task  updates" in (out / "table.txt").read_text()
    policy = read_checkpoint(out / "policy-task2.safetensors")
    assert policy.metadata["update"] == 8
    assert {"actor/0/weight", "observation_mean"} <= policy.tensors.keys()


@pytest.mark.slow
def test_a_call_whose_minutes_are_over_is_continued_by_the_next_one(
    script, folder, one_call, monkeypatch
):
    monkeypatch.setattr(script, "BLOCK", 3)
    left = iter([100.0] * 2 + [0.0] * 9)  # two rounds of training
    with monkeypatch.context() as short:
        short.setattr(script.Run, "left_s", property(lambda self: next(left)))
        code, whole, _ = _call(script, folder, "parts", "--speed-seconds", "0")
    assert code == script.OUT_OF_TIME
    assert whole["training"]["updates"] == 8
    kept = checkpoints(folder / "parts" / "task1" / "checkpoints")
    assert [script.step_of(path) for path in kept] == [4]
    code, whole, _ = _call(script, folder, "parts", "--minutes", "5")
    assert code == script.COMPLETE
    assert whole["calls"] == 2
    assert whole["training"]["updates"] == 16
    places = sorted((row["task"], row["step"]) for row in whole["table"])
    assert places == [(1, 4), (1, 8), (2, 4), (2, 8)]


def test_our_evaluation_stands_beside_the_published_success_after_as_many_updates(
    script,
):
    paper_table = importlib.import_module("paper_table")
    cell = script.load_protocol("p_qam").cell("qam", "scene", 1, 10001)
    found = {"task": 1, "success": 0.5, "low": 0.4, "high": 0.6, "episodes": 50}
    rows = paper_table.table(
        [cell],
        [{**found, "step": 100_000}, {**found, "step": 50_000}, {**found, "step": 7}],
        script.Published("qam"),
    )
    assert [row["step"] for row in rows] == [7, 50_000, 100_000]
    assert rows[0]["published"] is None
    assert rows[1]["published"] == pytest.approx(0.9033)
    assert rows[2]["published"] == pytest.approx(0.9983)


def test_results_of_a_call_that_found_its_data_made_are_written(script, tmp_path):
    """All rows were there, so no speed is known."""
    paper_table = importlib.import_module("paper_table")
    data = {"dataset": "scene-play", "rows": 500, "rows_per_cpu_s": None, "workers": 2}
    record = {"data": data, "training": {"seconds": 0.0, "updates": 0}}
    paper_table.write_results(tmp_path, record, [], {})
    assert "scene-play, 500 rows, 2 workers" in (tmp_path / "table.txt").read_text()


def test_an_unknown_domain_is_refused_with_the_nearest_name(script, tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--work", str(tmp_path), "--domain", "scnee"]
    assert script.main(arguments) == script.FAILED
    assert "scene" in capsys.readouterr().err


def test_a_protocol_that_starts_from_a_clone_is_refused(script, tmp_path, capsys):
    places = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert script.main([*places, "--protocol", "p_tr"]) == script.FAILED
    assert "--set behaviour_updates=0" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
