# SPDX-License-Identifier: Apache-2.0
"""What a run shows, and that it fits a terminal of 80 columns."""

import io

import pytest
from rich.console import Console

from qam_train.suite.display import LiveTable, duration, group_table
from qam_train.suite.folder import CellFolder, Progress
from qam_train.suite.matrix import Cell
from qam_train.suite.standing import find_cells, standing


@pytest.fixture
def cells(tiny_cell, tmp_path):
    """Three claimed cells: half way, done, failed."""
    found = []
    for seed in range(3):
        config = tiny_cell(seed=seed)
        cell = Cell(config, CellFolder(tmp_path / config.folder))
        cell.folder.claim(config)
        found.append(cell)
    running, done, failed = (cell.folder for cell in found)
    running.report(Progress("offline", 20, 20, 40, 4.0, 0.5))
    done.finish({"success": 0.25, "seconds": 61.0})
    failed.fail({"message": "update 3 (offline): not finite: " + "critic/q, " * 20})
    return found


def test_the_live_table_shows_phase_step_rate_success_and_time_left(cells):
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with cells[0].folder.locked():
        live = LiveTable(console, [cells[0], cells[2]], 3)
        live.started(cells[0])
        live.started(cells[2])
        live.ended(cells[2], "")
        live.look([cells[0]])
        live.close()
    shown = console.file.getvalue()
    assert "1 of 3 cells done, 1 failed, 0 wait" in shown
    row = next(line for line in shown.splitlines() if "20 / 80" in line)
    # 60 of 80 steps are left, at 4 a second
    for part in ("qam pointmaze", "offline", "4.0", "0.50", "0:00:15"):
        assert part in row
    assert "FAILED: update 3" in shown
    assert all("critic/q, " * 8 not in line for line in shown.splitlines())


def test_a_folder_is_summed_up_by_method_and_domain(cells, tmp_path):
    assert [standing(cell).state for cell in find_cells(tmp_path)] == [
        "stopped",
        "done",
        "failed",
    ]
    console = Console(file=io.StringIO(), width=80)
    console.print(group_table(find_cells(tmp_path)))
    words = console.file.getvalue().split()
    assert " ".join(words).count("1 of 3") == 1
    assert {"failed,", "stopped", "qam", "pointmaze-medium"} <= set(words)


def test_a_duration_that_is_not_known_is_a_question_mark():
    assert duration(None) == "?"
    assert duration(3723.4) == "1:02:03"
