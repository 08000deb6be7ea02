# SPDX-License-Identifier: Apache-2.0
"""Process graphs as data: one loader for `qam up` and for the launch files."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qam_ros.contract.errors import ConfigError, nearest
from qam_ros.contract.reading import dump_yaml
from qam_ros.runtime.bringup_file import BringupFile, Process, Value, fill
from qam_ros.runtime.bringup_yaml import parse_bringup


@dataclass(frozen=True)
class ProcessSpec:
    """One process to run.

    Args:
        name: of the node, of its log and in `processes.json`.
        command: executable and its own arguments, without those of ROS.
        parameters: ROS parameters.
        namespace: ROS namespace; empty: none.
        respawn: start it again when it fails.
        max_restarts: restarts in a row before it is given up.
        settle_s: wait before it is asked to stop, after those listed below it have ended [s].
        stop_timeout_s: time it has to end when asked, before it is killed [s].
        environment: variables set for it unless the caller's environment has them; `{config}` in
            the file stands for the folder config.
    """

    name: str
    command: tuple[str, ...]
    parameters: Mapping[str, Any]
    namespace: str = ""
    respawn: bool = False
    max_restarts: int = 20
    settle_s: float = 0.0
    stop_timeout_s: float = 5.0
    environment: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Bringup:
    """A process graph with all arguments chosen, in the order of starting."""

    name: str
    arguments: Mapping[str, Value]
    processes: tuple[ProcessSpec, ...]
    run_dir: Path


def load_bringup(name: str, overrides: Mapping[str, Any] | None = None) -> Bringup:
    """Process graph of a bringup.

    Args:
        name: a file of config/bringup without its ending, or a path to a YAML file.
        overrides: values of arguments.

    Raises:
        ConfigError: unknown bringup, key or argument (with the nearest name), missing argument,
            value of another kind, or an executable that is not installed.
    """
    file = read_bringup(name)
    values = file.choose(overrides or {})
    specs = [
        _specify(process, file, values)
        for process in file.processes
        if not process.when or values[process.when]
    ]
    return Bringup(file.name, values, tuple(specs), Path(str(values["run_dir"])))


def read_bringup(name: str) -> BringupFile:
    """Read a bringup as written; arguments and raises as `load_bringup`."""
    path = Path(name) if name.endswith(".yaml") else bringup_folder() / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"no bringup '{name}'; {nearest(name, list_bringups())}")
    return parse_bringup(path)


def list_bringups() -> list[str]:
    """Names of the installed bringups."""
    return sorted(path.stem for path in bringup_folder().glob("*.yaml"))


def bringup_folder() -> Path:
    """Folder `config/bringup` of the checkout or installation that this file belongs to.

    Raises:
        ConfigError: there is none.
    """
    for parent in Path(__file__).resolve().parents:
        for folder in (parent / "config", parent / "share" / "qam_ros" / "config"):
            if (folder / "bringup").is_dir():
                return folder / "bringup"
    raise ConfigError(
        f"no folder config/bringup above {__file__}; install qam_ros again"
    )


def find_executable(name: str) -> str:
    """Absolute path of a console script.

    Looked for in lib/qam_ros of a colcon installation, beside this Python, then on the path.

    Raises:
        ConfigError: it is nowhere.
    """
    beside = Path(sys.executable).parent
    installed = [
        parent / "lib" / "qam_ros" for parent in Path(__file__).resolve().parents
    ]
    for folder in (*installed, beside):
        if (folder / name).is_file():
            return str(folder / name)
    found = shutil.which(name)
    if found is None:
        raise ConfigError(
            f"executable '{name}' is neither in {beside} nor on the path; run make setup, or "
            "source the installation of qam_ros"
        )
    return found


def write_parameters(spec: ProcessSpec, folder: Path) -> Path:
    """Write the ROS parameter file of a process into a folder and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{spec.name}.yaml"
    content = {"/**": {"ros__parameters": dict(spec.parameters)}}
    path.write_text(dump_yaml(content, str(path), ConfigError))
    return path


def _specify(
    process: Process, file: BringupFile, values: Mapping[str, Value]
) -> ProcessSpec:
    filled = {name: fill(value, values) for name, value in process.parameters.items()}
    return ProcessSpec(
        name=process.name,
        command=(find_executable(process.executable),),
        parameters={name: value for name, value in filled.items() if value is not None},
        namespace=str(values.get("namespace") or ""),
        respawn=process.respawn,
        max_restarts=process.max_restarts,
        settle_s=process.settle_s,
        stop_timeout_s=process.stop_timeout_s,
        environment={
            key: text.replace("{config}", str(bringup_folder().parent))
            for key, text in file.environment.items()
        },
    )
