# SPDX-License-Identifier: Apache-2.0
"""One cell: its numbers, its files, and that a kill changes neither."""

import dataclasses
import fcntl
import random
import signal
import subprocess
import threading
import time

import pytest
import torch

from qam_ros.contract.errors import ConfigError, DatasetError, QamError
from qam_train.checkpoint import checkpoints, read_checkpoint
from qam_train.offline_trainer import NonFiniteError
from qam_train.suite.cell import run_cell
from qam_train.suite.cell_config import DataConfig
from qam_train.suite.folder import CellFolder, config_hash
from qam_train.suite.worker import command_line


def folder_of(cell, settings):
    return CellFolder(settings.out / cell.folder)


def numbers(folder):
    """Evaluations without their wall time, which no run repeats."""
    rows = folder.evaluations()
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def final_tensors(folder):
    return read_checkpoint(checkpoints(folder.checkpoints)[-1]).tensors


def run_in(process_log, cell, settings):
    folder_of(cell, settings).claim(cell)
    command = command_line(settings.out / cell.folder, settings)
    return subprocess.Popen(command, stdout=process_log, stderr=process_log)


def test_a_cell_evaluates_at_every_interval_of_both_phases(tiny_cell, tiny_settings):
    cell = tiny_cell()
    figures = run_cell(cell, tiny_settings)
    folder = folder_of(cell, tiny_settings)
    rows = folder.evaluations()
    assert [(row["step"], row["phase"]) for row in rows] == [
        (20, "offline"),
        (40, "offline"),
        (60, "online"),
        (80, "online"),
    ]
    assert all(row["episodes"] == 2 and row["length"] <= 12 for row in rows)
    assert all(row["low"] <= row["success"] <= row["high"] for row in rows)
    assert folder.done == figures
    assert figures["config_hash"] == config_hash(cell)
    kept = [path.name for path in checkpoints(folder.checkpoints)]
    assert kept == [
        "checkpoint-000000040.safetensors",
        "checkpoint-000000080.safetensors",
    ]
    assert not folder.online.exists()


def test_a_cell_killed_again_and_again_gives_the_numbers_of_one_that_was_not(
    tiny_cell, tiny_settings, tmp_path
):
    # with episodes of 13 steps every online checkpoint falls inside an episode and a chunk
    cell = tiny_cell(
        "trqam",
        behaviour_updates=30,
        online_budget=0.2,
        online_steps=100,
        max_episode_steps=13,
    )
    whole = dataclasses.replace(tiny_settings, out=tmp_path / "whole")
    run_cell(cell, whole)
    folder = folder_of(cell, tiny_settings)
    log = (tmp_path / "log").open("w")
    left = []  # evaluations that each killed process left
    for wanted in (2, 6):  # evaluations on disk before it is killed
        process = run_in(log, cell, tiny_settings)
        deadline = time.monotonic() + 60
        while len(folder.evaluations()) < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(random.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            left.append(len(folder.evaluations()))
    run_cell(cell, tiny_settings)
    log.close()
    assert left, "every process ended before it was killed"
    assert left[0] < 8
    assert len(numbers(folder)) == 8
    assert numbers(folder) == numbers(folder_of(cell, whole))
    a, b = final_tensors(folder), final_tensors(folder_of(cell, whole))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_finished_cell_is_not_run_again(tiny_cell, tiny_settings):
    cell = tiny_cell(online_steps=0)
    first = run_cell(cell, tiny_settings)
    assert run_cell(cell, tiny_settings) == first


def test_a_cell_with_other_settings_is_refused_by_the_name_of_the_setting(
    tiny_cell, tiny_settings
):
    run_cell(tiny_cell(online_steps=0, agent={"tau": 1.0}), tiny_settings)
    with pytest.raises(ConfigError, match=r"agent\.tau = 1\.0, now it is 3\.0"):
        run_cell(tiny_cell(online_steps=0, agent={"tau": 3.0}), tiny_settings)


def test_a_cell_may_move_to_another_device(tiny_cell, tiny_settings):
    cell = tiny_cell(online_steps=0)
    folder_of(cell, tiny_settings).claim(cell)
    run_cell(dataclasses.replace(cell, device="cpu"), tiny_settings)


def test_a_cell_is_worked_on_by_one_process_at_a_time(tiny_cell, tiny_settings):
    cell = tiny_cell()
    folder = folder_of(cell, tiny_settings)
    with folder.locked():
        assert folder.held()
        with pytest.raises(QamError, match="another process"):
            run_cell(cell, tiny_settings)
    assert not folder.held()


def test_who_asks_whether_a_cell_is_held_does_not_keep_it_from_starting(
    tiny_cell, tiny_settings
):
    cell = tiny_cell()
    folder = folder_of(cell, tiny_settings)
    folder.claim(cell)
    with (folder.path / "lock").open("a") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        release = threading.Timer(0.1, fcntl.flock, (asking, fcntl.LOCK_UN))
        release.start()
        with folder.locked():
            assert folder.held()
        release.join()


@pytest.mark.parametrize(
    ("fields", "phase", "kept"),
    [
        ({"offline_lr_start": 1e-4, "offline_lr_end": 1e30}, "offline", 0),
        ({"online_steps": 60, "agent": {"tau": 1.0}}, "online", 1),
    ],
)
def test_a_diverging_cell_names_phase_step_and_term_and_keeps_its_last_checkpoint(
    tiny_cell, tiny_settings, monkeypatch, fields, phase, kept
):
    cell = tiny_cell(**fields)
    if phase == "online":  # the network breaks in the middle of the online phase
        from qam_train.suite.online import OnlinePhase

        train = OnlinePhase._train

        def broken(self):
            if self.steps == 30:
                for value in self.agent.trained.values():
                    value.data.fill_(float("nan"))
            return train(self)

        monkeypatch.setattr(OnlinePhase, "_train", broken)
    with pytest.raises(NonFiniteError):
        run_cell(cell, tiny_settings)
    folder = folder_of(cell, tiny_settings)
    reason = folder.failure
    assert reason["error"] == "NonFiniteError"
    assert reason["phase"] == phase
    assert reason["step"] > 0
    assert "loss" in reason["terms"]
    assert folder.done is None
    assert len(checkpoints(folder.checkpoints)) >= kept
    for path in checkpoints(folder.checkpoints):
        held = read_checkpoint(path).tensors
        assert all(value.isfinite().all() for value in held.values())


def test_rlpd_starts_with_random_actions_and_has_no_offline_phase(
    tiny_cell, tiny_settings
):
    cell = tiny_cell(
        "rlpd",
        offline_updates=0,
        random_steps=10,
        online_fraction=0.5,
    )
    run_cell(cell, tiny_settings)
    rows = folder_of(cell, tiny_settings).evaluations()
    assert [(row["step"], row["phase"]) for row in rows] == [
        (20, "online"),
        (40, "online"),
    ]


def test_a_missing_dataset_is_an_error_that_says_how_to_make_it(
    tiny_cell, tiny_settings
):
    cell = tiny_cell(data=DataConfig("scene-play"))
    with pytest.raises(ConfigError, match=r"qam data generate .*--preset scene-play"):
        run_cell(cell, tiny_settings)
    assert folder_of(cell, tiny_settings).failure["error"] == "ConfigError"


def test_a_dataset_of_another_world_is_refused(tiny_cell, tiny_settings):
    with pytest.raises(DatasetError, match="made in world 'pointmaze-medium'"):
        run_cell(tiny_cell(world="pointmaze-large"), tiny_settings)


@pytest.mark.gpu
def test_a_cell_runs_on_a_gpu(tiny_cell, tiny_settings):
    cell = tiny_cell("trqam", behaviour_updates=20)
    run_cell(cell, dataclasses.replace(tiny_settings, device="cuda"))
    assert len(folder_of(cell, tiny_settings).evaluations()) == 5


@pytest.mark.parametrize(
    ("phase", "evaluated", "kept"),
    [
        ("behaviour", [], []),
        ("offline", [20], [20]),
        ("online", [20, 40, 60], [40, 60]),
    ],
)
def test_parameters_that_overflow_while_the_loss_is_finite_are_neither_evaluated_nor_saved(
    tiny_cell, tiny_settings, monkeypatch, phase, evaluated, kept
):
    from qam_train.offline_trainer import OfflineTrainer
    from qam_train.suite.online import OnlinePhase

    def overflow(agent):
        next(iter(agent.trained.values())).data.view(-1)[0] = float("inf")

    real, train = OfflineTrainer.settle, OnlinePhase._train
    cloned = 0 if phase != "behaviour" else 20

    def settle(self):
        agent = self.agent
        metrics = real(self)
        if self.updates == {"behaviour": 20, "offline": 40}.get(phase):
            overflow(agent)
        return metrics

    def broken(self):
        metrics = train(self)
        if phase == "online" and self.steps == 40:
            overflow(self.agent)
        return metrics

    monkeypatch.setattr(OfflineTrainer, "settle", settle)
    monkeypatch.setattr(OnlinePhase, "_train", broken)
    cell = tiny_cell(behaviour_updates=cloned)
    with pytest.raises(NonFiniteError, match=rf"\({phase}\): .* finite parameters"):
        run_cell(cell, tiny_settings)
    folder = folder_of(cell, tiny_settings)
    assert [row["step"] for row in folder.evaluations()] == evaluated
    steps = [int(path.stem[-9:]) for path in checkpoints(folder.checkpoints)]
    assert steps == kept
    reason = folder.failure
    assert (reason["error"], reason["phase"]) == ("NonFiniteError", phase)
    assert reason["terms"]
    assert not list(tiny_settings.out.glob("tiny/behaviour/*/clone.safetensors"))
