# SPDX-License-Identifier: Apache-2.0
"""Our methods against recordings of the official implementation, and that slips would show."""

from pathlib import Path

import numpy as np
import pytest
import torch

from qam_train import cli, networks
from qam_train.agents import base, qam
from qam_train.parity import Comparison, UnsupportedRecordingError, compare
from qam_train.parity.recording import largest

HERE = Path(__file__).parent
RECORDINGS = sorted(path.stem for path in HERE.glob("*.npz"))


UPDATE = {
    "loss",
    "info",
    "gradients",
    "untouched",
    "parameters, 99%",
    "parameters, all",
    "actions",
}
EXPECTED = {
    "sample_sequence": {"rewards", "other fields"},
    "trqam_20": {"20 updates", "dual rule", "parameters, all"},
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("name", RECORDINGS)
def test_method_agrees_with_its_recording(name, precision):
    report = compare(HERE / f"{name}.npz", precision)
    beyond = [row for row in report.comparisons if not row.passed]
    assert not beyond
    quantities = {row.quantity.split(":")[0] for row in report.comparisons}
    assert quantities >= EXPECTED.get(name, UPDATE)


def _beyond(name="qam"):
    return {
        row.quantity.split(":")[0]
        for row in compare(HERE / f"{name}.npz", "float64").comparisons
        if not row.passed
    }


def test_wrong_layer_norm_epsilon_is_seen(monkeypatch):
    monkeypatch.setattr(networks, "LAYER_NORM_EPSILON", 1e-5)
    assert {"loss", "gradients", "intermediates"} <= _beyond()


def test_target_average_after_the_step_is_seen(monkeypatch):
    step = base.JointAdam.step

    def late(self, gradients, learning_rate):
        metrics = step(self, gradients, learning_rate)
        for name, value in late.agent.targets.items():
            online = late.agent.trained[name.removeprefix("target_")].detach()
            value.lerp_(online, late.agent.config.ema)
        return metrics

    def remember(self, *arguments):
        late.agent = self
        return loss(self, *arguments)

    loss = qam.QAMAgent.loss
    monkeypatch.setattr(qam.QAMAgent, "loss", remember)
    monkeypatch.setattr(base, "lagged_average", lambda *_: None)
    monkeypatch.setattr(base.JointAdam, "step", late)
    assert "parameters, all" in _beyond()


def test_missing_gradient_clip_is_seen(monkeypatch):
    monkeypatch.setattr(
        "qam_train.optimizer.clip_jointly", lambda gradients, _: gradients[0].norm()
    )
    assert _beyond() == {
        "loss",
        "info",
        "parameters, all",
        "parameters, 99%",
        "intermediates",
        "gradients",
        "actions",
    }


def test_a_not_a_number_error_is_beyond_tolerance():
    assert np.isnan(largest([0.0, float("nan"), 1.0]))


def test_other_method_is_named_as_not_implemented(tmp_path):
    path = tmp_path / "pql.npz"
    np.savez(path, meta=np.array("{}"), config=np.array('{"agent_name": "pql"}'))
    with pytest.raises(UnsupportedRecordingError, match="'pql' is not implemented"):
        compare(path, "float64")


def test_broken_file_is_not_a_recording(tmp_path):
    path = tmp_path / "torn.npz"
    path.write_bytes((HERE / "qam.npz").read_bytes()[:1000])
    with pytest.raises(UnsupportedRecordingError, match="not readable as npz"):
        compare(path, "float64")


def test_command_prints_each_method_and_what_it_left_out(capsys):
    assert cli.parity([str(HERE), "--precision", "float64"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in RECORDINGS)
    assert "not compared: sample_sequence.npz" in printed


def test_command_fails_beyond_tolerance(monkeypatch, capsys):
    monkeypatch.setattr(networks, "LAYER_NORM_EPSILON", 1e-5)
    assert cli.parity([str(HERE), "--precision", "float64"]) == 1
    assert "BEYOND" in capsys.readouterr().out


def test_summary_shows_the_worst_row_and_not_a_number_above_all():
    rows = [
        Comparison("m", "float64", f"loss: u{i}", error, 1e-10)
        for i, error in enumerate([1e-12, float("nan"), 1e-3])
    ]
    (worst,) = cli._worst(rows)
    assert np.isnan(worst.error)
    assert cli._worst(rows[::2])[0].error == 1e-3
