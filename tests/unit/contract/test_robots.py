# SPDX-License-Identifier: Apache-2.0
"""Robots are found by path, in the checkout, and where the package is installed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from qam_ros.contract import robots
from qam_ros.contract.errors import InterfaceError
from qam_ros.contract.interface import find_robot, load_interface, robot_names

CHECKOUT = Path(__file__).parents[3] / "config" / "robot"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No checkout: the module lies somewhere else, and so does the Python prefix."""
    module = tmp_path / "site-packages" / "qam_ros" / "contract" / "robots.py"
    monkeypatch.setattr(robots, "__file__", str(module))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    return tmp_path


def share(prefix: Path) -> Path:
    folder = prefix / "share" / "qam_ros" / "config" / "robot"
    folder.mkdir(parents=True)
    shutil.copy(CHECKOUT / "mobile_base.yaml", folder)
    return folder / "mobile_base.yaml"


def test_checkout_has_the_shipped_robots() -> None:
    assert {"ur5e_2f85", "ur5e_2f85.real", "mobile_base", "mobile_base.twist"} <= set(
        robot_names()
    )
    assert find_robot("mobile_base") == CHECKOUT / "mobile_base.yaml"


def test_path_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    shutil.copy(CHECKOUT / "mobile_base.yaml", file)
    assert find_robot(file) == file
    assert load_interface(str(file)) == load_interface("mobile_base")


def test_robot_is_found_in_the_python_prefix(installed: Path) -> None:
    file = share(installed / "prefix")
    assert find_robot("mobile_base") == file


def test_robot_is_found_in_any_ament_prefix(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = share(installed / "workspace")
    monkeypatch.setenv(
        "AMENT_PREFIX_PATH", f"{installed / 'ros'}:{installed / 'workspace'}"
    )
    assert find_robot("mobile_base") == file


def test_working_directory_is_no_place_to_look(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share(installed / "here")
    monkeypatch.chdir(installed / "here")
    with pytest.raises(
        InterfaceError, match=r"unknown robot 'mobile_base'.*no folder exists"
    ):
        find_robot("mobile_base")


def test_unknown_robot_names_the_nearest_and_the_folders() -> None:
    with pytest.raises(
        InterfaceError, match=r"unknown robot 'ur5_2f85'; did you mean 'ur5e_2f85'"
    ) as caught:
        find_robot("ur5_2f85")
    assert str(CHECKOUT) in str(caught.value)


def test_missing_path_is_named() -> None:
    with pytest.raises(
        InterfaceError, match=r"nowhere/a.yaml: no such robot file; check the path"
    ):
        find_robot("nowhere/a.yaml")


@pytest.mark.parametrize(
    "overlay", ["real", "ur5e_2f85.real", CHECKOUT / "ur5e_2f85.real.yaml"]
)
def test_overlay_is_given_by_short_name_full_name_or_path(overlay: str | Path) -> None:
    assert load_interface("ur5e_2f85", overlay).action[0].max_rate == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("overlay", [None, ""])
def test_no_overlay_is_the_robot_itself(overlay: str | None) -> None:
    assert load_interface("ur5e_2f85", overlay) == load_interface("ur5e_2f85")


def test_overlay_file_is_no_robot() -> None:
    with pytest.raises(
        InterfaceError, match=r"ur5e_2f85.real.yaml: unknown key 'overlay_of'"
    ):
        load_interface("ur5e_2f85.real")
