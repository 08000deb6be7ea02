# SPDX-License-Identifier: Apache-2.0
"""Labels of recorded states, and published files of mazes."""

import numpy as np
import pytest

from qam_ros.contract.dataset import read_dataset
from qam_ros.contract.errors import DatasetError
from sim.import_npz import import_npz
from sim.labels import label
from sim.worlds import make_world

SIZES = {"pointmaze-medium": (2, 2, 2, 2), "antmaze-medium": (29, 8, 15, 14)}
"""Numbers in observation, action, qpos and qvel of the published files."""


def goals(world):
    found = []
    for task in range(1, 6):
        maze = make_world(world, task)
        maze.reset(0)
        found.append(maze.environment.cur_goal_xy)
    return np.array(found)


def published(world, positions):
    """Arrays of a file in OGBench's form; row k is at position k."""
    rows = len(positions)
    rng = np.random.default_rng(0)
    observation, action, qpos, qvel = SIZES[world]
    states = rng.normal(size=(rows, qpos))
    states[:, :2] = positions
    terminals = np.zeros(rows, bool)
    terminals[-1] = True
    return {
        "observations": rng.normal(size=(rows, observation)).astype("f4"),
        "actions": rng.uniform(-1, 1, (rows, action)).astype("f4"),
        "terminals": terminals,
        "qpos": states.astype("f4"),
        "qvel": np.zeros((rows, qvel), "f4"),
    }


@pytest.mark.parametrize(
    ("world", "tolerance_m"), [("pointmaze-medium", 1.0), ("antmaze-medium", 0.5)]
)
def test_each_task_of_a_maze_is_solved_within_its_tolerance_of_its_goal(
    world, tolerance_m, tmp_path
):
    places = goals(world)
    assert len(np.unique(places, axis=0)) > 1
    inside = places + np.array([0.98 * tolerance_m, 0.0])
    outside = places - np.array([0.0, 1.02 * tolerance_m])
    positions = np.concatenate([inside, outside, places[:1]])  # the last row is dropped
    file = tmp_path / f"{world}-navigate-v0.npz"
    np.savez_compressed(file, **published(world, positions))
    for task in range(1, 6):
        import_npz([file], tmp_path / f"{task}", task=task)
        dataset = read_dataset(tmp_path / f"{task}")
        near = np.linalg.norm(positions[:-1] - places[task - 1], axis=1) <= tolerance_m
        assert near[task - 1]
        assert not near[5 + task - 1]
        np.testing.assert_array_equal(dataset.masks == 0, near)
        np.testing.assert_array_equal(dataset.rewards, near - 1.0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("observations", np.nan, r"x-v0.npz: 'observations' must be finite"),
        ("actions", 1.5, r"x-v0.npz: 'actions' must lie in \[-1, 1\]"),
    ],
)
def test_a_file_with_bad_numbers_is_named_before_anything_is_written(
    name, value, message, tmp_path
):
    columns = published("pointmaze-medium", np.zeros((6, 2)))
    columns[name][2, 0] = value
    file = tmp_path / "pointmaze-medium-x-v0.npz"
    np.savez(file, **columns)
    with pytest.raises(DatasetError, match=message):
        import_npz([file], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_states_of_another_world_are_not_labelled():
    with pytest.raises(DatasetError, match=r"'qpos' has shape \(4, 15\)"):
        label("pointmaze-medium", 1, {"qpos": np.zeros((4, 15), np.float32)})
    with pytest.raises(DatasetError, match="'button_states' is missing"):
        label("puzzle-3x3", 1, {"qpos": np.zeros((4, 23), np.float32)})
