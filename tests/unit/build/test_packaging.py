# SPDX-License-Identifier: Apache-2.0
"""Packages are found by colcon, pins are complete, messages match what is built."""

import ast
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
COLCON = Path(sys.executable).parent / "colcon"


def setup_arguments() -> dict:
    """Keyword arguments of `setup(...)` that are literals."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    call = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    found = {}
    for keyword in call.keywords:
        try:
            found[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError:
            continue
    return found


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement)[0]).lower()


@pytest.mark.skipif(not COLCON.exists(), reason="needs colcon: run make setup")
def test_colcon_lists_both_packages_with_their_ros_build_types(tmp_path):
    environment = {**os.environ, "COLCON_DEFAULTS_FILE": "colcon.defaults.yaml"}
    listing = subprocess.run(
        [COLCON, "--log-base", tmp_path, "list"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [line.split("\t") for line in listing.splitlines()] == [
        ["qam_msgs", "qam_msgs", "(ros.ament_cmake)"],
        ["qam_ros", ".", "(ros.ament_python)"],
    ]


def test_every_dependency_that_make_setup_installs_is_pinned():
    pins = {
        canonical(line)
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    arguments = setup_arguments()
    extras = arguments["extras_require"]
    wanted = arguments["install_requires"] + [
        item for name in ("train", "sim", "cluster", "ros", "dev") for item in extras[name]
    ]
    assert {canonical(item) for item in wanted} - pins == set()


def test_both_manifests_and_setup_agree_on_version_and_maintainer():
    arguments = setup_arguments()
    for manifest in (ROOT / "package.xml", ROOT / "qam_msgs" / "package.xml"):
        package = ET.parse(manifest).getroot()
        assert package.findtext("version") == arguments["version"]
        assert package.find("maintainer").get("email") == arguments["maintainer_email"]
        assert package.findtext("license") == arguments["license"] == "Apache-2.0"


def test_every_message_file_is_built():
    listed = re.findall(
        r"msg/(\w+)\.msg", (ROOT / "qam_msgs" / "CMakeLists.txt").read_text()
    )
    assert sorted(listed) == sorted(
        p.stem for p in (ROOT / "qam_msgs" / "msg").glob("*.msg")
    )


def test_executables_go_where_ros2_run_looks():
    text = (ROOT / "setup.cfg").read_text()
    assert text.count("=$base/lib/qam_ros") == 2


def test_launch_and_config_hide_no_package_of_ros():
    for folder in ("launch", "config", "resource"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_colcon_defaults_are_plain_yaml_for_every_verb_used():
    defaults = yaml.safe_load((ROOT / "colcon.defaults.yaml").read_text())
    assert {"list", "build", "test"} <= set(defaults)
    assert all(
        options["base-paths"] == [".", "qam_msgs"] for options in defaults.values()
    )
