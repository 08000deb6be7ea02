# SPDX-License-Identifier: Apache-2.0
"""Settings of the demo (`config/demo.yaml`); how each stage's own settings follow from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from qam_ros.contract.errors import ConfigError
from qam_train.learner_config import LearnerConfig
from qam_train.offline_config import OfflineConfig


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
