# SPDX-License-Identifier: Apache-2.0
"""A bringup as written in `config/bringup/*.yaml`: described arguments, processes, checks.

Format: docs/formats/bringup.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qam_ros.contract.errors import ConfigError, check_keys, nearest
from qam_ros.contract.reading import (
    load_yaml,
    read_choice,
    read_flag,
    read_integer,
    read_number,
    read_text,
)

Value = str | bool | int | float | None

KINDS: Final = ("text", "flag", "integer", "number")
MOTION: Final = ("guard_node", "plant_node")
PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Argument:
    """One argument of a bringup.

    Args:
        name: as written in `name:=value`.
        description: one sentence for the help.
        kind: text, flag, integer or number.
        default: value when none is given; None leaves out the parameters that are only it.
        required: there is no default.
        choices: the valid texts; empty: any.
    """

    name: str
    description: str
    kind: str
    default: Value = None
    required: bool = False
    choices: tuple[str, ...] = ()

    def read(self, value: Any) -> Value:
        """Value from a text of the command line, or from a value of the argument's kind.

        Raises:
            ConfigError: the value is not of the kind, or not among the choices.
        """
        where = f"argument '{self.name}'"
        if value is None or (
            value == "" and self.default is None and not self.required
        ):
            return None
        if isinstance(value, str) and self.kind != "text":
            value = _plain(value)
        if self.kind == "flag":
            return read_flag(value, where, ConfigError)
        if self.kind == "integer":
            return read_integer(value, where, error=ConfigError)
        if self.kind == "number":
            return read_number(value, where, error=ConfigError)
        if self.choices:
            return read_choice(value, self.choices, where, ConfigError)
        return value if value == "" else read_text(value, where, ConfigError)


@dataclass(frozen=True)
class Process:
    """One process of a bringup, its parameters not yet filled in.

    Args:
        name: of the process in logs and in `processes.json`.
        executable: console script.
        parameters: ROS parameters; `{argument}` stands for an argument.
        when: argument that must be true for the process to run; empty: it always runs.
        respawn: start it again when it fails; never for what moves the robot.
        max_restarts: restarts in a row before it is given up.
        settle_s: wait before it is asked to stop, after those listed below it have ended [s].
        stop_timeout_s: time it has to end when asked, before it is killed [s].
    """

    name: str
    executable: str
    parameters: Mapping[str, Any]
    when: str = ""
    respawn: bool = False
    max_restarts: int = 20
    settle_s: float = 0.0
    stop_timeout_s: float = 5.0


@dataclass(frozen=True)
class BringupFile:
    """A bringup whose arguments are described but not yet chosen."""

    name: str
    where: str
    description: str
    arguments: Mapping[str, Argument]
    environment: Mapping[str, str]
    processes: tuple[Process, ...]

    def choose(self, overrides: Mapping[str, Any]) -> dict[str, Value]:
        """Every argument with its value.

        Raises:
            ConfigError: an unknown argument (with the nearest name), a missing or an invalid one.
        """
        for name in overrides:
            if name not in self.arguments:
                raise ConfigError(
                    f"{self.where}: unknown argument '{name}'; {nearest(name, self.arguments)}"
                )
        values = {
            name: argument.read(overrides.get(name, argument.default))
            for name, argument in self.arguments.items()
        }
        for name, argument in self.arguments.items():
            if argument.required and values[name] is None:
                raise ConfigError(
                    f"{self.where}: argument '{name}' is missing ({argument.description}); "
                    f"add {name}:=..."
                )
        return values


def parse_bringup(path: Path) -> BringupFile:
    """Read and check a bringup file.

    Raises:
        ConfigError: unknown key (with the nearest name), value of another kind, two processes of
            one name, a placeholder or condition that is no argument, or respawned motion.
    """
    where = str(path)
    mapping = load_yaml(path, ConfigError)
    check_keys(
        mapping, ("description", "arguments", "processes"), ("environment",), where
    )
    arguments = {
        name: _argument(name, entry, f"{where}, argument '{name}'")
        for name, entry in _section(mapping, "arguments", where).items()
    }
    if "run_dir" not in arguments:
        raise ConfigError(f"{where}: argument 'run_dir' is missing; logs need a folder")
    entries = mapping["processes"]
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{where}, processes: expected a list, found {entries!r}")
    processes = tuple(
        _process(entry, arguments, f"{where}, processes[{index}]")
        for index, entry in enumerate(entries)
    )
    names = [process.name for process in processes]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"{where}: two processes are named '{name}'; names must differ"
            )
    environment = (
        _section(mapping, "environment", where) if "environment" in mapping else {}
    )
    return BringupFile(
        name=path.stem,
        where=where,
        description=read_text(
            mapping["description"], f"{where}, description", ConfigError
        ),
        arguments=arguments,
        environment={key: str(value) for key, value in environment.items()},
        processes=processes,
    )


def fill(value: Any, arguments: Mapping[str, Value]) -> Any:
    """Value of a parameter: `"{run_dir}/spool.sqlite"` with the argument put in.

    A value that is one placeholder keeps the argument's type; None means: leave the parameter out.
    """
    if not isinstance(value, str):
        return value
    whole = PLACEHOLDER.fullmatch(value)
    if whole:
        return arguments[whole[1]]
    return PLACEHOLDER.sub(lambda match: str(arguments[match[1]]), value)


def _plain(text: str) -> Any:
    """Flag or number written as text; other texts as they are, for the reader to refuse."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _section(mapping: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    section = mapping[key]
    if not isinstance(section, Mapping):
        raise ConfigError(f"{where}, {key}: expected a mapping, found {section!r}")
    return section


def _argument(name: str, entry: Any, where: str) -> Argument:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: expected a mapping, found {entry!r}")
    check_keys(
        entry, ("description",), ("kind", "default", "required", "choices"), where
    )
    default = entry.get("default")
    natural = {bool: "flag", int: "integer", float: "number"}.get(type(default), "text")
    argument = Argument(
        name=name,
        description=read_text(
            entry["description"], f"{where}, description", ConfigError
        ),
        kind=read_choice(
            entry.get("kind", natural), KINDS, f"{where}, kind", ConfigError
        ),
        default=default,
        required=read_flag(
            entry.get("required", False), f"{where}, required", ConfigError
        ),
        choices=tuple(entry.get("choices", ())),
    )
    argument.read(default)
    return argument


def _process(entry: Any, arguments: Mapping[str, Argument], where: str) -> Process:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: expected a mapping, found {entry!r}")
    optional = (
        "parameters",
        "when",
        "respawn",
        "max_restarts",
        "settle_s",
        "stop_timeout_s",
    )
    check_keys(entry, ("name", "executable"), optional, where)
    parameters = _section({"parameters": {}, **entry}, "parameters", where)
    used = [
        m
        for v in parameters.values()
        if isinstance(v, str)
        for m in PLACEHOLDER.findall(v)
    ]
    for name in [*used, *([entry["when"]] if "when" in entry else [])]:
        if name not in arguments:
            raise ConfigError(
                f"{where}: unknown argument '{name}'; {nearest(name, arguments)}"
            )
    process = Process(
        name=read_text(entry["name"], f"{where}, name", ConfigError),
        executable=read_text(entry["executable"], f"{where}, executable", ConfigError),
        parameters=parameters,
        when=entry.get("when", ""),
        respawn=read_flag(
            entry.get("respawn", False), f"{where}, respawn", ConfigError
        ),
        max_restarts=read_integer(
            entry.get("max_restarts", 20), f"{where}, max_restarts", error=ConfigError
        ),
        settle_s=read_number(
            entry.get("settle_s", 0.0), f"{where}, settle_s", error=ConfigError
        ),
        stop_timeout_s=read_number(
            entry.get("stop_timeout_s", 5.0),
            f"{where}, stop_timeout_s",
            error=ConfigError,
        ),
    )
    if process.respawn and Path(process.executable).name in MOTION:
        raise ConfigError(
            f"{where}: {process.executable} moves the robot and is never restarted by itself; "
            "remove respawn"
        )
    return process
