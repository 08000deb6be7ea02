# SPDX-License-Identifier: Apache-2.0
"""The in-process messages and the row layout mirror the message package field by field."""

from __future__ import annotations

import dataclasses
import re
from enum import IntEnum
from pathlib import Path

import pytest

from qam_ros.contract import messages
from qam_ros.contract.interface import load_interface
from qam_ros.contract.transition import (
    ActionSource,
    EpisodeKind,
    GuardMode,
    LimitBit,
    transition_dtype,
)

FOLDER = Path(__file__).parents[3] / "qam_msgs" / "msg"
FIELD = re.compile(r"^(\S+)\s+([a-z]\w*)$")
CONSTANT = re.compile(r"^\S+\s+([A-Z_]+)=(\d+)$")


def lines(name: str) -> list[str]:
    text = (FOLDER / f"{name}.msg").read_text(encoding="utf-8")
    return [
        line.split("#")[0].strip()
        for line in text.splitlines()
        if line.split("#")[0].strip()
    ]


def fields(name: str) -> list[str]:
    found = []
    for line in lines(name):
        match = FIELD.match(line)
        if match is None:
            continue
        kind, field = match.groups()
        if kind == "std_msgs/Header":
            field = "stamp_ns"
        elif kind == "builtin_interfaces/Time":
            field += "_ns"
        found.append(field)
    return found


NAMES = sorted(path.stem for path in FOLDER.glob("*.msg") if path.stem != "Transition")


@pytest.mark.parametrize("name", NAMES)
def test_dataclass_has_the_fields_of_the_message(name: str) -> None:
    kind = getattr(messages, name)
    assert [field.name for field in dataclasses.fields(kind)] == fields(name)


def test_every_message_file_was_found() -> None:
    assert len(NAMES) == 10


def test_row_layout_has_the_fields_of_the_transition_message() -> None:
    names = list(transition_dtype(load_interface("mobile_base")).names or ())
    message = fields("Transition")
    message.remove("robot")
    message[message.index("stamp_ns")] = "observation_stamp_ns"
    assert sorted(names) == sorted(message)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("EpisodeEvent", (EpisodeKind,)),
        ("GuardReport", (GuardMode, ActionSource, LimitBit)),
    ],
)
def test_constants_of_the_message_are_the_enumerations(
    name: str, kinds: tuple[type[IntEnum], ...]
) -> None:
    constants = {
        match.group(1): int(match.group(2))
        for line in lines(name)
        if (match := CONSTANT.match(line))
    }
    assert constants == {item.name: item.value for kind in kinds for item in kind}
