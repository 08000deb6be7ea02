# SPDX-License-Identifier: Apache-2.0
"""Bringup files: arguments, placeholders, and errors that name what is wrong."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from qam_ros.contract.errors import ConfigError
from qam_ros.runtime.bringup import (
    ProcessSpec,
    find_executable,
    list_bringups,
    load_bringup,
    read_bringup,
    write_parameters,
)
from qam_ros.runtime.supervisor import command, parse_overrides

GOOD = {
    "description": "One process.",
    "environment": {"COLOUR": "red"},
    "arguments": {
        "artifact": {"description": "Policy to run.", "required": True},
        "run_dir": {"description": "Where logs go.", "default": "runs/one"},
        "namespace": {"description": "ROS namespace.", "default": ""},
        "dry_run": {"description": "Publish no command.", "default": True},
        "rate": {"description": "Rate [Hz].", "default": 20.0},
        "overlay": {"description": "Tighter limits.", "default": None},
        "mode": {
            "description": "Pace.",
            "default": "fast",
            "choices": ["fast", "slow"],
        },
    },
    "processes": [
        {
            "name": "policy",
            "executable": sys.executable,
            "respawn": True,
            "parameters": {
                "artifact": "{artifact}",
                "log": "{run_dir}/policy.log",
                "rate": "{rate}",
                "dry_run": "{dry_run}",
                "overlay": "{overlay}",
                "depth": 4,
            },
        },
        {"name": "extra", "executable": sys.executable, "when": "dry_run"},
    ],
}


@pytest.fixture
def write(tmp_path):
    """Function that writes a changed copy of GOOD and returns its path."""

    def change(**changes) -> str:
        path = tmp_path / "one.yaml"
        path.write_text(json.dumps({**GOOD, **changes}))
        return str(path)

    return change


def with_process(**changes) -> list[dict]:
    return [{**GOOD["processes"][0], **changes}]


def test_placeholders_keep_the_type_of_their_argument(write):
    bringup = load_bringup(
        write(), {"artifact": "a.zip", "rate": "50", "dry_run": "false"}
    )
    assert [spec.name for spec in bringup.processes] == ["policy"]
    assert bringup.processes[0].parameters == {
        "artifact": "a.zip",
        "log": "runs/one/policy.log",
        "rate": 50.0,
        "dry_run": False,
        "depth": 4,
    }
    assert isinstance(bringup.processes[0].parameters["rate"], float)
    assert bringup.processes[0].environment == {"COLOUR": "red"}
    assert bringup.run_dir == Path("runs/one")


@pytest.mark.parametrize("name", list_bringups())
def test_files_that_the_environment_names_exist(name):
    needed = [
        key
        for key, argument in read_bringup(name).arguments.items()
        if argument.required
    ]
    for spec in load_bringup(name, dict.fromkeys(needed, "some")).processes:
        profile = Path(spec.environment["FASTDDS_DEFAULT_PROFILES_FILE"])
        assert profile.is_absolute()
        assert profile.is_file()


def test_a_conditional_process_runs_when_its_argument_is_true(write):
    bringup = load_bringup(write(), {"artifact": "a"})
    assert [spec.name for spec in bringup.processes] == ["policy", "extra"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {},
            r"argument 'artifact' is missing \(Policy to run\.\); add artifact:=\.\.\.",
        ),
        ({"artefact": "a"}, r"unknown argument 'artefact'; did you mean 'artifact'\?"),
        (
            {"artifact": "a", "dry_run": "no"},
            "argument 'dry_run': expected true or false",
        ),
        ({"artifact": "a", "rate": "fast"}, "argument 'rate': expected a number"),
        ({"artifact": "a", "mode": "slwo"}, r"argument 'mode'.*did you mean 'slow'\?"),
    ],
)
def test_wrong_arguments_are_explained(write, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_bringup(write(), overrides)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"argumens": {}}, r"unknown key 'argumens'; did you mean 'arguments'\?"),
        ({"processes": with_process(respwan=True)}, r"did you mean 'respawn'\?"),
        (
            {"processes": with_process(parameters={"x": "{artefact}"})},
            r"unknown argument 'artefact'; did you mean 'artifact'\?",
        ),
        ({"processes": with_process(when="dryrun")}, r"did you mean 'dry_run'\?"),
        ({"processes": []}, "processes: expected a list"),
        ({"processes": with_process() * 2}, "two processes are named 'policy'"),
        ({"arguments": {"artifact": {"description": "A."}}}, "'run_dir' is missing"),
        ({"arguments": {"run_dir": {"default": "x"}}}, "key 'description' is missing"),
    ],
)
def test_wrong_files_are_explained(write, changes, message):
    with pytest.raises(ConfigError, match=message):
        read_bringup(write(**changes))


@pytest.mark.parametrize("executable", ["guard_node", "/somewhere/plant_node"])
def test_what_moves_the_robot_is_never_restarted(write, executable):
    with pytest.raises(ConfigError, match="never restarted"):
        read_bringup(write(processes=with_process(executable=executable)))


def test_an_unknown_bringup_names_the_nearest():
    with pytest.raises(
        ConfigError, match=r"no bringup 'polcy'; did you mean 'policy'\?"
    ):
        read_bringup("polcy")


def test_an_executable_that_is_not_installed_is_named():
    with pytest.raises(ConfigError, match="executable 'no_such_node' is neither in"):
        find_executable("no_such_node")


def test_parameter_files_have_the_form_that_ros_reads(tmp_path):
    spec = ProcessSpec(
        "policy", ("x",), {"rate": 1e-5, "names": ["a", "b"], "on": True}
    )
    path = write_parameters(spec, tmp_path / "parameters")
    assert yaml.safe_load(path.read_text()) == {
        "/**": {"ros__parameters": {"rate": 1e-5, "names": ["a", "b"], "on": True}}
    }


def test_words_of_the_command_line_become_overrides():
    assert parse_overrides(["a:=1", "b:=x:=y"]) == {"a": "1", "b": "x:=y"}
    with pytest.raises(ConfigError, match="expected argument:=value, found 'a=1'"):
        parse_overrides(["a=1"])


def test_every_shipped_argument_is_described_on_request(capsys):
    for name in list_bringups():
        assert command([name, "--show-args"]) == 0
        shown = capsys.readouterr().out
        for argument in read_bringup(name).arguments.values():
            assert f"{argument.name}:=" in shown
            assert argument.description in shown
