# SPDX-License-Identifier: Apache-2.0
"""Sets of many files: looked at before training starts, read one ahead, the same numbers as one by one."""

import dataclasses
import shutil
import threading
import zipfile

import numpy as np
import pytest
import torch

from qam_ros.contract.columns import Dataset
from qam_ros.contract.dataset import read_dataset, read_dataset_manifest, write_dataset
from qam_ros.contract.errors import (
    ArtifactError,
    DatasetError,
    InterfaceError,
    QamError,
)
from qam_ros.contract.interface import find_robot, load_interface
from qam_train.export import command as export
from qam_train.suite import data as module
from qam_train.suite.cell import run_cell
from qam_train.suite.cell_config import ACTION_BOUND, DataConfig
from qam_train.suite.data import CellData, load
from qam_train.suite.folder import CellFolder
from qam_train.suite.prefetch import Prefetch

TWO = DataConfig("many", files=2, replace_every=10)


@pytest.fixture
def own_data(tiny_data, tmp_path):
    """A copy of the datasets that a test may damage."""
    return shutil.copytree(tiny_data, tmp_path / "data")


def truncate(path, _):
    rows = path / "rows.npz"
    rows.write_bytes(rows.read_bytes()[:-100])


def exchange_rows(path, rewrite):
    """Whole rows of another dataset, beside the manifest of this one."""
    manifest = (path / "manifest.yaml").read_bytes()
    rows = read_dataset(path)
    longer = {k: np.concatenate([v, v]) for k, v in vars(rows).items() if k != "extras"}
    extras = {k: np.concatenate([v, v]) for k, v in rows.extras.items()}
    rewrite(path, rows=Dataset(**longer, extras=extras))
    (path / "manifest.yaml").write_bytes(manifest)


def drop_states(path, rewrite):
    rows = read_dataset(path)
    kept = {"qpos": rows.extras["qpos"]}
    rewrite(path, rows=dataclasses.replace(rows, extras=kept))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"001/rows.npz: not a readable npz file"),
        (
            exchange_rows,
            r"001/rows.npz: column 'observations' .*\(400, 2\).*\(200, 2\)",
        ),
        (drop_states, r"many/001: expected the columns of .*000, .* extra/qvel"),
        (lambda path, _: (path / "rows.npz").unlink(), r"001/rows.npz: no such file"),
        (
            lambda path, rewrite: rewrite(path, world="scene"),
            r"001: made in world 'scene'",
        ),
    ],
)
def test_a_later_file_that_is_damaged_or_of_another_kind_stops_the_cell_at_its_start(
    tiny_cell, own_data, rewrite, damage, message
):
    damage(own_data / "many" / "001", rewrite)
    with pytest.raises(DatasetError, match=message):
        CellData(tiny_cell(data=TWO), own_data)


def test_a_later_file_of_another_robot_stops_the_cell_at_its_start(
    tiny_cell, own_data, rewrite
):
    path = own_data / "many" / "001"
    interface = load_interface(find_robot("ur5e_2f85"))
    sizes = interface.observation_size, interface.action_size
    rng = np.random.default_rng(0)
    rows = read_dataset(path)
    other = dataclasses.replace(
        rows,
        observations=rng.normal(size=(len(rows), sizes[0])).astype(np.float32),
        actions=rng.uniform(-1, 1, (len(rows), sizes[1])).astype(np.float32),
        end_observations=np.zeros((rows.segments, sizes[0]), np.float32),
    )
    rewrite(path, rows=other, robot="ur5e_2f85")
    with pytest.raises(InterfaceError, match=r"many/001"):
        CellData(tiny_cell(data=TWO), own_data)


def test_a_later_file_exchanged_between_kill_and_resume_is_noticed(
    tiny_cell, tiny_settings, own_data, rewrite
):
    cell = tiny_cell(data=TWO, online_steps=0)
    settings = dataclasses.replace(tiny_settings, data=own_data)
    run_cell(cell, settings)
    folder = CellFolder(settings.out / cell.folder)
    (folder.path / "done.json").unlink()  # as if it had been killed at its end
    rewrite(own_data / "many" / "001", seed=9)
    with pytest.raises(DatasetError, match=r"many: all 2 files: .*the cell began with"):
        run_cell(cell, settings)
    rewrite(own_data / "many" / "001", seed=2)  # the first one again
    run_cell(cell, settings)
    assert folder.done is not None


def test_a_cell_of_several_files_is_exported_with_any_of_them_and_no_other(
    tiny_cell, tiny_settings, own_data, tmp_path
):
    settings = dataclasses.replace(tiny_settings, data=own_data)
    cell = tiny_cell(data=TWO, online_steps=0)
    run_cell(cell, settings)
    words = [str(settings.out / cell.folder), "--out", str(tmp_path / "policy")]
    assert export([*words, "--dataset", str(own_data / "many" / "001")]) == 0
    with pytest.raises(ArtifactError, match="was trained on"):
        export([*words, "--dataset", str(own_data / "one"), "--replace"])


def test_a_file_exchanged_while_the_cell_runs_is_noticed_when_its_turn_comes(
    tiny_cell, own_data, rewrite
):
    with CellData(tiny_cell(data=TWO), own_data) as data:
        data.at(1)
        rewrite(own_data / "many" / "001", seed=9)
        with pytest.raises(DatasetError, match=r"many/001: .*when the cell started"):
            data.at(10)


def test_a_clone_made_from_other_later_files_is_not_taken(
    tiny_cell, tiny_settings, own_data, rewrite
):
    settings = dataclasses.replace(tiny_settings, data=own_data)
    cell = tiny_cell(data=TWO, behaviour_updates=20, offline_updates=0, online_steps=0)
    run_cell(cell, settings)
    rewrite(own_data / "many" / "001", seed=9)
    run_cell(dataclasses.replace(cell, task=2), settings)
    assert len(list((settings.out / "tiny" / "behaviour").iterdir())) == 2


def test_the_hash_of_a_single_file_is_that_of_its_rows(tiny_cell, tiny_data):
    expected = read_dataset_manifest(tiny_data / "one").sha256
    assert CellData(tiny_cell(), tiny_data).sha256 == expected


@pytest.mark.parametrize("task", [1, 3])
def test_files_read_ahead_are_those_read_one_by_one_bit_for_bit(
    tiny_cell, tiny_data, monkeypatch, task
):
    cell = tiny_cell(data=TWO, task=task)
    whole = [load(cell, tiny_data / "many" / name, "cpu") for name in ("000", "001")]
    readers = set()
    real = module.read_dataset

    def read(path):
        readers.add(threading.current_thread())
        return real(path)

    monkeypatch.setattr(module, "read_dataset", read)
    with CellData(cell, tiny_data) as data:
        for step in range(1, 51):
            expected = whole[step // 10 % 2]
            for field in dataclasses.fields(expected):
                got = getattr(data.at(step), field.name)
                assert torch.equal(got, getattr(expected, field.name)), field.name
    assert len(readers) == 2  # this thread at the start, then one in the background
    assert not any(t.is_alive() for t in readers - {threading.current_thread()})


def test_a_cell_learns_the_same_whether_files_are_read_ahead_or_not(
    tiny_cell, tiny_settings, tmp_path, monkeypatch
):
    from qam_train.checkpoint import checkpoints, read_checkpoint

    cell = tiny_cell(data=dataclasses.replace(TWO, replace_every=7))
    finals = []
    for name in ("ahead", "one-by-one"):
        settings = dataclasses.replace(tiny_settings, out=tmp_path / name)
        if name == "one-by-one":
            monkeypatch.setattr(Prefetch, "begin", lambda *_: None)
        run_cell(cell, settings)
        folder = CellFolder(settings.out / cell.folder)
        finals.append(read_checkpoint(checkpoints(folder.checkpoints)[-1]).tensors)
    assert finals[0].keys() == finals[1].keys()
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


@pytest.mark.gpu
def test_reading_ahead_does_not_disturb_the_recording_of_updates_on_a_gpu(
    tiny_cell, tiny_settings
):
    data = dataclasses.replace(TWO, replace_every=25)  # recorded ten at a time
    cell = tiny_cell(data=data, offline_updates=200, evaluate_every=100)
    figures = run_cell(cell, dataclasses.replace(tiny_settings, device="cuda"))
    assert figures["evaluations"] == 3


def test_damage_found_while_reading_ahead_stops_the_training_with_the_files_name(
    tiny_cell, tiny_settings, own_data, rewrite, tiny_rows
):
    rewrite(own_data / "many" / "001", rows=tiny_rows(rows=2000))
    rows = own_data / "many" / "001" / "rows.npz"
    # deep in a column, where only its hash shows it
    with zipfile.ZipFile(rows) as archive:
        place = archive.getinfo("observations.npy").header_offset + 10_000
    content = bytearray(rows.read_bytes())
    content[place] ^= 1
    rows.write_bytes(content)
    cell = tiny_cell(data=TWO, online_steps=0)
    settings = dataclasses.replace(tiny_settings, data=own_data)
    with pytest.raises(DatasetError, match=r"many/001/rows.npz: sha256 is"):
        run_cell(cell, settings)
    reason = CellFolder(settings.out / cell.folder).failure
    assert (reason["error"], reason["phase"]) == ("DatasetError", "offline")
    assert "many/001" in reason["message"]


def test_a_disk_that_fails_is_an_error_with_the_files_name(
    tiny_cell, tiny_data, monkeypatch
):
    def broken(path):
        raise OSError(5, "Input/output error")

    with CellData(tiny_cell(data=TWO), tiny_data) as data:
        data.at(1)
        monkeypatch.setattr(module, "read_dataset", broken)
        data.at(2)
        with pytest.raises(QamError, match=r"many/001: cannot be read: .*Input/output"):
            data.at(10)


def test_one_file_is_read_ahead_and_no_more():
    begun = []
    gate = threading.Event()

    def read(index):
        begun.append(index)
        gate.wait(10)
        return index

    ahead = Prefetch(read)
    ahead.begin(1)
    ahead.begin(1)
    ahead.begin(2)  # another one after all: waits for the thread, the first is dropped
    gate.set()
    assert ahead.take(2) == 2
    assert ahead.take(5) == 5  # not the one read ahead: read by the caller
    ahead.close()
    assert begun in ([1, 2, 5], [2, 5])


def test_nothing_is_read_ahead_of_the_last_step(tiny_cell, tiny_data, monkeypatch):
    begun = []
    monkeypatch.setattr(Prefetch, "begin", lambda self, index: begun.append(index))
    cell = tiny_cell(data=TWO, offline_updates=20, online_steps=9)
    with CellData(cell, tiny_data) as data:
        for step in range(1, 30):
            data.at(step)
    assert begun == [1] * 8 + [0] * 9


@pytest.mark.parametrize("clip", [None, 0.5, ACTION_BOUND])
def test_actions_are_clipped_as_the_setting_says(tiny_cell, tiny_rows, tmp_path, clip):
    rows = tiny_rows()
    actions = rows.actions.copy()
    actions[0] = (1.0, -1.0)  # the most that a dataset may hold
    interface = load_interface(find_robot("mobile_base"))
    meta = {"world": "pointmaze-medium", "task": 1}
    rows = dataclasses.replace(rows, actions=actions)
    write_dataset(tmp_path / "one", rows, interface, meta)
    found = CellData(tiny_cell(data=DataConfig("one", clip=clip)), tmp_path).at(1)
    bound = 1.0 if clip is None else clip
    expected = np.clip(read_dataset(tmp_path / "one").actions, -bound, bound)
    assert np.array_equal(found.actions.numpy(), expected)
    assert float(found.actions.abs().max()) == pytest.approx(bound)
