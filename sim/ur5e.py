# SPDX-License-Identifier: Apache-2.0
"""UR5e with a 2F-85 gripper in OGBench's manipulation scenes, driven by absolute targets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qam_ros.contract.errors import check_shape
from sim.objects import object_sensors, xyzw
from sim.seeding import global_numpy_seed
from sim.simulators import environment_class, quiet_simulators
from sim.world import Commands, Mode, Sensors, StepResult, Values

DRIVER_CLOSED_RAD = (
    0.8  # angle of the driver joint that OGBench calls opening 1: closed
)
CONTACT_SCALE = 50.0  # norm of the pad's external wrench that counts as full contact


class UR5eWorld:
    """One OGBench manipulation scene as a robot with a Cartesian target interface.

    The controller is OGBench's: differential inverse kinematics from the measured joints to the
    target pose, once a control period, then joint position servos. Applying `measured + delta` as
    the target is therefore the same as the environment's own step with that delta; applying the
    same target again holds the arm, while a zero delta on the measured pose lets it sink.

    Args:
        name: name of the world, e.g. `cube-single`.
        task: 1..5.
        mode: see `make_world`.
    """

    def __init__(self, name: str, task: int, mode: Mode = "task") -> None:
        import mujoco

        self._mujoco = mujoco
        self.name = name
        self.task = task
        suffix = f"-singletask-task{task}-v0" if mode == "task" else "-v0"
        constructor, arguments, self.max_episode_steps = environment_class(
            name + suffix
        )
        if mode == "data_collection":
            arguments |= {"mode": mode, "terminate_at_goal": False}
        with quiet_simulators():
            self._env = _with_seeded_actions(constructor)(**arguments)
            self._env.reset(seed=0)
        self.control_period_s = float(self._env.control_timestep())
        self._pad_id = self._env.model.body("ur5e/robotiq/right_pad").id
        # Only scenes with buttons read what pre_step stores; it costs a tenth of a step.
        self._needs_pre_step = hasattr(self._env, "_num_buttons")
        self._target: tuple[Any, float] | None = None
        self._action: NDArray[np.floating[Any]] | None = None
        self._steps = 0

    @property
    def environment(self) -> Any:
        """The OGBench environment."""
        return self._env

    def reset(self, seed: int) -> None:
        """Start an episode and hold the initial pose."""
        with quiet_simulators(), global_numpy_seed(seed):
            self._env.seed_actions(seed)
            self._env.reset(seed=seed)
        self._steps = 0
        self._action = None
        self._target = (self._measured_pose(), self._gripper_opening())

    def sensors(self) -> Sensors:
        """Joint states [rad, rad/s], effector pose [m, xyzw], gripper, and the scene's objects.

        Topics: `joint_states`, `effector_pose`, `gripper_state` (position: opening 0..1, effort:
        contact 0..1), and those of `object_sensors`.
        """
        env = self._env
        data = env.data
        contact = np.linalg.norm(data.cfrc_ext[self._pad_id]) / CONTACT_SCALE
        sensors: Sensors = {
            "joint_states": {
                "position": data.qpos[env._arm_joint_ids].copy(),
                "velocity": data.qvel[env._arm_joint_ids].copy(),
            },
            "effector_pose": {
                "pose.position": data.site_xpos[env._pinch_site_id].copy(),
                "pose.orientation": xyzw(self._effector_wxyz()),
            },
            "gripper_state": {
                "position": np.array([self._gripper_opening()]),
                "effort": np.array([np.clip(contact, 0.0, 1.0)]),
            },
        }
        return sensors | object_sensors(env)

    def apply(self, commands: Commands) -> None:
        """Take over `target_pose` (pose.position, pose.orientation) and `gripper_command`.

        Position [m] and opening are clipped to OGBench's workspace.

        Raises:
            QamError: a field has the wrong number of values.
        """
        from ogbench.manipspace import lie

        if self._target is None:
            raise AssertionError("reset the world before applying commands")
        pose, opening = self._target
        if "target_pose" in commands:
            position = commands["target_pose"]["pose.position"]
            orientation = commands["target_pose"]["pose.orientation"]
            check_shape("pose.position", position, (3,), "target_pose")
            check_shape("pose.orientation", orientation, (4,), "target_pose")
            pose = lie.SE3.from_rotation_and_translation(
                rotation=lie.SO3(wxyz=orientation[[3, 0, 1, 2]]).normalize(),
                translation=np.clip(position, *self._env._workspace_bounds),
            )
        if "gripper_command" in commands:
            values = commands["gripper_command"]["position"]
            check_shape("position", values, (1,), "gripper_command")
            opening = float(np.clip(values[0], 0.0, 1.0))
        self._target = (pose, opening)
        self._action = None

    def act(self, action: NDArray[np.floating[Any]]) -> None:
        """Take over a normalised action (5,) for the next step."""
        check_shape("action", action, (5,), self.name)
        self._action = action

    def step(self) -> StepResult:
        """Advance by one control period (25 physics steps of 2 ms)."""
        env = self._env
        # success_timing 'pre': all three speak of the state before the action.
        success = bool(env._success)
        terminated = bool(env.terminate_episode())
        reward = float(env.compute_reward())
        if self._needs_pre_step:
            env.pre_step()
        self._control()
        self._mujoco.mj_step(env.model, env.data, nstep=env._n_steps)
        self._mujoco.mj_rnePostConstraint(env.model, env.data)
        env.post_step()
        self._steps += 1
        truncated = not terminated and self._steps >= self.max_episode_steps
        return StepResult(reward, terminated, truncated, success)

    def observation(self) -> Values:
        """OGBench's observation (O,)."""
        return np.asarray(self._env.compute_observation(), dtype=np.float64)

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """qpos, qvel and, in scenes with buttons, button_states."""
        state = {"qpos": self._env.data.qpos.copy(), "qvel": self._env.data.qvel.copy()}
        if hasattr(self._env, "_cur_button_states"):
            state["button_states"] = self._env._cur_button_states.copy()
        return state

    def _control(self) -> None:
        """Set joint and gripper set points from the action or the held target."""
        env = self._env
        if self._action is not None:
            env.set_control(self._action)
            opening = env.data.ctrl[env._gripper_actuator_ids][0] / 255.0
            self._target = (env._target_effector_pose, float(opening))
            self._action = None
            return
        if self._target is None:
            raise AssertionError("reset the world before stepping it")
        pose, opening = self._target
        attachment = pose @ env._T_pa
        env.data.ctrl[env._arm_actuator_ids] = env._ik.solve(
            pos=attachment.translation(),
            quat=attachment.rotation().wxyz,
            curr_qpos=env.data.qpos[env._arm_joint_ids],
        )
        env.data.ctrl[env._gripper_actuator_ids] = 255.0 * opening

    def _effector_wxyz(self) -> Values:
        quaternion = np.zeros(4)
        self._mujoco.mju_mat2Quat(
            quaternion, self._env.data.site_xmat[self._env._pinch_site_id]
        )
        return quaternion

    def _measured_pose(self) -> Any:
        from ogbench.manipspace import lie

        return lie.SE3.from_rotation_and_translation(
            rotation=lie.SO3(wxyz=self._effector_wxyz()),
            translation=self._env.data.site_xpos[self._env._pinch_site_id].copy(),
        )

    def _gripper_opening(self) -> float:
        angle = self._env.data.qpos[self._env._gripper_opening_joint_id]
        return float(np.clip(angle / DRIVER_CLOSED_RAD, 0.0, 1.0))


def _with_seeded_actions(constructor: Any) -> Any:
    """Subclass whose action space is one seeded object.

    OGBench's task reset plays two random actions from a space that it makes anew (and unseeded)
    each time; they leave traces in the first observation (contact force) and in warm starts.
    """

    class SeededActions(constructor):
        _seeded_space: Any = None

        @property
        def action_space(self) -> Any:
            if self._seeded_space is None:
                self._seeded_space = super().action_space
            return self._seeded_space

        def seed_actions(self, seed: int) -> None:
            self.action_space.seed(seed)

    return SeededActions
