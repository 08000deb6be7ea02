# SPDX-License-Identifier: Apache-2.0
"""A walking robot in OGBench's mazes, driven by joint torques."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qam_ros.contract.errors import check_shape
from sim.seeding import global_numpy_seed
from sim.simulators import environment_class, quiet_simulators
from sim.world import Commands, Sensors, StepResult, Values

XYZW: Final = np.array([1, 2, 3, 0])  # of MuJoCo's quaternions, which are w, x, y, z


@dataclass(frozen=True)
class Walker:
    """What one walking robot does its own way.

    Attributes:
        torque_nm: torque of each motor at action 1, (A,) [Nm]: the gears of the model.
        watchdog_s: the motors go limp when no torque came for this long.
        sensors: environment -> raw sensor values of its present state.
        fallen: qpos (nq,) -> whether it lies where it cannot get up.
    """

    torque_nm: tuple[float, ...]
    watchdog_s: float
    sensors: Callable[[Any], Sensors]
    fallen: Callable[[Values], bool]


class WalkerWorld:
    """A maze with a walking robot: its sensors out, joint torques in.

    Args:
        name: name of the world, e.g. `antmaze-large`.
        task: 1..5.
        walker: the robot that OGBench put into this world.
    """

    def __init__(self, name: str, task: int, walker: Walker) -> None:
        self.name = name
        self.task = task
        self._walker = walker
        self._torque_nm: Values = np.array(walker.torque_nm)
        constructor, arguments, self.max_episode_steps = environment_class(
            f"{name}-singletask-task{task}-v0"
        )
        with quiet_simulators():
            self._env = constructor(**arguments)
        self.control_period_s = float(
            self._env.model.opt.timestep * self._env.frame_skip
        )
        self._command: Values = np.zeros_like(self._torque_nm)
        self._command_age_s = 0.0
        self._action: NDArray[np.floating[Any]] | None = None
        self._steps = 0

    @property
    def environment(self) -> Any:
        """The OGBench environment."""
        return self._env

    def reset(self, seed: int) -> None:
        """Start an episode at the task's start with the usual noise, motors limp."""
        with global_numpy_seed(seed):
            self._env.action_space.seed(seed)
            self._env.reset(seed=seed)
        self._command = np.zeros_like(self._torque_nm)
        self._command_age_s = 0.0
        self._action = None
        self._steps = 0

    def sensors(self) -> Sensors:
        """The robot's sensors, see `sim.ant` and `sim.humanoid`."""
        return self._walker.sensors(self._env)

    def apply(self, commands: Commands) -> None:
        """Take over `joint_effort` (effort) [Nm], in the order of the motors, bounded to what they give.

        Raises:
            QamError: the field has the wrong number of values.
        """
        if "joint_effort" not in commands:
            return
        effort = commands["joint_effort"]["effort"]
        check_shape("effort", effort, self._torque_nm.shape, "joint_effort")
        self._command = np.clip(effort, -self._torque_nm, self._torque_nm)
        self._command_age_s = 0.0
        self._action = None

    def act(self, action: NDArray[np.floating[Any]]) -> None:
        """Take over a normalised action (A,)."""
        check_shape("action", action, self._torque_nm.shape, self.name)
        self._action = np.asarray(action)

    def step(self) -> StepResult:
        """Advance by one control period; a torque older than the watchdog counts as zero."""
        if self._action is not None:
            action, self._action = self._action, None
        elif self._command_age_s < self._walker.watchdog_s:
            action = self._command / self._torque_nm
        else:
            action = np.zeros_like(self._torque_nm)
        self._command_age_s += self.control_period_s
        _, reward, terminated, _, info = self._env.step(action)
        self._steps += 1
        truncated = not terminated and self._steps >= self.max_episode_steps
        return StepResult(
            reward=float(reward),
            terminated=bool(terminated),
            truncated=truncated,
            success=bool(info["success"]),
            fallen=self._walker.fallen(self._env.data.qpos),
        )

    def observation(self) -> Values:
        """OGBench's observation (O,)."""
        return np.asarray(self._env.get_ob(), dtype=np.float64)

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Generalised position and velocity: qpos (nq,), qvel (nv,)."""
        return {"qpos": self._env.data.qpos.copy(), "qvel": self._env.data.qvel.copy()}
