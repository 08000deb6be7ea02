# SPDX-License-Identifier: Apache-2.0
"""The four-legged ant in OGBench's mazes, driven by joint torques."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qam_ros.contract.errors import check_shape
from sim.ant_frame import ACTIONS, rotation, upright
from sim.seeding import global_numpy_seed
from sim.worlds import (
    Commands,
    Sensors,
    StepResult,
    Values,
    environment_class,
    quiet_simulators,
)

TORQUE_NM: Final = 30.0  # at action 1: the gear of every motor
WATCHDOG_S: Final = 0.5  # the motors go limp when no torque came for this long
FALLEN: Final = 0.0  # upright part of the torso's axis: it lies on its side or worse
XYZW: Final = np.array([4, 5, 6, 3])  # in qpos, where it is w, x, y, z


def fallen(qpos: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Whether ants (N, 15) lie on their side or back, from where they cannot get up."""
    return np.asarray(upright(np.asarray(qpos, dtype=np.float64)) < FALLEN)


class AntWorld:
    """An ant maze: Odometry, velocity and JointState out, joint torques in.

    Args:
        name: name of the world, e.g. `antmaze-large`.
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
        self._command: Values = np.zeros(ACTIONS)
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
        self._command = np.zeros(ACTIONS)
        self._command_age_s = 0.0
        self._action = None
        self._steps = 0

    def sensors(self) -> Sensors:
        """Odometry, velocity in the frame of the maze, joint states.

        Topics: `odom` (pose in the maze [m, xyzw]; twist in the torso's frame, as Odometry has it
        [m/s, rad/s]), `velocity` (twist in the maze's frame), `joint_states` (hip and ankle of
        each leg [rad, rad/s]).
        """
        qpos, qvel = self._env.data.qpos, self._env.data.qvel
        torso = rotation(qpos[None, 3:7])[0]
        return {
            "odom": {
                "pose.pose.position": qpos[:3].copy(),
                "pose.pose.orientation": qpos[XYZW],
                "twist.twist.linear": torso.T @ qvel[:3],
                "twist.twist.angular": qvel[3:6].copy(),
            },
            "velocity": {
                "twist.linear": qvel[:3].copy(),
                "twist.angular": torso @ qvel[3:6],
            },
            "joint_states": {"position": qpos[7:].copy(), "velocity": qvel[6:].copy()},
        }

    def apply(self, commands: Commands) -> None:
        """Take over `joint_effort` (effort) [Nm], in the order of the motors, bounded by +-30 Nm.

        Raises:
            QamError: the field has the wrong number of values.
        """
        if "joint_effort" not in commands:
            return
        effort = commands["joint_effort"]["effort"]
        check_shape("effort", effort, (ACTIONS,), "joint_effort")
        self._command = np.clip(effort, -TORQUE_NM, TORQUE_NM)
        self._command_age_s = 0.0
        self._action = None

    def act(self, action: NDArray[np.floating[Any]]) -> None:
        """Take over a normalised action (8,)."""
        check_shape("action", action, (ACTIONS,), self.name)
        self._action = np.asarray(action)

    def step(self) -> StepResult:
        """Advance by one control period; a torque older than the watchdog counts as zero."""
        if self._action is not None:
            action, self._action = self._action, None
        elif self._command_age_s < WATCHDOG_S:
            action = self._command / TORQUE_NM
        else:
            action = np.zeros(ACTIONS)
        self._command_age_s += self.control_period_s
        _, reward, terminated, _, info = self._env.step(action)
        self._steps += 1
        truncated = not terminated and self._steps >= self.max_episode_steps
        return StepResult(
            reward=float(reward),
            terminated=bool(terminated),
            truncated=truncated,
            success=bool(info["success"]),
            fallen=bool(fallen(self._env.data.qpos[None])[0]),
        )

    def observation(self) -> Values:
        """OGBench's observation (29,): qpos (15,) and qvel (14,)."""
        return np.asarray(self._env.get_ob(), dtype=np.float64)

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Generalised position and velocity: qpos (15,), qvel (14,)."""
        return {"qpos": self._env.data.qpos.copy(), "qvel": self._env.data.qvel.copy()}
