# SPDX-License-Identifier: Apache-2.0
"""Scenes with several cubes, buttons, a drawer and a window: interfaces, plant and imported files."""

import numpy as np
import pytest

from qam_ros.contract.dataset import read_dataset
from qam_ros.contract.errors import DatasetError
from qam_ros.contract.interface import assemble, load_interface
from qam_ros.runtime.guard_config import guard_config
from sim.import_npz import import_npz
from sim.labels import label
from sim.worlds import WORLDS, make_world

ARMS = sorted(name for name, info in WORLDS.items() if info.family == "ur5e")
TASK = 2
# Rounding of about 1e-16 in the targets, grown over the steps of the test.
REPLAY_TOLERANCE = 1e-10
ARM_BLOCKS = 6


@pytest.fixture(scope="module", params=[name for name in ARMS if name != "cube-single"])
def scene(request):
    return make_world(request.param, TASK)


@pytest.fixture
def robot(scene):
    return load_interface(WORLDS[scene.name].robot)


def raw(sensors):
    return {
        (topic, field): values
        for topic, fields in sensors.items()
        for field, values in fields.items()
    }


def actions_of(count):
    return np.random.default_rng(7).uniform(-1, 1, (count, 5)).astype(np.float32)


@pytest.mark.parametrize("world", ARMS)
def test_every_scene_has_the_same_arm_and_the_same_action(world):
    plain, interface = load_interface("ur5e_2f85"), load_interface(WORLDS[world].robot)
    assert interface.observation[:ARM_BLOCKS] == plain.observation[:ARM_BLOCKS]
    assert interface.action == plain.action
    assert interface.control_period_s == plain.control_period_s
    assert interface.safe_action == plain.safe_action


@pytest.mark.parametrize("world", ARMS)
def test_buttons_and_drawers_that_rest_are_not_taken_for_frozen_sensors(world):
    plain, interface = load_interface("ur5e_2f85"), load_interface(WORLDS[world].robot)
    watches = [guard_config(robot).watches for robot in (plain, interface)]
    assert [w.topic for w in watches[1]] == [w.topic for w in watches[0]]
    assert [w.topic for w in watches[0]] == ["joint_states", "effector_pose"]


def test_observation_rebuilt_from_messages_equals_the_environments_own(scene, robot):
    scene.reset(11)
    for step, action in enumerate(actions_of(12)):
        if step == 6 and "button_states" in scene.snapshot():
            states = scene.environment._cur_button_states
            states[:] = np.arange(len(states)) % 2
        rebuilt = assemble(robot, raw(scene.sensors()))
        np.testing.assert_array_equal(rebuilt, scene.observation().astype(np.float32))
        scene.act(action)
        scene.step()


def test_absolute_targets_move_the_arm_as_the_environments_own_steps(
    scene, robot, drive
):
    scene.reset(3)
    seen = []
    for action in actions_of(25):
        seen.append(scene.observation())
        scene.act(action.astype(np.float64))
        scene.step()
    scene.reset(3)
    for action, expected in zip(actions_of(25), seen, strict=True):
        np.testing.assert_allclose(
            scene.observation(), expected, rtol=0, atol=REPLAY_TOLERANCE
        )
        scene.apply(drive(robot, scene.sensors(), action.astype(np.float64)))
        scene.step()


def test_same_seed_gives_the_same_episode_whatever_was_played_before(scene):
    observations = []
    for before in (1, 2):
        scene.reset(before)
        for action in actions_of(5 * before):
            scene.act(action)
            scene.step()
        scene.reset(5)
        for action in actions_of(3):
            scene.act(action)
            scene.step()
        observations.append(scene.observation())
    np.testing.assert_array_equal(observations[0], observations[1])


def published(scene, robot, rows=10):
    """Arrays of a file in OGBench's form, one state of which (row 4) is the task's goal."""
    rng = np.random.default_rng(0)
    scene.reset(0)
    env, state = scene.environment, scene.snapshot()
    start = {key: np.tile(values, (rows, 1)) for key, values in state.items()}
    goal = state["qpos"].copy()
    for index in range(getattr(env, "_num_cubes", 0)):
        goal[14 + 7 * index : 17 + 7 * index] = env._data.mocap_pos[index]
    if scene.name == "scene":
        goal[-2:] = env._target_drawer_pos, env._target_window_pos
    start["qpos"][4] = goal
    if "button_states" in start:
        start["button_states"][4] = env._target_button_states
    terminals = np.zeros(rows, bool)
    terminals[[rows // 2 - 1 + 2, rows - 1]] = True
    return {
        "observations": rng.normal(size=(rows, robot.observation_size)).astype("f4"),
        "actions": rng.uniform(-1, 1, (rows, 5)).astype("f4"),
        "terminals": terminals,
        "qpos": start["qpos"].astype("f4"),
        "qvel": start["qvel"].astype("f4"),
        **{k: v.astype("i8") for k, v in start.items() if k == "button_states"},
    }


def test_a_published_file_is_imported_with_the_labels_of_the_task(
    scene, robot, tmp_path
):
    columns = published(scene, robot)
    file = tmp_path / f"{scene.name}-play-v0.npz"
    np.savez_compressed(file, **columns)
    import_npz([file], tmp_path / "dense", task=TASK)
    dataset = read_dataset(tmp_path / "dense", robot)
    kept = ~columns["terminals"]
    np.testing.assert_array_equal(dataset.observations, columns["observations"][kept])
    np.testing.assert_array_equal(dataset.actions, columns["actions"][kept])
    np.testing.assert_array_equal(np.flatnonzero(dataset.masks == 0), [4])
    np.testing.assert_array_equal(np.flatnonzero(dataset.rewards == 0), [4])
    goals = {"scene": 5, "puzzle-3x3": 9, "puzzle-4x4": 16}
    cubes = getattr(scene.environment, "_num_cubes", 0)
    unmet = goals.get(scene.name, cubes)
    assert -unmet <= dataset.rewards.min() <= -1
    states = {key: dataset.extras[key] for key in ("qpos", "qvel")}
    if "button_states" in dataset.extras:
        states["button_states"] = dataset.extras["button_states"]
    sparse, masks = label(scene.name, TASK, states, sparse=True)
    np.testing.assert_array_equal(sparse, np.where(dataset.masks == 0, 0.0, -1.0))
    np.testing.assert_array_equal(masks, dataset.masks)
    with pytest.raises(DatasetError, match="'qpos' has shape"):
        label(scene.name, TASK, states | {"qpos": states["qpos"][:, :-1]})
