# SPDX-License-Identifier: Apache-2.0
"""Settings of the demo (`config/demo.yaml`); how each stage's own settings follow from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from qam_ros.contract.errors import ConfigError
from qam_train.agents.registry import find_method
from qam_train.config import MethodConfig, StageConfig
from qam_train.learner_config import LearnerConfig
from qam_train.offline_config import OfflineConfig, clone_settings
from qam_train.suite.protocol import load_protocol

SMALL_DOMAIN = "cube-single"


@dataclass(frozen=True)
class DataConfig:
    """Scripted episodes, of which only some attempts aim at the true goal.

    Args:
        rows: at least so many rows (whole episodes).
        goal_probability: share of the attempts that aim at the true goal.
        min_goal_distance_m: distance of the wrong aims to the goal [m].
        noise: of the scripted plans.
        segment_s: duration of one segment of a plan [s].
        max_steps: rows of an episode without success.
    """

    rows: int = 30_000
    goal_probability: float = 0.2
    min_goal_distance_m: float = 0.08
    noise: float = 0.1
    segment_s: float = 0.4
    max_steps: int = 194


@dataclass(frozen=True)
class RobotConfig:
    """The ROS graph of the demo.

    Args:
        start_timeout_s: longest time until the first executed row [s].
        stall_timeout_s: longest time without a new row or update before the run is given up [s].
        realtime_s: length of the real-time window [s].
        settle_s: real time left out at the beginning of the window [s].
    """

    start_timeout_s: float = 60.0
    stall_timeout_s: float = 60.0
    realtime_s: float = 25.0
    settle_s: float = 2.0


@dataclass(frozen=True)
class DemoConfig:
    """The whole demo.

    Args:
        seed: of everything: data, training, evaluation, worlds, policy noise.
        world: simulated world.
        task: its task, 1 to 5.
        workers: processes for data and evaluation.
        episodes: evaluation episodes of each policy.
        film: whether to draw an episode before and after.
        data: the recordings.
        offline: training on them; its seed is replaced by the demo's.
        base: cloning of the base it is compared with, for a method that clones no flow of its own.
        online: fine-tuning; its seed is replaced by the demo's.
        robot: the ROS graph.
    """

    seed: int = 0
    world: str = "cube-single"
    task: int = 1
    workers: int = 2
    episodes: int = 100
    film: bool = True
    data: DataConfig = field(default_factory=DataConfig)
    offline: OfflineConfig = field(default_factory=OfflineConfig)
    base: StageConfig = field(default_factory=StageConfig)
    online: LearnerConfig = field(default_factory=LearnerConfig)
    robot: RobotConfig = field(default_factory=RobotConfig)

    def __post_init__(self) -> None:
        for name in ("workers", "episodes"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name}: expected a positive number, got {getattr(self, name)}"
                )
        if self.seed < 0:
            raise ConfigError(f"seed: expected a number >= 0, got {self.seed}")

    def seeded(self, seed: int | None) -> DemoConfig:
        """The same demo with another seed (None: its own), handed on to the stages."""
        chosen = self.seed if seed is None else seed
        return dataclasses.replace(
            self,
            seed=chosen,
            offline=dataclasses.replace(self.offline, seed=chosen),
            online=dataclasses.replace(self.online, seed=chosen),
        )

    def trainings(self) -> dict[str, OfflineConfig]:
        """Trainings on the data by folder, the method's own last.

        A method that clones no flow gets a cloned base of its own, to be compared with.
        """
        if self.base.updates == 0:
            return {"offline": self.offline}
        clone = dataclasses.replace(
            self.offline,
            method="flow_bc",
            agent=clone_settings(self.offline.agent),
            behaviour=StageConfig(),
            offline=self.base,
        )
        return {"base": clone, "offline": self.offline}

    def with_method(self, name: str) -> DemoConfig:
        """The same demo with another method.

        Sizes and numbers that all methods have stay the demo's; what only some methods have, and
        the gradient clip, are those of the protocol `small`.

        Args:
            name: as in qam_train/agents/registry.py.

        Raises:
            ConfigError: unknown method; names the nearest.
        """
        method = find_method(name)
        if name == self.offline.method:
            return self
        known = {item.name for item in dataclasses.fields(method.config)}
        agent = self.offline.agent
        kept = [item.name for item in dataclasses.fields(agent) if item.name in known]
        own = self._small_settings(name)
        numbers = {key: getattr(agent, key) for key in kept if key not in own}
        clones = bool(method.agent.behaviour_nets)
        behaviour = self.offline.behaviour
        offline = dataclasses.replace(
            self.offline,
            method=name,
            agent=method.config(**numbers, **own),
            behaviour=behaviour if clones else StageConfig(),
        )
        base = StageConfig() if clones else behaviour
        return dataclasses.replace(self, offline=offline, base=base)

    def _small_settings(self, name: str) -> dict[str, Any]:
        """What the protocol `small` says of a method beyond the numbers every method has."""
        if name == "flow_bc":
            return {}
        protocol = load_protocol("small")
        agent = protocol.cell(name, SMALL_DOMAIN, 1, 0).agent
        shared = {item.name for item in dataclasses.fields(MethodConfig)} - {
            "clip_norm"
        }
        kept = {"flow_steps", "adjoint_batch"}
        return {
            item.name: getattr(agent, item.name)
            for item in dataclasses.fields(agent)
            if item.name not in shared | kept
        }
