# SPDX-License-Identifier: Apache-2.0
"""What a manipulation scene holds besides the robot, as sensors: cubes, buttons, drawer, window."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.world import Sensors, Values

FIXTURES = ("drawer_slide", "window_slide")


def object_sensors(environment: Any) -> Sensors:
    """Sensor values of everything that OGBench's observation of a scene tells.

    Topics: `object_pose` and, with several cubes, `object_1_pose` and so on (pose [m, xyzw]);
    `buttons` (position: depth [m], velocity [m/s]) and `button_lamps` (position: for each button the
    lamps off and on, of which one is 1, the other 0); `fixtures` (drawer and window: position [m],
    velocity [m/s]).

    Args:
        environment: OGBench's manipulation environment, after a reset.
    """
    data = environment.data
    sensors: Sensors = {}
    for index in range(getattr(environment, "_num_cubes", 0)):
        qpos = data.joint(f"object_joint_{index}").qpos
        sensors["object_pose" if index == 0 else f"object_{index}_pose"] = {
            "pose.position": qpos[:3].copy(),
            "pose.orientation": xyzw(qpos[3:7]),
        }
    count = getattr(environment, "_num_buttons", 0)
    if count:
        joints = [f"buttonbox_joint_{index}" for index in range(count)]
        sensors["buttons"] = _joint_state(data, joints)
        states = np.asarray(environment._cur_button_states, dtype=np.float64)
        lamps = np.stack([1.0 - states, states], axis=1)  # (n, 2): off, on
        sensors["button_lamps"] = {"position": lamps.ravel()}
    if hasattr(environment, "_drawer_site_id"):
        sensors["fixtures"] = _joint_state(data, FIXTURES)
    return sensors


def xyzw(wxyz: Values) -> Values:
    """Quaternion in the order of ROS messages from MuJoCo's: (4,) -> (4,)."""
    return wxyz[[1, 2, 3, 0]]


def _joint_state(data: Any, names: tuple[str, ...] | list[str]) -> dict[str, Values]:
    joints = [data.joint(name) for name in names]
    return {
        "position": np.array([joint.qpos[0] for joint in joints]),
        "velocity": np.array([joint.qvel[0] for joint in joints]),
    }
