# SPDX-License-Identifier: Apache-2.0
"""Launch files are the bringups: the same arguments, the same processes."""

import ast
import importlib.util
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

from qam_ros.runtime.bringup import list_bringups, load_bringup, read_bringup

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "launch").glob("*.launch.py"))
VALUES = {"artifact": "some.zip", "checkpoint": "some", "dataset": "some"}


def name_of(path: Path) -> str:
    return path.name.removesuffix(".launch.py")


def chosen(name: str, folder: Path) -> dict[str, str]:
    """Arguments for a bringup: a value for what is required, and a folder for logs."""
    arguments = read_bringup(name).arguments
    needed = {key: value for key, value in VALUES.items() if key in arguments}
    return {**needed, "run_dir": str(folder)}


def table(executable: str) -> dict[str, object]:
    """Default of each declared parameter of a node, by name."""
    (entry,) = entry_points(group="console_scripts", name=executable)
    module = importlib.import_module(f"{entry.module}_node")
    rows = getattr(module, "PARAMETERS", None) or module.TABLE
    return {row.name: row.default for row in rows} | {"use_sim_time": False}


def test_there_is_a_launch_file_for_the_robot_the_loop_and_the_recorder():
    assert {name_of(path) for path in FILES} == {"policy", "sim_finetune", "record"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_launch_file_only_calls_the_one_loader_for_its_bringup(path):
    tree = ast.parse(path.read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
    assert function.name == "generate_launch_description"
    assert (
        ast.unparse(function.body[-1])
        == f"return launch_description('{name_of(path)}')"
    )
    assert read_bringup(name_of(path)).processes


def test_a_real_robot_starts_in_dry_run_and_with_its_tighter_limits(tmp_path):
    bringup = load_bringup("policy", chosen("policy", tmp_path))
    guard = next(spec for spec in bringup.processes if spec.name == "guard")
    assert guard.parameters["dry_run"] is True
    assert guard.parameters["overlay"] == "ur5e_2f85.real"


@pytest.mark.parametrize("name", list_bringups())
def test_every_parameter_of_a_bringup_is_declared_by_its_node_with_its_type(
    name, tmp_path
):
    for spec in load_bringup(name, chosen(name, tmp_path)).processes:
        declared = table(Path(spec.command[0]).name)
        types = {key: type(value) for key, value in spec.parameters.items()}
        assert types == {key: type(declared.get(key)) for key in types}, spec.name


@pytest.mark.parametrize("pace", ["lockstep", "realtime"])
def test_simulated_time_is_for_lockstep_alone(pace, tmp_path):
    overrides = {**chosen("mobile_base", tmp_path), "pace": pace}
    for spec in load_bringup("mobile_base", overrides).processes:
        assert spec.parameters.get("use_sim_time", False) is (
            pace == "lockstep" and spec.name != "plant"
        )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_launch_system_starts_the_processes_of_the_bringup(path, tmp_path):
    pytest.importorskip(
        "launch_ros", reason="needs launch_ros: source a ROS 2 distribution"
    )
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument, OpaqueFunction

    spec = importlib.util.spec_from_file_location("launch_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    description = module.generate_launch_description()
    arguments = [
        e for e in description.entities if isinstance(e, DeclareLaunchArgument)
    ]
    declared = read_bringup(name_of(path)).arguments
    assert [a.name for a in arguments] == list(declared)
    for argument in arguments:  # launch appends the choices
        assert argument.description.startswith(declared[argument.name].description)

    context = LaunchContext()
    context.launch_configurations.update(chosen(name_of(path), tmp_path))
    for argument in arguments:
        argument.execute(context)
    (start,) = [e for e in description.entities if isinstance(e, OpaqueFunction)]
    nodes = start.execute(context)
    wanted = load_bringup(name_of(path), chosen(name_of(path), tmp_path)).processes
    assert [node.node_executable for node in nodes] == [
        spec.command[0] for spec in wanted
    ]
    for process in wanted:
        file = tmp_path / "logs" / "parameters" / f"{process.name}.yaml"
        written = yaml.safe_load(file.read_text())["/**"]["ros__parameters"]
        assert written == process.parameters
