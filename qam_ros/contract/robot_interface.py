# SPDX-License-Identifier: Apache-2.0
"""The robot interface: all blocks of a robot, its two hashes, and mismatches explained in words."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final, Literal

from qam_ros.contract.blocks import ActionBlock, ObservationBlock
from qam_ros.contract.errors import InterfaceError, nearest
from qam_ros.contract.fields import quantity

INTERFACE_VERSION: Final = 1

SafeAction = Literal["hold_position", "zero_velocity"]


@dataclass(frozen=True)
class RobotInterface:
    """Which numbers an observation and an action of a robot are made of.

    Args:
        format_version: version of this format.
        robot: robot type.
        control_period_s: time between two actions [s].
        observation: ordered observation blocks.
        action: ordered action blocks.
        safe_action: what the guard does after a stop.
        downstream_watchdog: what stops the robot when the guard itself dies, in words, or None.
    """

    format_version: int
    robot: str
    control_period_s: float
    observation: tuple[ObservationBlock, ...]
    action: tuple[ActionBlock, ...]
    safe_action: SafeAction
    downstream_watchdog: str | None

    @cached_property
    def observation_size(self) -> int:
        """O, number of values of an observation."""
        return sum(block.size for block in self.observation)

    @cached_property
    def action_size(self) -> int:
        """A, number of values of an action."""
        return sum(block.size for block in self.action)

    @cached_property
    def observation_slices(self) -> dict[str, slice]:
        """Where each observation block lies in the observation."""
        return _slices(self.observation)

    @cached_property
    def action_slices(self) -> dict[str, slice]:
        """Where each action block lies in the action."""
        return _slices(self.action)

    @cached_property
    def semantic_hash(self) -> str:
        """Sha256 (hex) of what the numbers mean; datasets, policies and robots must agree on it."""
        return _digest(semantics(self))

    @cached_property
    def deployment_hash(self) -> str:
        """Sha256 (hex) of everything, topics, ages and limits included; recorded, not compared."""
        return _digest(asdict(self))

    def max_age_s(self, topic: str) -> float:
        """Oldest value of a topic that may be acted on [s]: the least of its blocks' maximum ages.

        Raises:
            InterfaceError: no observation block reads that topic.
        """
        ages = [
            block.max_age_s for block in self.observation if block.source.topic == topic
        ]
        if not ages:
            topics = {block.source.topic for block in self.observation}
            raise InterfaceError(
                f"robot '{self.robot}': no observation block reads topic '{topic}'; "
                f"{nearest(topic, topics)}",
                topic=topic,
            )
        return min(ages)


def semantics(interface: RobotInterface) -> dict[str, Any]:
    """What the numbers mean, without where they travel or how they are limited.

    A message type may change (Twist or TwistStamped) but not the quantity that its field measures.
    """
    observation = [
        {
            "name": block.name,
            "elements": list(block.elements),
            "unit": block.unit,
            "frame": block.frame,
            "quantity": quantity(block.source.field),
            "joints": list(block.source.joints),
            "transform": block.transform,
            "offset": list(block.offset),
            "scale": list(block.scale),
        }
        for block in interface.observation
    ]
    action = [
        {
            "name": block.name,
            "elements": list(block.elements),
            "unit": block.unit,
            "frame": block.frame,
            "quantity": quantity(block.target.field),
            "joints": list(block.target.joints),
            "transform": block.transform,
            "mode": block.mode,
            "offset": list(block.offset),
            "scale": list(block.scale),
            "measured": None
            if block.measured is None
            else quantity(block.measured.field),
            "measured_transform": block.measured_transform,
            "wrap": block.wrap,
        }
        for block in interface.action
    ]
    return {
        "robot": interface.robot,
        "control_period_s": interface.control_period_s,
        "observation": observation,
        "action": action,
    }


def explain_mismatch(a: RobotInterface, b: RobotInterface) -> str:
    """Every semantic difference between two interfaces, in words; empty when there is none.

    Args:
        a: the interface that is expected, e.g. the artifact's.
        b: the interface that was found, e.g. the robot's.
    """
    expected, found = semantics(a), semantics(b)
    words = [
        f"{key} is {expected[key]} against {found[key]}"
        for key in ("robot", "control_period_s")
        if expected[key] != found[key]
    ]
    for kind in ("observation", "action"):
        words += _explain_blocks(kind, expected[kind], found[kind])
    return "; ".join(words)


def check_same_semantics(
    expected: RobotInterface, found: RobotInterface, where: str
) -> None:
    """Refuse to go on with an interface whose numbers mean something else.

    Args:
        expected: the interface that data or policy were made for.
        found: the interface at hand.
        where: what is being read or started, for the message.

    Raises:
        InterfaceError: with every difference in words.
    """
    if expected.semantic_hash != found.semantic_hash:
        raise InterfaceError(
            f"{where}: made for another robot interface (expected against found): "
            f"{explain_mismatch(expected, found)}; use the interface it was made with, "
            "or make it again for this one",
            expected=expected.semantic_hash,
            found=found.semantic_hash,
        )


def _slices(
    blocks: tuple[ObservationBlock, ...] | tuple[ActionBlock, ...],
) -> dict[str, slice]:
    slices, start = {}, 0
    for block in blocks:
        slices[block.name] = slice(start, start + block.size)
        start += block.size
    return slices


def _digest(mapping: Mapping[str, Any]) -> str:
    text = json.dumps(
        _canonical(mapping),
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
        ensure_ascii=True,
    )
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _canonical(value: Any) -> Any:
    """Make -0.0 and 0.0, tuples and lists, infinities and their names the same thing."""
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, float):
        return value + 0.0 if math.isfinite(value) else str(value)
    return value


def _explain_blocks(
    kind: str, expected: list[dict[str, Any]], found: list[dict[str, Any]]
) -> list[str]:
    names_a = [block["name"] for block in expected]
    names_b = [block["name"] for block in found]
    if names_a != names_b:
        if sorted(names_a) == sorted(names_b):
            return [f"{kind} blocks come in another order: {names_a} against {names_b}"]
        missing = [name for name in names_a if name not in names_b]
        extra = [name for name in names_b if name not in names_a]
        return [f"{kind} blocks differ: missing {missing}, unexpected {extra}"]
    return [
        f"{kind} block '{a['name']}': {key} is {a[key]} against {b[key]}"
        for a, b in zip(expected, found, strict=True)
        for key in a
        if a[key] != b[key]
    ]
