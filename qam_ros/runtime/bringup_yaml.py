# SPDX-License-Identifier: Apache-2.0
"""Reading `config/bringup/*.yaml`. Format: docs/formats/bringup.md."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
from qam_ros.runtime.bringup_file import (
    PLACEHOLDER,
    Argument,
    BringupFile,
    Derived,
    Process,
)

KINDS: Final = ("text", "flag", "integer", "number")
MOTION: Final = ("guard_node", "plant_node")


def parse_bringup(path: Path) -> BringupFile:
    """Read and check a bringup file.

    Raises:
        ConfigError: unknown key (with the nearest name), value of another kind, two processes of
            one name, a placeholder or condition that is no argument, or respawned motion.
    """
    where = str(path)
    mapping = load_yaml(path, ConfigError)
    required = ("description", "arguments", "processes")
    check_keys(mapping, required, ("derived", "environment"), where)
    arguments = {
        name: _argument(name, entry, f"{where}, argument '{name}'")
        for name, entry in _section(mapping, "arguments", where).items()
    }
    if "run_dir" not in arguments:
        raise ConfigError(f"{where}: argument 'run_dir' is missing; logs need a folder")
    derived = {
        name: _derived(entry, arguments, f"{where}, derived '{name}'")
        for name, entry in _section(mapping, "derived", where).items()
    }
    known = [*arguments, *derived]
    entries = mapping["processes"]
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{where}, processes: expected a list, found {entries!r}")
    processes = tuple(
        _process(entry, known, f"{where}, processes[{index}]")
        for index, entry in enumerate(entries)
    )
    names = [process.name for process in processes]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"{where}: two processes are named '{name}'; names must differ"
            )
    environment = _section(mapping, "environment", where)
    return BringupFile(
        name=path.stem,
        where=where,
        description=read_text(
            mapping["description"], f"{where}, description", ConfigError
        ),
        arguments=arguments,
        derived=derived,
        environment={key: str(value) for key, value in environment.items()},
        processes=processes,
    )


def _section(mapping: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    section = mapping.get(key, {})
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


def _derived(entry: Any, arguments: Mapping[str, Argument], where: str) -> Derived:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: expected a mapping, found {entry!r}")
    check_keys(entry, ("of", "values"), (), where)
    values = _section(entry, "values", where)
    choices = arguments[entry["of"]].choices if entry["of"] in arguments else ()
    if not choices or set(values) != set(choices):
        raise ConfigError(
            f"{where}: expected a value for each choice of an argument that has choices, found "
            f"{entry['of']!r}: {sorted(values)}"
        )
    return Derived(entry["of"], values)


def _process(entry: Any, known: Collection[str], where: str) -> Process:
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
    parameters = _section(entry, "parameters", where)
    used = [
        m
        for v in parameters.values()
        if isinstance(v, str)
        for m in PLACEHOLDER.findall(v)
    ]
    for name in [*used, *([entry["when"]] if "when" in entry else [])]:
        if name not in known:
            raise ConfigError(
                f"{where}: unknown argument '{name}'; {nearest(name, known)}"
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
