# SPDX-License-Identifier: Apache-2.0
"""A planar base in OGBench's point mazes, driven by a velocity command."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qam_ros.contract.errors import check_shape
from sim.seeding import global_numpy_seed
from sim.simulators import environment_class, quiet_simulators
from sim.world import Commands, Sensors, StepResult, Values

MAX_SPEED_M_S = 2.0  # action 1: the environment moves 0.2 m in a step of 0.1 s
WATCHDOG_S = 0.5  # a base stops when no velocity command came for this long
IDENTITY_XYZW = (0.0, 0.0, 0.0, 1.0)


class PointWorld:
    """A point maze as a holonomic base: Odometry out, planar velocity in.

    Args:
        name: name of the world, e.g. `pointmaze-medium`.
        task: 1..5.
    """

    def __init__(self, name: str, task: int) -> None:
        self.name = name
        self.task = task
        constructor, arguments, self.max_episode_steps = environment_class(
            f"{name}-singletask-task{task}-v0"
        )
        with quiet_simulators():
            self._env = constructor(**arguments)
        self.control_period_s = float(
            self._env.model.opt.timestep * self._env.frame_skip
        )
        self._velocity = np.zeros(2)
        self._command: Values = np.zeros(2)
        self._command_age_s = 0.0
        self._action: NDArray[np.floating[Any]] | None = None
        self._steps = 0

    @property
    def environment(self) -> Any:
        """The OGBench environment."""
        return self._env

    def reset(self, seed: int) -> None:
        """Start an episode at rest, at the task's start with the usual noise."""
        with global_numpy_seed(seed):
            self._env.action_space.seed(seed)
            self._env.reset(seed=seed)
        self._velocity = np.zeros(2)
        self._command = np.zeros(2)
        self._command_age_s = 0.0
        self._action = None
        self._steps = 0

    def sensors(self) -> Sensors:
        """Odometry: position [m] in the frame of the maze, velocity over the last step [m/s]."""
        x, y = self._env.get_xy()
        return {
            "odom": {
                "pose.pose.position": np.array([x, y, 0.0]),
                "pose.pose.orientation": np.array(IDENTITY_XYZW),
                "twist.twist.linear": np.array([*self._velocity, 0.0]),
                "twist.twist.angular": np.zeros(3),
            }
        }

    def apply(self, commands: Commands) -> None:
        """Take over `cmd_vel` (twist.linear) [m/s], bounded by +-2 m/s on each axis.

        Raises:
            QamError: the field has the wrong number of values.
        """
        if "cmd_vel" not in commands:
            return
        linear = commands["cmd_vel"]["twist.linear"]
        check_shape("twist.linear", linear, (3,), "cmd_vel")
        self._command = np.clip(linear[:2], -MAX_SPEED_M_S, MAX_SPEED_M_S)
        self._command_age_s = 0.0
        self._action = None

    def act(self, action: NDArray[np.floating[Any]]) -> None:
        """Take over a normalised action (2,)."""
        check_shape("action", action, (2,), self.name)
        self._action = np.asarray(action)

    def step(self) -> StepResult:
        """Advance by one control period; a command older than the watchdog counts as zero."""
        if self._action is not None:
            action, self._action = self._action, None
        elif self._command_age_s < WATCHDOG_S:
            action = self._command / MAX_SPEED_M_S
        else:
            action = np.zeros(2)
        self._command_age_s += self.control_period_s
        before = self._env.get_xy()
        _, reward, terminated, _, info = self._env.step(action)
        self._velocity = (self._env.get_xy() - before) / self.control_period_s
        self._steps += 1
        truncated = not terminated and self._steps >= self.max_episode_steps
        return StepResult(
            float(reward), bool(terminated), truncated, bool(info["success"])
        )

    def observation(self) -> Values:
        """OGBench's observation (2,): position [m]."""
        return np.asarray(self._env.get_ob(), dtype=np.float64)

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Generalised position and velocity: qpos (2,), qvel (2,)."""
        return {"qpos": self._env.data.qpos.copy(), "qvel": self._env.data.qvel.copy()}
