# SPDX-License-Identifier: Apache-2.0
"""Plays single evaluation episodes: one world, one policy, the robot's own software, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qam_ros.contract.artifact import read_artifact
from qam_ros.contract.errors import ConfigError
from qam_ros.contract.interface import (
    RobotInterface,
    check_same_semantics,
    load_interface,
)
from qam_ros.runtime.guard_config import guard_config
from qam_ros.runtime.guard_core import GuardCore
from qam_ros.runtime.policy import PolicyCore
from qam_ros.runtime.sampler import OnnxSampler, verify
from qam_train.loops.episode import SimulatedRobot
from sim.plant import EpisodeRecord, Plant
from sim.seeding import SeedStream
from sim.world import World
from sim.worlds import make_world, split_name, world_info

_START_NS = 1_000_000_000
_SESSION = bytes(16)


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated.

    Args:
        artifact: policy artifact.
        world: name of the world, e.g. cube-single.
        task: 1..5; None takes the one of the name, else 1.
        seed: of the episodes, >= 0.
        overlay: overlay of a deployment; None: the limits of the artifact's interface.
        max_episode_steps: truncate after so many steps; 0 takes the world's own limit.
    """

    artifact: Path
    world: str
    task: int | None = None
    seed: int = 0
    overlay: str | Path | None = None
    max_episode_steps: int = 0


class Evaluator:
    """One world and one policy; plays episodes by index.

    Args:
        config: what is evaluated.
        world: the world to play in; None makes it.

    Raises:
        QamError: the artifact cannot be used, or the world is another robot's.
    """

    def __init__(self, config: EvaluationConfig, world: World | None = None) -> None:
        self._config = config
        self._artifact = read_artifact(config.artifact)
        self._interface = deployment_interface(self._artifact.interface, config.overlay)
        check_world(config.world, self._interface)
        self._sampler = OnnxSampler(self._artifact)
        verify(self._sampler, self._artifact)
        self._world = world or make_world(config.world, config.task)
        self._guard_config = guard_config(self._interface)

    def play(self, index: int) -> EpisodeRecord:
        """Play the episode with an index; all that it depends on is made anew."""
        noise = np.random.SeedSequence([self._config.seed, index, 1])
        plant = Plant(
            self._world,
            self._config.seed,
            max_episode_steps=self._config.max_episode_steps,
            stream=SeedStream.EVALUATION,
            first_episode=index,
        )
        policy = PolicyCore(
            self._artifact,
            self._sampler,
            int(noise.generate_state(1)[0]),
            interface=self._interface,
            session=_SESSION,
        )
        guard = GuardCore(self._guard_config, session=_SESSION)
        return SimulatedRobot(plant, policy, guard).episode(_START_NS)


def check_world(world: str, interface: RobotInterface) -> None:
    """Refuse a world of another robot.

    Raises:
        ConfigError: names both robots.
    """
    name, _ = split_name(world)
    robot = world_info(name).robot
    if robot != interface.robot:
        raise ConfigError(
            f"world '{world}' has robot '{robot or 'unknown'}', the policy is "
            f"of robot '{interface.robot}'; choose a world of that robot"
        )


def deployment_interface(
    interface: RobotInterface, overlay: str | Path | None
) -> RobotInterface:
    """The policy's robot with a deployment's limits and topics, as its nodes load it."""
    if overlay is None:
        return interface
    deployed = load_interface(interface.robot, overlay)
    check_same_semantics(interface, deployed, f"overlay {overlay}")
    return deployed
