# SPDX-License-Identifier: Apache-2.0
"""The four-legged ant of OGBench's mazes."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sim.ant_frame import ACTIONS, rotation, upright
from sim.walker import XYZW, Walker
from sim.world import Sensors, Values

TORQUE_NM: Final = 30.0  # at action 1: the gear of every motor
WATCHDOG_S: Final = 0.5  # the motors go limp when no torque came for this long
FALLEN: Final = 0.0  # upright part of the torso's axis: it lies on its side or worse


def fallen(qpos: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Whether ants (N, 15) lie on their side or back, from where they cannot get up."""
    return np.asarray(upright(np.asarray(qpos, dtype=np.float64)) < FALLEN)


def sensors(environment: Any) -> Sensors:
    """Odometry, velocity in the frame of the maze, joint states.

    Topics: `odom` (pose in the maze [m, xyzw]; twist in the torso's frame, as Odometry has it
    [m/s, rad/s]), `velocity` (twist in the maze's frame), `joint_states` (hip and ankle of
    each leg [rad, rad/s]).
    """
    qpos, qvel = environment.data.qpos, environment.data.qvel
    torso = rotation(qpos[None, 3:7])[0]
    return {
        "odom": {
            "pose.pose.position": qpos[:3].copy(),
            "pose.pose.orientation": qpos[3:7][XYZW],
            "twist.twist.linear": torso.T @ qvel[:3],
            "twist.twist.angular": qvel[3:6].copy(),
        },
        "velocity": {
            "twist.linear": qvel[:3].copy(),
            "twist.angular": torso @ qvel[3:6],
        },
        "joint_states": {"position": qpos[7:].copy(), "velocity": qvel[6:].copy()},
    }


def _has_fallen(qpos: Values) -> bool:
    return bool(fallen(qpos[None])[0])


ANT: Final = Walker((TORQUE_NM,) * ACTIONS, WATCHDOG_S, sensors, _has_fallen)
