# SPDX-License-Identifier: Apache-2.0
"""The matrix: which cells, what is shown, what is skipped, what a failure or an interrupt leaves."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from qam_ros.contract.errors import ConfigError
from qam_train.suite.command import command
from qam_train.suite.folder import CellFolder
from qam_train.suite.matrix import Lengths, Selection, check, plan
from qam_train.suite.protocol import load_protocol
from qam_train.suite.standing import Forecast, find_cells, standing


@pytest.fixture
def options(protocol_path, tiny_data, tmp_path):
    out, data = str(tmp_path / "out"), str(tiny_data)
    places = ["--out", out, "--data", data]
    return ["run", "--protocol", str(protocol_path), "-j", "2", *places]


def test_the_matrix_is_the_product_with_seeds_innermost(protocol_path, tmp_path):
    protocol = load_protocol(protocol_path)
    cells = plan(protocol, Selection(), (), Lengths(), tmp_path)
    assert len(cells) == 4 * 2 * 2
    assert [cell.name for cell in cells[:3]] == [
        "qam maze-task1 seed 0",
        "qam maze-task1 seed 1",
        "qam maze-task3 seed 0",
    ]
    part = Selection(("fql",), ("maze",), (3,), (7,))
    (cell,) = plan(protocol, part, ("agent.distill=3",), Lengths(), tmp_path)
    assert cell.config.agent.distill == 3.0
    assert cell.folder.path == tmp_path / "tiny/fql/maze-task3/seed7"


def test_other_lengths_give_no_offline_phase_to_a_method_without_one(
    protocol_path, tmp_path
):
    protocol = load_protocol(protocol_path)
    lengths = Lengths(offline_updates=10, online_steps=5)
    cells = plan(protocol, Selection(tasks=(1,), seeds=(0,)), (), lengths, tmp_path)
    found = {cell.config.method: cell.config for cell in cells}
    assert (found["qam"].offline_updates, found["qam"].online_steps) == (10, 5)
    assert (found["rlpd"].offline_updates, found["rlpd"].online_steps) == (0, 5)


def test_unknown_names_are_refused_with_the_nearest(options):
    with pytest.raises(ConfigError, match="did you mean 'qam'"):
        command([*options, "--methods", "qqam"])
    with pytest.raises(ConfigError, match="did you mean 'maze'"):
        command([*options, "--domains", "mazes"])
    with pytest.raises(ConfigError, match="did you mean 'run'"):
        command(["rum"])


def test_a_failed_cell_is_listed_the_others_go_on_and_the_next_run_retries_it_alone(
    options, capfd
):
    chosen = [*options, "--methods", "qam,dac", "--tasks", "1", "--seeds", "0"]
    assert command(chosen) == 1
    said = capfd.readouterr().out
    assert "qam maze-task1 seed 0: begins" in said
    assert "qam maze-task1 seed 0: offline 40 of 40, success" in said
    assert "qam maze-task1 seed 0: done" in said
    assert "dac maze-task1 seed 0: FAILED: update" in said
    assert "1 of 2 cells done, 1 failed" in said
    assert command(chosen) == 1
    said = capfd.readouterr().out
    assert "qam" not in said
    assert "dac maze-task1 seed 0: begins" in said
    out = options[options.index("--out") + 1]
    assert command(["status", out]) == 0
    assert command(["status", out, "--cells"]) == 0
    shown = capfd.readouterr().out
    assert "qam maze-task1 seed 0" in shown
    assert "dac maze-task1 seed 0: update" in shown
    with pytest.raises(ConfigError, match=r"evaluate_every = 20, now it is 10"):
        command([*chosen, "--set", "evaluate_every=10"])


def test_a_process_that_dies_without_a_word_is_reported_with_its_last_lines(
    options, capfd, monkeypatch
):
    from qam_train.suite import pool

    dying = [
        sys.executable,
        "-c",
        "print('out of memory', flush=True); import os; os.abort()",
    ]
    monkeypatch.setattr(pool, "command_line", lambda *_: dying)
    chosen = [*options, "--methods", "qam", "--tasks", "1", "--seeds", "0"]
    assert command(chosen) == 1
    said = capfd.readouterr().out
    assert "ended with code -6; its last lines: out of memory" in said


def test_settings_a_method_has_no_use_for_stop_the_run_before_it_starts(
    options, tmp_path
):
    with pytest.raises(
        ConfigError, match=r"rlpd on maze: behaviour\.updates: expected"
    ):
        command([*options, "--methods", "rlpd", "--set", "behaviour_updates=10"])
    with pytest.raises(
        ConfigError, match="fql on maze: online_budget: expected nothing"
    ):
        command([*options, "--methods", "fql", "--set", "online_budget=0.5"])
    assert not (tmp_path / "out").exists()


def test_domains_that_cannot_be_played_here_are_named_together_with_those_that_can(
    protocol_path, tiny_data, tmp_path
):
    protocol = yaml.safe_load(protocol_path.read_text())
    far = {"world": "antmaze-teleport", "data": {"dataset": "one"}}
    protocol["domains"] |= {"far": far, "farther": far}
    path = tmp_path / "far.yaml"
    path.write_text(yaml.safe_dump(protocol, sort_keys=False, default_flow_style=True))
    cells = plan(load_protocol(path), Selection(), (), Lengths(), tmp_path / "out")
    message = r"without a world: far, farther: .* did you mean 'antmaze-large'.*--domains maze$"
    with pytest.raises(ConfigError, match=message):
        check(cells, tiny_data)


def test_missing_data_stop_the_run_before_it_starts(options, tmp_path):
    options[options.index("--data") + 1] = str(tmp_path)
    with pytest.raises(ConfigError, match="qam data generate"):
        command(options)
    assert not (tmp_path / "out").exists()


def processes_of(out):
    """Processes whose command line names the folder."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                line = file.read().decode()
        except OSError:
            continue
        if "qam_train.suite.worker" in line and str(out) in line:
            found.append(int(entry))
    return found


@pytest.mark.parametrize(
    "signal_number",
    [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)],
)
def test_no_cell_outlives_its_run_and_the_next_run_continues(
    options, tiny_data, tmp_path, signal_number
):
    chosen = [*options, "--methods", "qam", "--tasks", "1", "--seeds", "0"]
    long = [*chosen, "--set", "offline_updates=1000000"]
    program = (
        "import sys; from qam_train.suite.command import command; "
        "sys.exit(command(sys.argv[1:]))"
    )
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *long], stdout=subprocess.DEVNULL
    )
    folder = CellFolder(out / "tiny/qam/maze-task1/seed0")
    deadline = time.monotonic() + 60
    while len(folder.evaluations()) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    assert folder.held()
    process.send_signal(signal_number)
    code = process.wait(timeout=20)
    assert code == (130 if signal_number == signal.SIGINT else -signal.SIGKILL)
    while folder.held() or processes_of(out):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (cell,) = find_cells(out)
    assert standing(cell).state == "stopped"
    assert standing(cell).step > 0
    assert check([cell], tiny_data) == [cell]


def test_the_forecast_counts_what_is_left_and_forgets_what_failed(
    protocol_path, tmp_path, monkeypatch
):
    from qam_train.suite import standing as module

    protocol = load_protocol(protocol_path)
    cells = plan(protocol, Selection(("qam",), tasks=(1,)), (), Lengths(), tmp_path)
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    steps = dict.fromkeys([cell.name for cell in cells], 0)
    real = module.standing
    monkeypatch.setattr(
        module,
        "standing",
        lambda cell: dataclasses.replace(real(cell), step=steps[cell.name]),
    )
    forecast = Forecast(cells)
    assert forecast.look(cells) is None
    now[0], steps[cells[0].name] = 110.0, 20
    assert forecast.look(cells) == pytest.approx(30.0)  # 60 left at 2 a second
    forecast.give_up(cells[1])
    assert forecast.look(cells) == pytest.approx(10.0)
