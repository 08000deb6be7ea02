# SPDX-License-Identifier: Apache-2.0
"""What a world is: a simulated robot that speaks in message fields, not in observation arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Sensors = dict[str, dict[str, Values]]
"""topic -> message field -> values, float64, exactly as the ROS messages carry them."""
Commands = dict[str, dict[str, Values]]
"""topic -> message field -> values of the commands: absolute targets or velocities."""

Mode = Literal["task", "data_collection"]


@dataclass(frozen=True)
class StepResult:
    """What one control step gave.

    OGBench's single-task worlds report reward, termination and success of the state *before* the
    action (`success_timing='pre'`): success arrives one control step late. `fallen` is of the state
    after it: the robot lies where it cannot get up, which ends an episode of data, not of a task.
    """

    reward: float
    terminated: bool
    truncated: bool
    success: bool
    fallen: bool = False


class World(Protocol):
    """A simulated robot and its surroundings, advanced one control period at a time."""

    name: str
    task: int
    control_period_s: float
    max_episode_steps: int

    def reset(self, seed: int) -> None:
        """Start an episode; the same seed gives the same episode, whatever was played before."""

    def sensors(self) -> Sensors:
        """Raw sensor values of the present state."""

    def apply(self, commands: Commands) -> None:
        """Take over targets; topics that are left out keep their last target."""

    def act(self, action: NDArray[np.floating[Any]]) -> None:
        """Take over a normalised action in [-1, 1], as the environment's own `step` reads it."""

    def step(self) -> StepResult:
        """Advance by one control period towards the present targets."""

    def observation(self) -> Values:
        """The environment's own observation (O,), for data and tests; never for the plant."""

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """State for recordings: qpos (nq,), qvel (nv,) and, where there are any, button_states."""

    @property
    def environment(self) -> Any:
        """The OGBench environment, for oracles, relabelling and rendering."""
