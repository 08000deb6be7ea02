# SPDX-License-Identifier: Apache-2.0
"""Recordings with other entries, cases, switches and lengths than the shipped ones, and damaged ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qam_train import cli
from qam_train.agents.dac import DACAgent
from qam_train.agents.diffusion_policy import DiffusionConfig
from qam_train.agents.qsm import QSMAgent, QSMConfig
from qam_train.config import NetworkConfig
from qam_train.parity import UnsupportedRecordingError, compare
from qam_train.parity.diffusion_policies import sampling
from qam_train.parity.recording import PRECISIONS

HERE = Path(__file__).parent


def arrays_of(name):
    with np.load(HERE / f"{name}.npz") as archive:
        return dict(archive)


def saved(path, arrays):
    np.savez(path, **arrays)
    return path


def beyond(path, precision="float64"):
    return [row.quantity for row in compare(path, precision) if not row.passed]


def settings_changed(arrays, **changes):
    settings = json.loads(str(arrays["config"])) | changes
    return arrays | {"config": np.array(json.dumps(settings))}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_first_updates_of_the_recorded_run_are_a_run(tmp_path, precision):
    """The official numbers of updates 1 .. 7; their parameters are not recorded."""
    arrays = arrays_of("trqam_20")
    per_update = ("batch/", "noise/", "f64/info/", "f32/info/")
    for name, value in list(arrays.items()):
        if name.startswith(per_update):
            arrays[name] = value[:7]
        elif "/params_after_" in name:
            del arrays[name]
    missing = "parameters, all: f64/params_after_7, not known"
    path = saved(tmp_path / "trqam_7.npz", arrays)
    assert beyond(path, precision) == [missing]
    for name, value in arrays_of("trqam_20").items():
        if name.startswith("params0"):  # as after no update: far from those after 7
            arrays[name.replace("params0", "f64/params_after_7")] = value
    after = beyond(saved(path, arrays))
    assert after == [f"parameters, {n}: after 7 updates" for n in ("99%", "all")]


def additive(config, estimates):
    """TRQAM's rule in numpy, from m = 1 and D_bar = 0."""
    m, average, found = 1.0, 0.0, []
    for kl in estimates:
        capped = min(kl, config["kl_clip_coef"] * config["kl_budget"])
        average += config["kl_ema_coef"] * (capped - average)
        m += config["eta_lambda"] * (average - config["kl_budget"])
        m = min(max(m, config["lambda_min"]), config["lambda_max"])
        used = config["lam_scale"] * m
        found.append((m, average, used, used**-0.5))
    return np.array(found).T


def test_dual_rule_of_other_settings_and_lengths_is_compared(tmp_path):
    arrays = {k: v for k, v in arrays_of("trqam_20").items() if k[:5] != "dual/"}
    base = json.loads(str(arrays["config"]))
    changes = {"odd": {"kl_budget": 1.7, "eta_lambda": 3.0, "lam_scale": 2.0}}
    arrays["f64/dual_configs"] = np.array(json.dumps(changes))
    estimates = np.random.default_rng(0).exponential(2.0, 90)
    numbers = additive(base | changes["odd"], estimates)
    arrays["dual/odd/long/kl_estimate"] = estimates
    for key, value in zip(
        ("lam", "kl_ema", "lambda_used", "sigma_scale"), numbers, strict=True
    ):
        arrays[f"dual/odd/long/f64/{key}"] = value
    path = saved(tmp_path / "run.npz", arrays)
    for precision in PRECISIONS:
        rules = [r for r in compare(path, precision) if r.quantity[:4] == "dual"]
        assert [(r.quantity, r.passed) for r in rules] == [
            ("dual rule: odd, long", True)
        ]
    arrays["dual/odd/long/f64/lam"] = numbers[0] * 1.001
    assert beyond(saved(path, arrays)) == ["dual rule: odd, long"]


@pytest.mark.parametrize(
    ("added", "quantity"),
    [
        ("u1/f64/info/actor/surprise", "info: actor/surprise of u1, not known"),
        ("u2/f64/mid/am/zs", "intermediates: am/zs of u2, not known"),
        ("act/greedy/f64/actions", "actions: greedy, not known"),
    ],
)
def test_entry_that_nothing_stands_for_is_one_failing_row(tmp_path, added, quantity):
    arrays = arrays_of("qam") | {added: np.array(1.0)}
    assert beyond(saved(tmp_path / "qam.npz", arrays)) == [quantity]


def test_unknown_entry_of_a_run_is_one_failing_row(tmp_path):
    arrays = arrays_of("trqam_20") | {"f64/info/dual/mood": np.ones(20)}
    path = saved(tmp_path / "run.npz", arrays)
    assert beyond(path) == ["updates: dual/mood, not known"]


def test_recorded_numbers_that_are_not_compared_are_failing_rows(tmp_path):
    arrays = arrays_of("trqam_20")
    sequence = next(k for k in arrays if k.endswith("/f64/lam") and k[:5] == "dual/")
    label = "dual rule: " + ", ".join(sequence.split("/")[1:3])
    (entry,) = [k for k in arrays if k.startswith("f64/info/")][:1]
    longer = {entry: np.append(arrays[entry], 0.0)}
    assert beyond(saved(tmp_path / "a.npz", arrays | longer)) == [
        f"updates: {entry.removeprefix('f64/info/')}, not known"
    ]
    one = arrays | {sequence: arrays[sequence][:1]}
    assert beyond(saved(tmp_path / "b.npz", one)) == [label]
    less = {k: v for k, v in arrays.items() if k != sequence}
    assert beyond(saved(tmp_path / "c.npz", less)) == [f"{label}, lam, not known"]


@pytest.mark.parametrize(
    ("name", "dropped", "message"),
    [
        ("qam", "u1/noise/bc_x0", "array 'u1/noise/bc_x0' is missing"),
        ("qam", "u2/f64/loss", "array 'u2/f64/loss' is missing"),
        ("qam", "act/n4/noise/action_noise", "'act/n4/noise/action_noise' is missing"),
        ("qam", "params0/modules_critic/value_net/Dense_1/bias", "do not fit together"),
        ("sample_sequence", "h3/masks", "array 'h3/masks' is missing"),
        ("trqam_20", "batch/rewards", "array 'batch/rewards' is missing"),
    ],
)
def test_missing_array_is_named(tmp_path, name, dropped, message):
    arrays = arrays_of(name)
    del arrays[dropped]
    with pytest.raises(UnsupportedRecordingError, match=message):
        compare(saved(tmp_path / f"{name}.npz", arrays), "float64")


def test_missing_setting_is_named(tmp_path):
    arrays = arrays_of("fql")
    settings = json.loads(str(arrays["config"]))
    del settings["alpha"]
    arrays["config"] = np.array(json.dumps(settings))
    with pytest.raises(UnsupportedRecordingError, match="config has no entry 'alpha'"):
        compare(saved(tmp_path / "fql.npz", arrays), "float64")


def test_damaged_files_are_named_and_hide_none_of_the_others(tmp_path, capsys):
    arrays, whole = arrays_of("fql"), (HERE / "fql.npz").read_bytes()
    saved(tmp_path / "shape.npz", arrays | {"u1/batch/rewards": np.zeros((2, 2))})
    saved(tmp_path / "noise.npz", {k: v for k, v in arrays.items() if "/bc_t" not in k})
    saved(tmp_path / "json.npz", arrays | {"config": np.array("{")})
    (tmp_path / "empty.npz").write_bytes(b"")
    half = len(whole) // 2
    (tmp_path / "flipped.npz").write_bytes(
        whole[:half]
        + bytes(b ^ 255 for b in whole[half : half + 4000])
        + whole[half + 4000 :]
    )
    with (tmp_path / "single.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    (tmp_path / "whole.npz").write_bytes(whole)
    assert cli.parity([str(tmp_path), "--precision", "float64", "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    bad = {f"{n}.npz" for n in ("shape", "noise", "json", "empty", "flipped", "single")}
    assert set(printed["not_compared"]) == bad
    assert {row["method"] for row in printed["comparisons"]} == {"whole"}
    assert all(row["passed"] for row in printed["comparisons"])


@pytest.mark.parametrize(("name", "best_of"), [("qam", 4), ("fedit", 3), ("dsrl", 2)])
def test_acting_case_of_any_number_of_candidates_is_known(tmp_path, name, best_of):
    """The recorded best of 4 under other names: its first candidates, where the best is one of them."""
    arrays = arrays_of(name)
    case = {k[7:]: v for k, v in arrays.items() if k.startswith("act/n4/")}
    for key, value in case.items():
        of_noise = key.startswith("noise/")
        arrays[f"act/n{best_of}7/{key}"] = (
            np.concatenate([value] + [value[:, :1]] * (best_of - 1), 1)
            if of_noise
            else value
        )  # candidates twice: the best stays the best
    assert beyond(saved(tmp_path / f"{name}.npz", arrays)) == []


def test_best_of_n_of_the_diffusion_methods_changes_nothing(tmp_path):
    """The official agent carries the setting and never reads it."""
    arrays = settings_changed(arrays_of("dcgql_dac"), best_of_n=4)
    assert beyond(saved(tmp_path / "dcgql.npz", arrays)) == []


def test_diffusion_samplers_by_their_clips_are_those_of_the_methods():
    nets = {"actor": NetworkConfig((8, 8)), "critic": NetworkConfig((8,))}
    numbers = {"diffusion_steps": 4, "time_code": 6, "chunk": 2} | nets
    generator = torch.Generator().manual_seed(0)
    cases = (
        (DACAgent, DiffusionConfig(**numbers), True, False),
        (QSMAgent, QSMConfig(**numbers), False, True),
        (QSMAgent, QSMConfig(**numbers, sampler="posterior"), True, False),
    )
    for kind, config, before, after in cases:
        agent = kind.init(config, 3, 2, generator)
        by_clips = sampling(kind, before=before, after=after)
        other = by_clips(config, agent.parameters, agent.normaliser)
        s, noise = torch.randn(5, 3), torch.randn(7, 5, agent.noise_width)
        torch.testing.assert_close(other.policy(s, noise), agent.policy(s, noise))


def test_swapped_sampler_of_a_recorded_loss_is_compared_by_its_own_rule(tmp_path):
    """Only what the sampler enters differs from the recording: target, acting and what follows."""
    arrays = arrays_of("dcgql_dac")
    swap = {"clip_sampler_before": False, "clip_sampler_after": True}
    path = saved(tmp_path / "dcgql.npz", settings_changed(arrays, **swap))
    first = {name.split(": ")[0] for name in beyond(path)}
    assert first >= {"intermediates", "actions"}
    assert "untouched" not in first


def test_temperature_zero_plays_the_behaviour_flow(tmp_path):
    """Official code: inv_temp = 0 samples the online behaviour flow, at the next observation, too."""
    for name in ("qam", "qam_edit", "bam"):
        arrays = settings_changed(arrays_of(name), inv_temp=0.0)
        played = saved(tmp_path / f"{name}.npz", arrays)
        assert any("actions" in row for row in beyond(played))
        for part in [k for k in arrays if k.startswith("params0/modules_actor_fast/")]:
            arrays[part] = arrays[part.replace("actor_fast", "actor_slow")]
        copied = saved(
            tmp_path / "copied.npz", settings_changed(arrays, inv_temp=1e-300)
        )
        cold, tiny = (
            {r.quantity: r.error for r in compare(p, "float64")}
            for p in (saved(played, arrays), copied)
        )
        kept = ("loss: u1", "intermediates: u1")  # before the two flows part
        assert [cold[k] for k in kept] == pytest.approx(
            [tiny[k] for k in kept], rel=1e-9
        )
