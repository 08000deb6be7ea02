# SPDX-License-Identifier: Apache-2.0
"""The policy's benchmarks run, and print what the tables of the documentation need."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qam_ros.contract.artifact import read_artifact
from qam_train.export import Provenance, export_artifact

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def bench(script, *words):
    """What a benchmark prints as JSON."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{script}.py"), *words, "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_policy_benchmark_measures_every_path_and_its_memory():
    found = bench("policy", "--runs", "3", "--net", "demo 2 x 256", "--no-compile")[
        "results"
    ]
    chunks = {row["variant"]: row for row in found if row["what"] == "chunk"}
    assert {
        *("baseline: weights baked in", "ours: weights as inputs"),
        *("ours: onnx-int8", "torch eager"),
    } <= chunks.keys()
    assert chunks["ours: weights as inputs"]["error to float64"] < 1e-5
    assert 1e-5 < chunks["ours: onnx-int8"]["error to float64"] < 0.05
    assert all(row["memory [MB]"] > 0 for row in chunks.values())
    assert {row["variant"] for row in found if row["what"] == "tick"} == {
        *("sampler alone", "whole tick"),
    }


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_policy_benchmark_takes_an_artifact(
    precision, agent, interface, dataset, tmp_path
):
    path = tmp_path / "policy"
    provenance = Provenance("run", "ab" * 32)
    export_artifact(agent, interface, dataset, path, provenance, precision=precision)
    found = bench("policy", "--runs", "3", "--artifact", str(path), "--no-compile")
    errors = {
        row["variant"]: row["error to float64"]
        for row in found["results"]
        if row["what"] == "chunk"
    }
    assert errors["baseline: weights baked in"] < 1e-5  # in float32 on a CPU
    assert errors["ours: weights as inputs"] < 1e-5
    assert read_artifact(path).manifest.head == "flow"


@pytest.mark.skipif(sys.platform != "linux", reason="engines are for Linux")
def test_gpu_benchmark_runs_in_miniature_and_says_what_is_missing(tmp_path):
    words = ("--heads", "flow", "best_of_flow", "--runs", "2")
    found = bench("gpu_policy", *words, "--out", str(tmp_path / "found.json"))
    if "none" not in found["about"]["gpu"]:
        pytest.skip("there is a GPU: the whole of it was run")
    assert "GPU" in found["about"]["missing"]
    assert {row["head"] for row in found["results"]} == {"flow", "best_of_flow"}
    assert {row["precision"] for row in found["results"]} == {
        *("float32", "float16", "bfloat16"),
    }
    assert {row["verdict"] for row in found["results"]} == {"within"}
    assert json.loads((tmp_path / "found.json").read_text()) == found["results"]
