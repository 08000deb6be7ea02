# SPDX-License-Identifier: Apache-2.0
"""The loop benchmark: what counts as late, how sure a difference is, and that it runs."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
T = 10_000_000
DEADLINES = np.arange(100.0) * T

pytest.importorskip("torch", reason="needs torch: run make setup")


@pytest.fixture
def loop(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("loop")


def make_part(loop, deadlines, late):
    ticks = deadlines + late
    return loop.Part(1.0, T, deadlines, ticks, late, np.zeros(0), 0.0, {})


def test_a_tick_over_half_a_period_late_counts_once(loop):
    late = np.zeros(100)
    late[50] = 0.6 * T
    assert make_part(loop, DEADLINES, late).bad == (1, 100)


def test_a_deadline_left_out_counts_beside_the_late_tick_before_it(loop):
    late = np.zeros(100)
    late[50] = 1.2 * T
    kept = np.arange(100) != 51
    part = make_part(loop, DEADLINES[kept], late[kept])
    assert (part.missed, part.late_ticks, part.bad) == (1, 1, (2, 100))


def test_the_interval_holds_the_difference_and_shrinks_with_equal_turns(loop):
    bad = np.array([[3.0, 100.0]] * 10)
    bare = np.array([[1.0, 100.0]] * 10)
    assert loop.late_difference(bad, bare) == pytest.approx((2.0, 2.0, 2.0))
    bad[0, 0] = 53.0  # one bad turn of ten: the difference is not sure
    found, low, high = loop.late_difference(bad, bare)
    assert found == pytest.approx(7.0)
    assert low == pytest.approx(2.0)
    assert high > 12.0


def test_a_load_that_hits_both_alike_leaves_no_difference(loop):
    load = np.linspace(0.0, 50.0, 10)
    turns = np.stack([load, np.full(10, 100.0)], axis=1)
    assert loop.late_difference(turns, turns) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("words", [["50,100"], ["50", "100"], ["50,", "100"]])
def test_rates_may_be_words_or_a_list(loop, words):
    rates = loop._arguments(["--rate", *words]).rate
    assert [rate for word in rates for rate in word] == [50.0, 100.0]


@pytest.mark.parametrize("more", [[], ["--swaps", "20"]])
def test_the_benchmark_runs_and_prints_one_object(more):
    command = [
        *(sys.executable, str(BENCHMARKS / "loop.py"), "--rate", "100"),
        *("--seconds", "1", "--turns", "2", "--no-ros", "--no-fifo", "--json", *more),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True
    )
    found = json.loads(done.stdout)
    rows = {row["loop"]: row for row in found["results"]}
    assert {"bare loop", "in-process bus"} <= rows.keys()
    assert rows["in-process bus"]["command p50 [us]"] > 0
    if more:
        assert rows["in-process bus, swaps"]["baseline"] == "in-process bus"
        (swaps,) = (
            row
            for row in found["about"]["where the time goes"]
            if row["time goes into"] == "exchange of weights [us]"
        )
        assert swaps["p50"] > 0
