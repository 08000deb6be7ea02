# SPDX-License-Identifier: Apache-2.0
"""Reading values out of YAML: one mapping a file, no aliases, no duplicate keys, checked types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from qam_ros.contract.errors import InterfaceError, QamError, nearest

MAX_YAML_BYTES: Final = 4 * 1024 * 1024
_UNREADABLE: Final = (
    *(yaml.YAMLError, RecursionError),
    # What the constructors raise on values that only look like dates, numbers or flags.
    *(ValueError, KeyError, TypeError, AttributeError, OverflowError),
)


class _StrictLoader(yaml.SafeLoader):
    """Safe loader that refuses aliases (they can blow up) and keys given twice."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases are not allowed", problem_mark=self.get_mark()
            )
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{key.value}' is given twice",
                    problem_mark=key.start_mark,
                )
            seen.add(str(key.value))
        return node


class _PlainDumper(yaml.SafeDumper):
    """Safe dumper that writes every value in full."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def parse_yaml(text: str, where: str, error: type[QamError]) -> dict[str, Any]:
    """Parse a YAML text that must hold one mapping.

    Args:
        text: the text.
        where: file, for the message.
        error: class to raise.

    Raises:
        QamError: (of class ``error``) not YAML, not a mapping, aliases, or a key given twice.
    """
    if len(text) > MAX_YAML_BYTES:
        raise error(
            f"{where}: {len(text)} characters, at most {MAX_YAML_BYTES} are read"
        )
    try:
        loader = _StrictLoader(text)  # refuses control characters already
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except _UNREADABLE as problem:
        raise error(
            f"{where}: not valid YAML: {_describe(problem)}; the file may be truncated"
        ) from problem
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise error(
            f"{where}: expected a mapping of names, found {type(value).__name__}"
        )
    return value


def _describe(problem: Exception) -> str:
    """One line: place and problem."""
    if isinstance(problem, RecursionError):
        return "nested too deep"
    if not isinstance(problem, yaml.MarkedYAMLError):
        return str(problem)
    mark = problem.problem_mark
    place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    return f"{place}{problem.problem}"


def load_yaml(path: Path, error: type[QamError]) -> dict[str, Any]:
    """Read a YAML file that must hold one mapping.

    Raises:
        QamError: (of class ``error``) the file is missing, or as ``parse_yaml``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as problem:
        raise error(
            f"{path}: no such file; check the path", path=str(path)
        ) from problem
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{path}: cannot be read: {problem}", path=str(path)) from problem
    return parse_yaml(text, str(path), error)


def dump_yaml(mapping: Mapping[str, Any], where: str, error: type[QamError]) -> str:
    """YAML text of a mapping: keys in order, no aliases; ``parse_yaml`` reads it back.

    Raises:
        QamError: (of class ``error``) a value is not a plain Python one, e.g. a numpy number.
    """
    try:
        return _dump(mapping)
    except yaml.representer.RepresenterError as problem:
        raise error(
            f"{where}: YAML cannot hold {problem.args[-1]!r} ({type(problem.args[-1]).__name__}); "
            "convert it to a plain number, text, list or mapping"
        ) from problem


def _dump(mapping: Mapping[str, Any]) -> str:
    return yaml.dump(
        dict(mapping),
        Dumper=_PlainDumper,
        sort_keys=False,
        allow_unicode=True,
        width=100,
    )


def read_text(value: Any, where: str, error: type[QamError] = InterfaceError) -> str:
    """A string that is not empty."""
    if not isinstance(value, str) or not value:
        raise error(f"{where}: expected a text, found {value!r}")
    return value


def read_integer(
    value: Any, where: str, minimum: int = 0, error: type[QamError] = InterfaceError
) -> int:
    """An integer not below a minimum."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise error(
            f"{where}: expected a whole number of at least {minimum}, found {value!r}"
        )
    return value


def read_number(
    value: Any,
    where: str,
    *,
    infinite: bool = False,
    error: type[QamError] = InterfaceError,
) -> float:
    """A finite number, or with ``infinite`` also .inf."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = (
            " (YAML reads 1e-3 as a text, write 1.0e-3)"
            if isinstance(value, str)
            else ""
        )
        raise error(f"{where}: expected a number, found {value!r}{hint}")
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond the largest float
        number = math.nan
    if not math.isfinite(number) and not (infinite and number == math.inf):
        allowed = "a finite number or .inf" if infinite else "a finite number"
        raise error(f"{where}: expected {allowed}, found {number}")
    return number


def read_positive(
    value: Any, where: str, error: type[QamError] = InterfaceError
) -> float:
    """A finite number above 0."""
    number = read_number(value, where, error=error)
    if number <= 0.0:
        raise error(f"{where}: expected a number above 0, found {number}")
    return number


def read_flag(value: Any, where: str, error: type[QamError] = InterfaceError) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise error(f"{where}: expected true or false, found {value!r}")
    return value


def read_choice(
    value: Any,
    valid: tuple[str, ...],
    where: str,
    error: type[QamError] = InterfaceError,
) -> str:
    """One of the valid names."""
    if value not in valid:
        raise error(f"{where}: unknown value {value!r}; {nearest(str(value), valid)}")
    return str(value)


def read_names(
    value: Any, where: str, error: type[QamError] = InterfaceError
) -> tuple[str, ...]:
    """A list of distinct texts."""
    if not isinstance(value, list):
        raise error(f"{where}: expected a list of names, found {value!r}")
    names = tuple(
        read_text(item, f"{where}[{index}]", error) for index, item in enumerate(value)
    )
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise error(f"{where}: name '{name}' is given twice; names must differ")
        seen.add(name)
    return names


def read_numbers(
    value: Any,
    size: int,
    where: str,
    *,
    infinite: bool = False,
    error: type[QamError] = InterfaceError,
) -> tuple[float, ...]:
    """A list of ``size`` numbers; a single number stands for all of them."""
    items = value if isinstance(value, list) else [value] * size
    if len(items) != size:
        raise error(
            f"{where}: expected {size} numbers (one per element) or a single one, "
            f"found {len(items)}",
            expected=size,
            found=len(items),
        )
    return tuple(
        read_number(item, f"{where}[{index}]", infinite=infinite, error=error)
        for index, item in enumerate(items)
    )
