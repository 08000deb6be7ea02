# SPDX-License-Identifier: Apache-2.0
"""What a cell learns from: labels, clipping, files that replace each other, the shared clone."""

import dataclasses
import shutil
import subprocess
import time

import numpy as np
import pytest
import torch

from qam_ros.contract.dataset import read_dataset
from qam_ros.contract.errors import ConfigError, DatasetError
from qam_train.agents.registry import METHODS
from qam_train.checkpoint import checkpoints, read_checkpoint
from qam_train.suite.cell import run_cell
from qam_train.suite.cell_config import ACTION_BOUND, DataConfig
from qam_train.suite.data import CellData
from qam_train.suite.folder import CellFolder
from qam_train.suite.worker import command_line
from sim.labels import label


def test_actions_are_clipped_to_where_a_tanh_can_reach(tiny_cell, tiny_data):
    actions = CellData(tiny_cell(), tiny_data).at(1).actions
    assert actions.abs().max() <= ACTION_BOUND
    stored = torch.as_tensor(read_dataset(tiny_data / "one").actions)
    assert torch.allclose(actions, stored, atol=1.1e-5)


def test_rows_are_labelled_for_the_task_of_the_cell(tiny_cell, tiny_data):
    stored = read_dataset(tiny_data / "one")
    own = CellData(tiny_cell(), tiny_data).at(1)
    assert np.array_equal(own.rewards, stored.rewards)
    other = CellData(tiny_cell(task=3), tiny_data).at(1)
    rewards, masks = label("pointmaze-medium", 3, dict(stored.extras))
    assert np.array_equal(other.rewards, rewards)
    assert np.array_equal(other.masks, masks)


def test_files_replace_each_other_in_a_ring(tiny_cell, tiny_data):
    cell = tiny_cell(data=DataConfig("many", files=2, replace_every=10))
    data = CellData(cell, tiny_data)
    files = [
        torch.as_tensor(read_dataset(tiny_data / "many" / name).observations)
        for name in ("000", "001")
    ]
    shown = [
        next(i for i, f in enumerate(files) if torch.equal(data.at(t).observations, f))
        for t in range(1, 31)
    ]
    assert shown == [0] * 9 + [1] * 10 + [0] * 10 + [1]


def test_a_folder_with_too_few_files_is_refused(tiny_cell, tiny_data):
    with pytest.raises(ConfigError, match="expected 3 dataset"):
        CellData(tiny_cell(data=DataConfig("many", files=3)), tiny_data)


def test_a_cell_does_not_go_on_with_another_dataset_of_the_same_name(
    tiny_cell, tiny_settings, tiny_data, tmp_path
):
    cell = tiny_cell(online_steps=0)
    run_cell(cell, tiny_settings)
    folder = CellFolder(tiny_settings.out / cell.folder)
    (folder.path / "done.json").unlink()  # as if it had been killed at its end
    shutil.copytree(tiny_data / "many" / "001", tmp_path / "data" / "one")
    other = dataclasses.replace(tiny_settings, data=tmp_path / "data")
    with pytest.raises(DatasetError, match="the cell began with"):
        run_cell(cell, other)
    run_cell(cell, tiny_settings)
    assert folder.done is not None


def test_replaced_files_change_what_is_learnt_offline_and_online(
    tiny_cell, tiny_settings, tmp_path
):
    cells = [
        tiny_cell(data=DataConfig("many", files=n, replace_every=5)) for n in (2, 1)
    ]
    one = dataclasses.replace(cells[1], data=DataConfig("one"))
    finals = []
    for name, cell in (("two", cells[0]), ("one", one)):
        settings = dataclasses.replace(tiny_settings, out=tmp_path / name)
        run_cell(cell, settings)
        folder = CellFolder(settings.out / cell.folder)
        finals.append(
            [read_checkpoint(path).tensors for path in checkpoints(folder.checkpoints)]
        )
    for two_files, one_file in zip(*finals, strict=True):
        name = "agent/parameters/critic/0/bias"
        assert not torch.equal(two_files[name], one_file[name])


def test_a_cell_waits_for_the_clone_that_another_makes(tiny_cell, tiny_settings):
    first, second = (
        tiny_cell(
            "flow_bc", behaviour_updates=600, offline_updates=0, online_steps=0, task=t
        )
        for t in (1, 2)
    )
    folder = CellFolder(tiny_settings.out / first.folder)
    folder.claim(first)
    process = subprocess.Popen(command_line(folder.path, tiny_settings))
    while folder.progress is None or folder.progress.phase != "behaviour":
        assert process.poll() is None
        time.sleep(0.01)
    run_cell(second, tiny_settings)
    assert process.wait(timeout=60) == 0
    (clone,) = (tiny_settings.out / "tiny" / "behaviour").iterdir()
    evaluated = sorted(path.name for path in clone.glob("task*.json"))
    assert evaluated == ["task1-2x12-dense.json", "task2-2x12-dense.json"]
    # a method with the same sizes goes on from it without cloning again
    before = (clone / "clone.safetensors").stat().st_mtime_ns
    run_cell(tiny_cell("qam", behaviour_updates=600, online_steps=0), tiny_settings)
    assert (clone / "clone.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_runs_as_a_cell(tiny_cell, tiny_settings, method):
    cell = tiny_cell(
        method, offline_updates=3, online_steps=4, start_steps=1, evaluate_every=4
    )
    run_cell(dataclasses.replace(cell, max_episode_steps=3), tiny_settings)
    rows = CellFolder(tiny_settings.out / cell.folder).evaluations()
    assert [row["step"] for row in rows] == [3, 7]
