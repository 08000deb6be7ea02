# SPDX-License-Identifier: Apache-2.0
"""The humanoid of OGBench's mazes (the DeepMind Control Suite's)."""

from __future__ import annotations

from typing import Any, Final

from sim.walker import XYZW, Walker
from sim.world import Sensors, Values

# Torque at action 1 [Nm], the gears of the motors in their order.
_TRUNK: Final = (40.0, 40.0, 40.0)  # abdomen y, z, x
_LEG: Final = (40.0, 40.0, 120.0, 80.0, 20.0, 20.0)  # hip x, z, y, knee, ankle x, y
_ARM: Final = (20.0, 20.0, 40.0)  # shoulder 1, 2, elbow
TORQUE_NM: Final = (*_TRUNK, *_LEG, *_LEG, *_ARM, *_ARM)
WATCHDOG_S: Final = 0.1  # the motors go limp when no torque came for this long
EXTREMITIES: Final = ("left_hand", "left_foot", "right_hand", "right_foot")


def sensors(environment: Any) -> Sensors:
    """Odometry, velocities, joint states, head and extremities.

    Topics: `odom` (pose of the torso in the maze [m, xyzw]; twist in the torso's frame, as Odometry
    has it [m/s, rad/s]), `velocity` (twist of the torso in the maze's frame), `com_velocity` (of the
    whole body's centre of mass, in the maze's frame [m/s]), `joint_states` [rad, rad/s],
    `head_pose` (in the maze [m]), `left_hand_pose`, `left_foot_pose`, `right_hand_pose` and
    `right_foot_pose` (in the torso's frame [m]).
    """
    data = environment.data
    torso = data.body("torso")
    frame = torso.xmat.reshape(3, 3)  # columns: the torso's axes in the maze
    values: Sensors = {
        "odom": {
            "pose.pose.position": torso.xpos.copy(),
            "pose.pose.orientation": torso.xquat[XYZW],
            "twist.twist.linear": data.qvel[:3] @ frame,
            "twist.twist.angular": data.qvel[3:6].copy(),
        },
        "velocity": {
            "twist.linear": data.qvel[:3].copy(),
            "twist.angular": frame @ data.qvel[3:6],
        },
        "com_velocity": {
            "twist.linear": data.sensor("torso_subtreelinvel").data.copy()
        },
        "joint_states": {
            "position": data.qpos[7:].copy(),
            "velocity": data.qvel[6:].copy(),
        },
        "head_pose": {"pose.position": data.body("head").xpos.copy()},
    }
    for name in EXTREMITIES:
        offset = data.body(name).xpos - torso.xpos
        values[f"{name}_pose"] = {"pose.position": offset @ frame}
    return values


def _has_fallen(_qpos: Values) -> bool:
    """Never: it can get up, and an episode begins with it lying in any position."""
    return False


HUMANOID: Final = Walker(TORQUE_NM, WATCHDOG_S, sensors, _has_fallen)
