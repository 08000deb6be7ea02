# SPDX-License-Identifier: Apache-2.0
"""Cells as tasks of a Ray that is started on this machine."""

import importlib.util
import sys

import pytest

from qam_ros.contract.errors import ConfigError
from qam_train.suite.folder import CellFolder
from qam_train.suite.matrix import Cell, drive
from qam_train.suite.ray_pool import LOCAL, RayPool

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="needs Ray: pip install 'qam_ros[cluster]'",
)


class Silent:
    """A watcher that remembers what ended."""

    def __init__(self):
        self.said = {}

    def started(self, cell):
        pass

    def ended(self, cell, death):
        self.said[cell.name] = death

    def look(self, running):
        pass


def test_without_ray_the_error_says_what_to_install(tiny_settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install qam_ros\[cluster\]"):
        RayPool(LOCAL, 1, tiny_settings, 0.0)


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray's own start
def test_a_local_ray_runs_cells_and_reports_the_one_that_failed(
    tiny_cell, tiny_settings
):
    good = tiny_cell(online_steps=0)
    bad = tiny_cell("fql", online_steps=0, offline_lr_end=1e30)
    cells = [
        Cell(config, CellFolder(tiny_settings.out / config.folder))
        for config in (good, bad)
    ]
    watcher = Silent()
    failed = drive(cells, RayPool(LOCAL, 2, tiny_settings, 0.0), watcher)
    assert failed == [cells[1]]
    assert set(watcher.said.values()) == {""}
    assert cells[0].folder.done["evaluations"] == 2
    assert cells[1].folder.failure["error"] == "NonFiniteError"


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_ray_that_is_not_there_is_an_error(tiny_settings, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="cannot reach Ray"):
        RayPool("auto", 1, tiny_settings, 0.0)
