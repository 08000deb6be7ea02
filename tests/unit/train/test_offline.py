# SPDX-License-Identifier: Apache-2.0
"""Offline loop: resume bit for bit, non-finite numbers, refusals, and a kill."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from qam_ros.contract.dataset import Dataset, write_dataset
from qam_ros.contract.errors import ConfigError
from qam_ros.contract.interface import find_robot, load_interface
from qam_train import cli
from qam_train.agents.flow_bc import FlowBCAgent
from qam_train.checkpoint import checkpoints, latest_checkpoint, read_checkpoint
from qam_train.config import AgentConfig, NetworkConfig, StageConfig
from qam_train.data.dataset import FlatDataset
from qam_train.loops.offline import train_offline
from qam_train.metrics import read_metrics
from qam_train.offline_config import OfflineConfig
from qam_train.offline_trainer import NonFiniteError, OfflineTrainer
from qam_train.restore import restore_agent

CONFIG = OfflineConfig(
    seed=7,
    pad_terminated=True,
    log_every=3,
    checkpoint_every=4,
    behaviour=StageConfig(updates=6, lr_start=1e-3, lr_end=1e-4),
    offline=StageConfig(updates=9, lr_start=1e-3, lr_end=1e-3),
    agent=AgentConfig(
        flow_steps=3,
        chunk=2,
        critics=2,
        batch_size=8,
        adjoint_batch=4,
        actor=NetworkConfig((8, 8)),
        critic=NetworkConfig((8,), layer_norm=True),
    ),
)


def _contract_dataset(rows=40, observation=2, action=2):
    rng = np.random.default_rng(0)
    terminals = np.zeros(rows, np.uint8)
    terminals[[rows // 2 - 1, rows - 1]] = 1
    masks = np.ones(rows, np.float32)
    masks[rows // 2 - 1] = 0
    return Dataset(
        observations=rng.normal(size=(rows, observation)).astype(np.float32),
        actions=rng.uniform(-1, 1, size=(rows, action)).astype(np.float32),
        rewards=-np.ones(rows, np.float32),
        masks=masks,
        terminals=terminals,
        valid=np.ones(rows, np.uint8),
        end_observations=rng.normal(size=(2, observation)).astype(np.float32),
    )


@pytest.fixture
def dataset():
    return FlatDataset.from_contract(_contract_dataset())


def _state(result):
    return result.agent.state_dict() | {
        f"base/{k}": v for k, v in result.behaviour.state_dict().items()
    }


def _rows(directory):
    return [
        {name: value for name, value in row.items() if name != "seconds"}
        for row in read_metrics(directory / "metrics.jsonl")
    ]


@pytest.mark.parametrize("stopped_at", [2, 5, 6, 7, 11, 14])
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    dataset, tmp_path, monkeypatch, stopped_at
):
    whole = train_offline(CONFIG, dataset, tmp_path / "whole", progress=False)
    update = OfflineTrainer.update

    def interrupted(trainer, *count):
        if trainer.updates == stopped_at:
            raise KeyboardInterrupt
        return update(trainer, *count)

    with monkeypatch.context() as patch:
        patch.setattr(OfflineTrainer, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_offline(CONFIG, dataset, tmp_path / "broken", progress=False)
    resumed = train_offline(
        CONFIG, dataset, tmp_path / "broken", resume=True, progress=False
    )
    first, second = _state(whole), _state(resumed)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert _rows(tmp_path / "broken") == _rows(tmp_path / "whole")
    names = ("behaviour.safetensors", "checkpoints/checkpoint-000000015.safetensors")
    for name in names:
        assert (tmp_path / "broken" / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes()


def test_finished_run_leaves_config_metrics_and_verified_checkpoints(dataset, tmp_path):
    train_offline(
        CONFIG, dataset, tmp_path, progress=False, provenance={"dataset_hash": "abc"}
    )
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [3, 6, 9, 12, 15]
    assert [row["stage"] for row in rows] == ["behaviour"] * 2 + ["offline"] * 3
    assert rows[1]["lr"] == pytest.approx(1e-4)
    assert {"critic/td_loss", "flow/loss", "adjoint/loss", "grad/global_norm"} <= rows[
        -1
    ].keys()
    assert [path.name[-15:-12] for path in checkpoints(tmp_path / "checkpoints")] == [
        "008",
        "012",
        "015",
    ]
    held = read_checkpoint(latest_checkpoint(tmp_path / "checkpoints"))
    assert (held.metadata["update"], held.metadata["dataset_hash"]) == (15, "abc")
    assert isinstance(restore_agent(tmp_path / "behaviour.safetensors"), FlowBCAgent)


def test_resuming_a_finished_run_changes_nothing(dataset, tmp_path):
    first = train_offline(CONFIG, dataset, tmp_path, progress=False)
    again = train_offline(CONFIG, dataset, tmp_path, resume=True, progress=False)
    assert all(
        torch.equal(value, _state(again)[name]) for name, value in _state(first).items()
    )
    assert len(_rows(tmp_path)) == 5


def test_without_cloning_the_flows_start_independently(dataset, tmp_path):
    config = OfflineConfig(offline=StageConfig(updates=1), agent=CONFIG.agent)
    result = train_offline(config, dataset, tmp_path, progress=False)
    assert result.behaviour is None
    parameters = result.agent.parameters
    assert not torch.allclose(
        parameters["fast/0/weight"], parameters["slow/0/weight"], atol=1e-2
    )


def test_not_a_number_stops_with_term_and_update_and_keeps_the_last_good_checkpoint(
    dataset, tmp_path
):
    dataset.rewards[:] = float("nan")
    with pytest.raises(
        NonFiniteError, match=r"update 7 \(offline\).*critic/td_loss"
    ) as caught:
        train_offline(CONFIG, dataset, tmp_path, progress=False)
    assert caught.value.details["update"] == 7
    held = read_checkpoint(latest_checkpoint(tmp_path / "checkpoints"))
    assert held.metadata["update"] == 6
    assert all(torch.isfinite(value.double()).all() for value in held.tensors.values())


def test_parameters_that_overflowed_are_not_saved_over_the_last_good_checkpoint(
    dataset, tmp_path, monkeypatch
):
    update = OfflineTrainer.update

    def overflowing(self, count):
        """The losses of this update are finite, the parameters after it are not."""
        metrics = update(self, count)
        if self.updates == 12:
            name = next(iter(self.agent.trained))
            self.agent.trained[name].data.view(-1)[0] = float("inf")
        return metrics

    monkeypatch.setattr(OfflineTrainer, "update", overflowing)
    with pytest.raises(NonFiniteError, match=r"after update 12 .*finite parameters"):
        train_offline(CONFIG, dataset, tmp_path, progress=False)
    held = read_checkpoint(latest_checkpoint(tmp_path / "checkpoints"))
    assert held.metadata["update"] == 8
    assert all(torch.isfinite(value.double()).all() for value in held.tensors.values())


def test_directory_of_another_run_is_refused(dataset, tmp_path):
    train_offline(CONFIG, dataset, tmp_path, progress=False)
    with pytest.raises(ConfigError, match="already holds checkpoints; resume it"):
        train_offline(CONFIG, dataset, tmp_path, progress=False)


def test_resume_with_other_settings_is_refused(dataset, tmp_path):
    train_offline(CONFIG, dataset, tmp_path, progress=False)
    other = OfflineConfig(**{**vars(CONFIG), "seed": 8})
    with pytest.raises(ConfigError, match="other settings: seed was 7, now 8"):
        train_offline(other, dataset, tmp_path, resume=True, progress=False)


def test_threads_and_precision_are_set_back(dataset, tmp_path):
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    config = OfflineConfig(
        **{**vars(CONFIG), "threads": 1, "matmul_precision": "medium"}
    )
    train_offline(config, dataset, tmp_path, progress=False)
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before


def _arguments(tmp_path, *more):
    small = (
        "agent.actor.widths=[8]",
        "agent.critic.widths=[8]",
        "agent.critics=2",
        "agent.chunk=2",
    )
    sets = [part for item in small for part in ("--set", item)]
    return [
        str(tmp_path / "data"),
        "--run-dir",
        str(tmp_path / "run"),
        "--quiet",
        *sets,
        *more,
    ]


@pytest.fixture
def data_directory(tmp_path):
    write_dataset(
        tmp_path / "data",
        _contract_dataset(),
        load_interface(find_robot("mobile_base")),
        {},
    )
    return tmp_path


def test_command_trains_from_a_dataset_directory(data_directory):
    assert cli.train(_arguments(data_directory, "--set", "offline.updates=3")) == 0
    held = read_checkpoint(latest_checkpoint(data_directory / "run" / "checkpoints"))
    assert held.metadata["update"] == 3
    assert len(held.metadata["dataset_hash"]) == 64
    assert (
        cli.train(
            [
                str(data_directory / "data"),
                "--run-dir",
                str(data_directory / "run"),
                "--quiet",
                "--resume",
            ]
        )
        == 0
    )


@pytest.mark.slow
def test_killed_training_resumes_from_a_good_checkpoint(data_directory):
    program = (
        "import sys; from qam_train.cli import train; sys.exit(train(sys.argv[1:]))"
    )
    arguments = _arguments(
        data_directory,
        "--set",
        "offline.updates=1000000",
        "--set",
        "checkpoint_every=2",
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], env=environment
    )
    folder, deadline = data_directory / "run" / "checkpoints", time.monotonic() + 60
    while latest_checkpoint(folder) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    held = read_checkpoint(latest_checkpoint(folder))
    assert held.metadata["update"] >= 2
    assert isinstance(restore_agent(held).state_dict(), dict)
