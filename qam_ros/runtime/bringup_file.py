# SPDX-License-Identifier: Apache-2.0
"""A bringup as written: its arguments, what follows from them, and its processes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qam_ros.contract.errors import ConfigError, nearest
from qam_ros.contract.reading import (
    read_choice,
    read_flag,
    read_integer,
    read_number,
    read_text,
)

Value = str | bool | int | float | None

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
class Derived:
    """A value that follows from an argument: `{of: pace, values: {lockstep: true, ...}}`.

    Args:
        of: argument with choices.
        values: value for each of its choices.
    """

    of: str
    values: Mapping[str, Value]


@dataclass(frozen=True)
class Process:
    """One process of a bringup, its parameters not yet filled in.

    Args:
        name: of the node, of its log and in `processes.json`.
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
    derived: Mapping[str, Derived]
    environment: Mapping[str, str]
    processes: tuple[Process, ...]

    def choose(self, overrides: Mapping[str, Any]) -> dict[str, Value]:
        """Every argument and derived value.

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
        for name, derived in self.derived.items():
            values[name] = derived.values[str(values[derived.of])]
        return values


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
