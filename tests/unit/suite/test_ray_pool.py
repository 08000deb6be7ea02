# SPDX-License-Identifier: Apache-2.0
"""Cells as tasks of a Ray that is started on this machine."""

import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from qam_ros.contract.errors import ConfigError
from qam_train.checkpoint import checkpoints, read_checkpoint
from qam_train.suite import ray_pool
from qam_train.suite.cell import run_cell
from qam_train.suite.cell_config import read_cell
from qam_train.suite.command import RunArguments, make_pool
from qam_train.suite.folder import CellFolder
from qam_train.suite.matrix import Cell, drive
from qam_train.suite.ray_pool import LOCAL, RayPool

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="needs Ray: pip install 'qam_ros[cluster]'",
)


class FakeRay:
    """What a driver sees of a Ray with so many GPUs."""

    def __init__(self, gpus):
        self.asked = None
        self.tasks = []
        self.left = False
        self.exceptions = SimpleNamespace(RayError=RuntimeError)
        self._resources = {"CPU": 64.0, **({"GPU": float(gpus)} if gpus else {})}

    def init(self, **options):
        self.asked = options

    def cluster_resources(self):
        return self._resources

    def remote(self, **options):
        def submit(folder, settings):
            self.tasks.append((options, settings))
            return len(self.tasks)

        return lambda _: SimpleNamespace(remote=submit)

    def shutdown(self):
        self.left = True


@pytest.fixture
def cluster(monkeypatch):
    """Makes a Ray of so many GPUs stand behind the pool; this machine has none."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def make(gpus):
        fake = FakeRay(gpus)
        monkeypatch.setattr(ray_pool, "_import_ray", lambda: fake)
        return fake

    return make


@pytest.mark.parametrize(
    ("gpus", "device", "workers", "expected"),
    [
        (2, "auto", 0, ("cuda", 0.25, 8)),
        (2, "cuda", 3, ("cuda", 1 / 3, 6)),
        (2, "cpu", 5, ("cpu", 0.0, 5)),
        (0, "auto", 0, ("cpu", 0.0, 64)),
    ],
)
def test_the_cluster_decides_about_gpus_and_not_the_machine_of_the_driver(
    cluster, tiny_cell, tmp_path, gpus, device, workers, expected
):
    ray = cluster(gpus)
    pool = make_pool(
        RunArguments("small", out=tmp_path, ray="auto", device=device, workers=workers)
    )
    config = tiny_cell()
    assert pool.free() == expected[2]
    pool.start(Cell(config, CellFolder(tmp_path / config.folder)))
    assert pool.free() == expected[2] - 1
    ((options, settings),) = ray.tasks
    assert (settings.device, options["num_gpus"]) == expected[:2]


def test_a_gpu_that_the_cluster_does_not_have_is_refused(cluster, tmp_path):
    ray = cluster(0)
    with pytest.raises(ConfigError, match="--device cuda: Ray at --ray auto has no"):
        make_pool(RunArguments("small", out=tmp_path, ray="auto", device="cuda"))
    assert ray.left


def test_local_starts_a_ray_of_its_own_where_ray_address_names_another(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    ray = cluster(0)
    make_pool(RunArguments("small", out=tmp_path, ray=LOCAL))
    assert ray.asked["address"] == "local"


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
        RayPool(LOCAL, 1, tiny_settings)


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
    failed = drive(cells, RayPool(LOCAL, 2, tiny_settings), watcher)
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
        RayPool("auto", 1, tiny_settings)


def numbers(folder):
    """Evaluations without their wall time, which no run repeats."""
    rows = folder.evaluations()
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def assert_same(folder, whole):
    """The numbers and the last checkpoint of a cell are those of one that was never killed."""
    assert numbers(folder) == numbers(whole)
    a, b = (
        read_checkpoint(checkpoints(f.checkpoints)[-1]).tensors for f in (folder, whole)
    )
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)


def holder(folder):
    """Process that holds a cell's lock."""
    inode = (folder.path / "lock").stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if "->" not in words and words[5].rpartition(":")[2] == str(inode):
            return int(words[4])
    return None


class Killer(Silent):
    """Kills the process of the first cell once it has so many evaluations."""

    def __init__(self, evaluations):
        super().__init__()
        self.killed = None
        self._evaluations = evaluations

    def look(self, running):
        if self.killed is None and running:
            folder = running[0].folder
            if len(folder.evaluations()) >= self._evaluations:
                self.killed = holder(folder)
                os.kill(self.killed, signal.SIGKILL)


@needs_ray
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(300)
def test_ray_goes_on_with_a_cell_whose_worker_was_killed(
    tiny_cell, tiny_settings, tmp_path
):
    config = tiny_cell(offline_updates=1000, evaluate_every=100)
    whole = dataclasses.replace(tiny_settings, out=tmp_path / "whole")
    run_cell(config, whole)
    folder = CellFolder(tiny_settings.out / config.folder)
    watcher = Killer(2)
    failed = drive([Cell(config, folder)], RayPool(LOCAL, 1, tiny_settings), watcher)
    assert watcher.killed not in (None, os.getpid())
    assert failed == []
    assert set(watcher.said.values()) == {""}
    assert_same(folder, CellFolder(whole.out / config.folder))


@needs_ray
@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_run_whose_driver_was_killed_leaves_no_cell_and_is_continued(
    protocol_path, tiny_settings, tmp_path
):
    options = [
        *("run", "--protocol", str(protocol_path), "--ray", LOCAL, "-j", "1"),
        *("--methods", "qam", "--tasks", "1", "--seeds", "0", "--device", "cpu"),
        *("--out", str(tiny_settings.out), "--data", str(tiny_settings.data)),
        *("--set", "offline_updates=1000", "--set", "evaluate_every=50"),
        *("--environments", str(tiny_settings.environments)),
    ]
    program = (
        "import sys; from qam_train.suite.command import command; "
        "sys.exit(command(sys.argv[1:]))"
    )
    folder = CellFolder(tiny_settings.out / "tiny/qam/maze-task1/seed0")
    line = [sys.executable, "-c", program, *options]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(folder.evaluations()) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    while folder.held():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert folder.done is None
    assert 2 <= len(folder.evaluations()) < 20
    again = subprocess.run(line, check=False, stdout=subprocess.DEVNULL, timeout=120)
    assert again.returncode == 0
    whole = dataclasses.replace(tiny_settings, out=tmp_path / "whole")
    config = read_cell(folder.config_path)
    run_cell(config, whole)
    assert_same(folder, CellFolder(whole.out / config.folder))
