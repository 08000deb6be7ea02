# SPDX-License-Identifier: Apache-2.0
"""What a run is asked for: lists and settings are refused before anything starts."""

import math

import pytest

from qam_ros.contract.errors import ConfigError
from qam_train.agents.registry import METHODS
from qam_train.config import StageConfig
from qam_train.suite.cell import check_settings
from qam_train.suite.cell_config import cell_from_mapping
from qam_train.suite.command import RunArguments, command, names, numbers
from qam_train.suite.matrix import Lengths, Selection, plan
from qam_train.suite.protocol import load_protocol

CELL = {
    "protocol": "small",
    "domain": "cube-single",
    "task": 1,
    "seed": 0,
    "world": "cube-single",
    "data": {"dataset": "cube-single-demo"},
    "agent": {},
}


def test_lists_take_commas_spaces_and_ranges():
    assert names("--methods", ("qam,fql", "rlpd")) == ("qam", "fql", "rlpd")
    assert numbers("--seeds", ("0,4", "7-9")) == (0, 4, 7, 8, 9)
    with pytest.raises(ConfigError, match="--seeds: expected whole numbers"):
        numbers("--seeds", ("first",))


def test_what_is_left_out_or_called_all_is_all_of_the_protocol():
    left_out = RunArguments("small")
    assert names("--methods", left_out.methods) == ()
    assert numbers("--seeds", left_out.seeds) == ()
    assert numbers("--tasks", ("all",)) == ()


@pytest.mark.parametrize("given", [("5-2",), ("1", "5-2")])
def test_a_reversed_range_is_refused_and_not_taken_for_all(given):
    with pytest.raises(ConfigError, match=r"--seeds: expected .* got '5-2'.*'2-5'"):
        numbers("--seeds", given)


@pytest.mark.parametrize("given", [(), (",",), ("", ",")])
def test_a_list_without_an_entry_is_refused_and_not_taken_for_all(given):
    with pytest.raises(ConfigError, match=r"--methods: expected one or more names"):
        names("--methods", given)
    with pytest.raises(ConfigError, match=r"--tasks: expected one or more"):
        numbers("--tasks", given)


@pytest.mark.parametrize(
    ("option", "value"), [("--seeds", "5-2"), ("--tasks", "5-2"), ("--domains", ",")]
)
def test_the_command_refuses_a_list_that_selects_nothing(option, value, tmp_path):
    places = ["--out", str(tmp_path), "--data", str(tmp_path)]
    with pytest.raises(ConfigError, match=f"{option}: expected"):
        command(["run", "--protocol", "p_qam", option, value, *places])


@pytest.mark.parametrize("budget", [0.0, -1.0, math.inf, math.nan])
def test_an_online_budget_that_is_not_positive_is_refused_before_training(budget):
    with pytest.raises(ConfigError, match=f"online_budget: expected .*, got {budget}"):
        cell_from_mapping({**CELL, "method": "trqam", "online_budget": budget})


def test_a_budget_that_the_temperature_refuses_stops_the_run_at_planning(monkeypatch):
    from qam_train.agents.adjoint_parts import DualTemperature

    def refuse(self, config, budget):
        raise ConfigError(f"budget: expected less than {budget}")

    cell = cell_from_mapping({**CELL, "method": "trqam", "online_budget": 0.25})
    check_settings(cell)
    monkeypatch.setattr(DualTemperature, "aimed_at", refuse)
    message = r"trqam on cube-single: online_budget: budget: expected less than 0\.25"
    with pytest.raises(ConfigError, match=message):
        check_settings(cell)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("method", "key"),
    [
        *(("qam", key) for key in ("rho", "tau", "lr", "discount")),
        *(("trqam", f"dual.{key}") for key in ("budget", "step", "gain", "scale")),
        *(("qam_edit", f"edit.{key}") for key in ("scale", "target_entropy")),
        *(("rql", key) for key in ("alpha", "rho")),
    ],
)
def test_a_number_that_is_not_finite_is_refused_with_key_and_value(method, key, value):
    inner = {key.rpartition(".")[2]: value}
    outer, dot, _ = key.partition(".")
    agent = {outer: inner} if dot else inner
    with pytest.raises(ConfigError, match=rf"{key.rpartition('.')[2]}: .*got {value}"):
        cell_from_mapping({**CELL, "method": method, "agent": agent})


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_float_of_a_method_that_is_not_finite_is_refused(method):
    plain = cell_from_mapping({**CELL, "method": method}).agent
    floats = [name for name, value in vars(plain).items() if isinstance(value, float)]
    assert len(floats) >= 5
    for name in floats:
        with pytest.raises(ConfigError, match=rf"{name}: .*got nan"):
            cell_from_mapping({**CELL, "method": method, "agent": {name: math.nan}})


@pytest.mark.parametrize("name", ["utd", "offline_lr_end", "behaviour_lr_start"])
def test_numbers_of_the_cell_itself_are_finite(name):
    with pytest.raises(ConfigError, match=rf"{name}: .*got inf"):
        cell_from_mapping({**CELL, "method": "qam", name: math.inf})


def test_learning_rates_of_a_stage_are_finite():
    with pytest.raises(ConfigError, match=r"lr_end: .*got nan"):
        StageConfig(10, 3e-4, math.nan)


def test_a_bound_that_is_infinite_switches_it_off():
    free = {"clip_norm": math.inf, "action_clip": math.inf}
    agent = cell_from_mapping({**CELL, "method": "qam", "agent": free}).agent
    assert agent.clip_norm == agent.action_clip == math.inf
    noise = cell_from_mapping(
        {**CELL, "method": "rebrac", "agent": {"noise_clip": math.inf}}
    ).agent
    assert noise.noise_clip == math.inf


@pytest.mark.parametrize("name", ["p_qam", "p_tr"])
def test_actions_are_clipped_but_in_sets_of_many_files_as_released(name, tmp_path):
    protocol = load_protocol(name)
    cells = plan(protocol, Selection(("qam",)), (), Lengths(), tmp_path)
    clips = {(cell.config.data.files > 1, cell.config.data.clip) for cell in cells}
    assert clips == {(True, None), (False, 1.0 - 1e-5)}


@pytest.mark.parametrize("clip", [0.0, -1.0, 1.5, math.nan])
def test_actions_are_clipped_inside_the_box_or_not_at_all(clip):
    data = {**CELL["data"], "clip": clip}
    with pytest.raises(ConfigError, match=r"clip: .*got"):
        cell_from_mapping({**CELL, "method": "qam", "data": data})
