# SPDX-License-Identifier: Apache-2.0
"""Which field of which topic of a deployment is which value of a world.

A world names its topics and fields as the plain robot interface does; an overlay may move a topic
or change the message type (TwistStamped to Twist). Blocks keep their names, so they tell the pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from qam_ros.contract.blocks import Source
from qam_ros.contract.errors import InterfaceError
from qam_ros.contract.interface import RobotInterface
from sim.world import Commands, Sensors, Values, World

Key = tuple[str, str]
Pairs = dict[str, dict[str, Key]]
"""topic of the deployment -> its field -> (topic, field) of the world."""


class Wiring:
    """Translation between a world and a deployed robot interface.

    Args:
        plain: the robot interface the world was made for.
        deployed: the same with its overlay.

    Raises:
        InterfaceError: the two are not the same robot.
    """

    def __init__(self, plain: RobotInterface, deployed: RobotInterface) -> None:
        if plain.semantic_hash != deployed.semantic_hash:
            raise InterfaceError(
                f"the world speaks for robot '{plain.robot}', the graph for '{deployed.robot}'; "
                "give the plant the same robot as the other nodes"
            )
        self.sensors = _pairs(
            [
                *_matching(plain.observation, deployed.observation, "source"),
                *_matching(plain.action, deployed.action, "measured"),
            ]
        )
        self.commands = _pairs(_matching(plain.action, deployed.action, "target"))

    def check(self, world: World) -> None:
        """Refuse a world that does not fit the interface.

        The world must have been reset.

        Raises:
            InterfaceError: a sensor the interface reads is missing, or the control periods differ.
        """
        found = world.sensors()
        for fields in self.sensors.values():
            for topic, field in fields.values():
                if field not in found.get(topic, {}):
                    there = sorted(f"{t}/{f}" for t in found for f in found[t])
                    raise InterfaceError(
                        f"world '{world.name}' has no sensor {topic}/{field}; it has "
                        f"{', '.join(there)}; choose a world that fits the robot"
                    )

    def outgoing(self, sensors: Sensors) -> Sensors:
        """Sensor values of the world under the deployment's topics and fields."""
        return {
            topic: {field: sensors[t][f] for field, (t, f) in fields.items()}
            for topic, fields in self.sensors.items()
        }

    def incoming(
        self, topic: str, fields: Mapping[str, NDArray[np.float64]]
    ) -> Commands:
        """A command of the deployment under the world's topic and fields."""
        commands: dict[str, dict[str, Values]] = {}
        for field, (world_topic, world_field) in self.commands[topic].items():
            commands.setdefault(world_topic, {})[world_field] = fields[field]
        return commands


def _matching(
    plain: Iterable[object], deployed: Iterable[object], attribute: str
) -> list[tuple[Source, Source]]:
    """Sources of equal blocks: (deployed, plain); blocks without one are left out."""
    pairs = []
    for one, other in zip(plain, deployed, strict=True):
        source, target = getattr(one, attribute), getattr(other, attribute)
        if source is not None and target is not None:
            pairs.append((target, source))
    return pairs


def _pairs(sources: Iterable[tuple[Source, Source]]) -> Pairs:
    pairs: Pairs = {}
    for deployed, plain in sources:
        pairs.setdefault(deployed.topic, {})[deployed.field] = plain.key
    return pairs
