# SPDX-License-Identifier: Apache-2.0
"""Finding and loading the YAML of a robot, from a checkout or from an installed package."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from qam_ros.contract.errors import InterfaceError, nearest
from qam_ros.contract.interface_yaml import read_interface
from qam_ros.contract.overlay import apply_overlay
from qam_ros.contract.reading import load_yaml
from qam_ros.contract.robot_interface import RobotInterface

_SUBFOLDER: Final = Path("config") / "robot"
_SHARE: Final = Path("share") / "qam_ros" / _SUBFOLDER


def robot_folders() -> list[Path]:
    """Folders that may hold robot YAML files: the checkout's first, then the installed ones."""
    prefixes = [
        Path(entry)
        for entry in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    ]
    candidates = [Path(__file__).resolve().parents[2] / _SUBFOLDER]
    candidates += [
        prefix / _SHARE for prefix in (*prefixes, Path(sys.prefix)) if prefix.parts
    ]
    return [folder for folder in candidates if folder.is_dir()]


def robot_names() -> list[str]:
    """Names of all robots and overlays that ``find_robot`` finds."""
    return sorted(
        {path.stem for folder in robot_folders() for path in folder.glob("*.yaml")}
    )


def find_robot(name: str | Path) -> Path:
    """Path of a robot's (or an overlay's) YAML file.

    Args:
        name: a path that ends in .yaml, or a name such as ``ur5e_2f85`` or ``ur5e_2f85.real``,
            looked up in the checkout's config/robot, then in share/qam_ros/config/robot of every
            prefix of AMENT_PREFIX_PATH and of the Python environment.

    Raises:
        InterfaceError: there is no such file; lists the names that exist and where they were sought.
    """
    if Path(name).suffix == ".yaml":
        if Path(name).is_file():
            return Path(name)
        raise InterfaceError(
            f"{name}: no such robot file; check the path", path=str(name)
        )
    folders = robot_folders()
    for folder in folders:
        path = folder / f"{name}.yaml"
        if path.is_file():
            return path
    raise InterfaceError(
        f"unknown robot '{name}'; {nearest(str(name), robot_names())}; "
        f"looked in: {', '.join(map(str, folders)) or 'no folder exists'}; "
        "give a name or the path of a .yaml file",
        robot=str(name),
    )


def load_interface(
    robot: str | Path, overlay: str | Path | None = None
) -> RobotInterface:
    """Load a robot's interface, with an overlay if one is named.

    Args:
        robot: path or name, see ``find_robot``.
        overlay: path, full name (``ur5e_2f85.real``) or short name (``real``) of the overlay.

    Raises:
        InterfaceError: a file is missing or wrong; the message names the file and the place in it.
    """
    path = find_robot(robot)
    interface = read_interface(load_yaml(path, InterfaceError), str(path))
    if overlay is None or str(overlay) == "":
        return interface
    long_name = f"{interface.robot}.{overlay}"
    overlay_path = find_robot(long_name if long_name in robot_names() else overlay)
    mapping = load_yaml(overlay_path, InterfaceError)
    return apply_overlay(interface, mapping, str(overlay_path))
