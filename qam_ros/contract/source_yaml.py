# SPDX-License-Identifier: Apache-2.0
"""Reading and writing where a block's numbers come from or go to (YAML)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qam_ros.contract.blocks import Source
from qam_ros.contract.errors import InterfaceError, check_keys
from qam_ros.contract.fields import BY_JOINT, field_components
from qam_ros.contract.reading import read_names, read_text


def write_source(source: Source) -> dict[str, Any]:
    """Mapping of a source; ``read_source`` reads it back."""
    mapping: dict[str, Any] = {
        "topic": source.topic,
        "type": source.type,
        "field": source.field,
    }
    return {**mapping, "joints": list(source.joints)} if source.joints else mapping


def read_source(value: Any, where: str) -> Source:
    """Source from a mapping {topic, type, field, joints}.

    Raises:
        InterfaceError: unknown key, type or field, absolute topic, joints missing or superfluous.
    """
    if not isinstance(value, Mapping):
        raise InterfaceError(f"{where}: expected a mapping, found {value!r}")
    check_keys(value, ("topic", "type", "field"), ("joints",), where, InterfaceError)
    topic = read_text(value["topic"], f"{where}, topic")
    if topic.startswith(("/", "~")) or any(letter.isspace() for letter in topic):
        raise InterfaceError(
            f"{where}: topic '{topic}' must be relative (no '/', '~' in front, no blanks): "
            "the robot's namespace comes before it",
            topic=topic,
        )
    source = Source(
        topic=topic,
        type=read_text(value["type"], f"{where}, type"),
        field=read_text(value["field"], f"{where}, field"),
        joints=read_names(value.get("joints", []), f"{where}, joints"),
    )
    by_joint = field_components(source.type, source.field, where) == BY_JOINT
    if by_joint != bool(source.joints):
        wanted = (
            "needs its 'joints' by name"
            if by_joint
            else "has no joints; remove 'joints'"
        )
        raise InterfaceError(f"{where}: {source.type} {source.field} {wanted}")
    return source
