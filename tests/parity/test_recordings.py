# SPDX-License-Identifier: Apache-2.0
"""Our methods against recordings of the official implementation, and that slips would show."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qam_train import cli, critic, networks
from qam_train.agents import base, ifql, qam, rebrac, rlpd, trqam
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
    "trqam_20": {"updates", "dual rule", "parameters, all"},
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
    rows = compare(HERE / f"{name}.npz", precision)
    beyond = [row for row in rows if not row.passed]
    assert not beyond
    quantities = {row.quantity.split(":")[0] for row in rows}
    assert quantities >= EXPECTED.get(name, UPDATE)


def _beyond(name="qam"):
    return {
        row.quantity.split(":")[0]
        for row in compare(HERE / f"{name}.npz", "float64")
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


def test_temperature_moved_before_the_loss_is_seen(monkeypatch):
    def early(self, batch, noise, learning_rate=None):
        self.adapt(self.loss(batch, noise)[1])
        return update(self, batch, noise, learning_rate)

    update = trqam.TRQAMAgent.update
    monkeypatch.setattr(trqam.TRQAMAgent, "update", early)
    assert {"updates", "parameters, all"} <= _beyond("trqam_20")


def test_pessimism_in_the_adjoint_is_seen(monkeypatch):
    def pessimistic(q, a, bound):
        return gradient(lambda x: critic.pessimistic(q(x), 0.5).unsqueeze(-2), a, bound)

    gradient = critic.action_gradient
    monkeypatch.setattr(critic, "action_gradient", pessimistic)
    for name in ("qam", "sqam", "dcgql_qsm", "cgql_simple"):
        assert {"gradients", "intermediates"} & _beyond(name)


def test_entropy_bonus_in_the_bootstrap_is_seen(monkeypatch):
    def with_entropy(self, batch, a_next):
        return target(self, batch, a_next) + 0.01 * self.constant["alpha/log"].exp()

    target = rlpd.RLPDAgent.bootstrap_target
    monkeypatch.setattr(rlpd.RLPDAgent, "bootstrap_target", with_entropy)
    assert {"loss", "gradients"} <= _beyond("rlpd")


def test_values_weighted_by_valid_are_seen(monkeypatch):
    def masked(self, s, a):
        loss, metrics = value_loss(self, s, a)
        return 0.9 * loss, metrics

    value_loss = ifql.IFQLAgent._value_loss
    monkeypatch.setattr(ifql.IFQLAgent, "_value_loss", masked)
    assert {"loss", "gradients"} <= _beyond("ifql")


def test_target_moved_in_every_update_is_seen(monkeypatch):
    monkeypatch.setattr(rebrac.ReBRACAgent, "follow", base.Agent.follow)
    assert {"untouched", "parameters, all"} <= _beyond("rebrac")


def test_recorded_net_that_is_not_bound_is_seen(tmp_path):
    with np.load(HERE / "fql.npz") as archive:
        arrays = dict(archive)
    arrays["params0/modules_surprise/mlp/Dense_0/bias"] = np.zeros(3)
    np.savez(tmp_path / "fql.npz", **arrays)
    rows = compare(tmp_path / "fql.npz", "float64")
    assert [row.quantity for row in rows if not row.passed] == [
        "untouched: nets not bound"
    ]


def test_dead_layer_that_moved_is_seen(tmp_path):
    with np.load(HERE / "rql.npz") as archive:
        arrays = dict(archive)
    arrays["u1/f64/grad/modules_actor/log_std_net/bias"] = np.ones(6)
    np.savez(tmp_path / "rql.npz", **arrays)
    rows = compare(tmp_path / "rql.npz", "float64")
    assert "untouched: nets not bound" in [
        row.quantity for row in rows if not row.passed
    ]


def test_unknown_acting_case_is_seen(tmp_path):
    with np.load(HERE / "ifql.npz") as archive:
        arrays = dict(archive)
    arrays["act/best/f64/actions"] = np.zeros((5, 6))
    np.savez(tmp_path / "ifql.npz", **arrays)
    rows = compare(tmp_path / "ifql.npz", "float64")
    assert "actions: best, not known" in [
        row.quantity for row in rows if not row.passed
    ]


@pytest.mark.parametrize(
    ("name", "switch", "message"),
    [
        ("cgql_mse", ('"separate": false', '"separate": true'), "separate = True"),
        ("dcgql_dac", ('"vp"', '"linear"'), "beta_schedule = linear"),
        ("rql", ('"q_agg": "mean"', '"q_agg": "min"'), "q_agg = min"),
    ],
)
def test_switch_that_no_method_stands_for_is_named(tmp_path, name, switch, message):
    with np.load(HERE / f"{name}.npz") as archive:
        arrays = dict(archive)
    arrays["config"] = np.array(str(arrays["config"]).replace(*switch))
    np.savez(tmp_path / f"{name}.npz", **arrays)
    with pytest.raises(
        UnsupportedRecordingError, match=f"{message} is not implemented"
    ):
        compare(tmp_path / f"{name}.npz", "float64")


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


def test_command_prints_each_recording_and_leaves_none_out(capsys):
    assert cli.parity([str(HERE), "--precision", "float64"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in RECORDINGS)
    assert "not compared" not in printed


def test_command_fails_and_names_what_it_cannot_compare(tmp_path, capsys):
    (tmp_path / "sample_sequence.npz").symlink_to(HERE / "sample_sequence.npz")
    arguments = [str(tmp_path), "--precision", "float64"]
    assert cli.parity(arguments) == 0
    config = np.array('{"agent_name": "pql"}')
    np.savez(tmp_path / "pql.npz", meta=np.array("{}"), config=config)
    capsys.readouterr()
    assert cli.parity(arguments) == 1
    assert "not compared: pql.npz" in capsys.readouterr().out
    assert cli.parity([*arguments, "--json"]) == 1
    assert "pql.npz" in json.loads(capsys.readouterr().out)["not_compared"]


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
