# SPDX-License-Identifier: Apache-2.0
"""The whole loop in miniature over DDS: every stage, every process, nothing lost, resumable."""

import json
from pathlib import Path

import pytest

from qam_train.agents.registry import METHODS
from qam_train.loops.demo import STAGES, command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_miniature_demo_runs_the_whole_loop_and_resumes(
    tmp_path: Path, ros_domain: int
) -> None:
    run_dir = tmp_path / "demo run"  # a space in its name
    assert command(["--miniature", "--quiet", "--run-dir", str(run_dir)]) == 0
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["lost"] == summary["duplicated"] == 0
    assert summary["transitions_executed"] == summary["transitions_in_replay"] >= 350
    assert summary["swaps"] >= 3
    assert summary["realtime"]["ticks"] > 50
    assert summary["realtime"]["tick_period_ms"]["p50"] == pytest.approx(50, rel=0.1)
    assert set(summary["seconds"]) == set(STAGES)
    assert 100 < summary["peak_rss_mib"] < 4096
    stages = json.loads((run_dir / "stages.json").read_text())
    for name in ("online", "real time"):
        assert stages[name]["result"]["exit_code"] == 0
        assert stages[name]["result"]["processes_left"] == 0
    page = (run_dir / "report.html").read_text()
    assert page.count("data:image/svg+xml") >= 6

    # An interrupted demo goes on after its finished stages.
    del stages["report"]
    (run_dir / "stages.json").write_text(json.dumps(stages))
    (run_dir / "report.html").unlink()
    assert command(["--resume", "--quiet", "--run-dir", str(run_dir)]) == 0
    assert (run_dir / "report.html").is_file()
    assert json.loads((run_dir / "stages.json").read_text())["data"] == stages["data"]


QUICK = {
    "ifql"
}  # many samples and critics in the policy's graph; the others take their time
NAMES = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.every_method)
    for name in sorted(METHODS)
    if name not in ("qam", "flow_bc")
]


@pytest.mark.parametrize("method", NAMES)
def test_a_method_trains_plays_and_learns_on_in_the_miniature_demo(
    tmp_path: Path, ros_domain: int, method: str
) -> None:
    run_dir = tmp_path / "demo"
    words = ["--miniature", "--quiet", "--method", method, "--run-dir", str(run_dir)]
    assert command(words) == 0
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["lost"] == summary["duplicated"] == 0
    assert summary["transitions_executed"] == summary["transitions_in_replay"] >= 350
    assert summary["swaps"] + summary["refused_swaps"] >= 3
    assert summary["realtime"]["ticks"] > 50
    stages = json.loads((run_dir / "stages.json").read_text())
    assert stages["offline"]["result"]["agent"] == method
    for name in ("online", "real time"):
        assert stages[name]["result"]["exit_code"] == 0
        assert stages[name]["result"]["processes_left"] == 0
