# SPDX-License-Identifier: Apache-2.0
"""The walking expert and the data that it makes."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from qam_ros.contract.dataset import read_dataset, read_dataset_manifest
from qam_ros.contract.errors import ConfigError
from sim.ant_driver import heading
from sim.ant_expert import AntExpert, expert_sha256, read_expert, write_expert
from sim.ant_herd import Herd, measure
from sim.driver import Tally
from sim.episodes import EpisodeMaker, play_episode
from sim.generate import Target, generate
from sim.recipes import make_recipe
from sim.worlds import make_world

NAVIGATE = make_recipe("navigate", "antmaze-medium", 1, max_steps=25)


@pytest.fixture(scope="module")
def expert() -> AntExpert:
    return read_expert()[0]


def test_expert_walks_each_of_eight_ways_on_open_ground(expert):
    rng = np.random.default_rng(0)
    herd = Herd(16, rng)
    angles = np.arange(8) * np.pi / 4
    herd.direction[:8] = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    start = herd.state()[0][:8, :2].copy()
    fell = np.zeros(16)
    for _ in range(60):
        noise = rng.normal(0.0, 0.2, (16, 8))
        actions = np.clip(expert.actions(*herd.state()) + noise, -1.0, 1.0)
        fell += herd.step(actions)[1]
    covered = herd.state()[0][:8, :2] - start
    speeds = np.sum(covered * herd.direction[:8], axis=1) / 6.0  # [m/s]
    assert speeds.min() > 1.0, speeds  # about 2 was measured
    assert not fell[:8].any()


def test_expert_keeps_its_feet_with_action_noise(expert):
    result = measure(expert, seed=7, steps=100)
    assert result.speed_m_s > 1.0
    assert result.falls_per_1000 < 1.0


def test_expert_reaches_goal_after_goal_through_the_maze():
    recipe = make_recipe("navigate", "antmaze-medium", 1, max_steps=600)
    episode = EpisodeMaker(recipe, 0).make(0)
    assert len(episode.rewards) == 600, "no fall"
    assert episode.reached >= 3  # 11 in 1000 steps were measured


def test_expert_says_how_it_was_made():
    _, training = read_expert()
    assert {"seed", "updates", "kept_at", "discount", "actor_widths"} <= set(training)


def test_expert_survives_writing_and_reading(tmp_path, expert):
    rng = np.random.default_rng(0)
    weights = {
        "0/weight": rng.normal(size=(29, 5)).astype(np.float32),
        "0/bias": rng.normal(size=5).astype(np.float32),
        "1/weight": rng.normal(size=(5, 8)).astype(np.float32),
        "1/bias": rng.normal(size=8).astype(np.float32),
    }
    write_expert(tmp_path / "expert.safetensors", weights, {"seed": 3})
    read, training = read_expert(tmp_path / "expert.safetensors")
    assert training == {"seed": 3}
    state = Herd(2, rng).state()
    np.testing.assert_array_equal(
        read.actions(*state), AntExpert(weights).actions(*state)
    )


def test_missing_and_foreign_experts_are_refused_in_words(tmp_path):
    with pytest.raises(ConfigError, match="missing"):
        read_expert(tmp_path / "none.safetensors")
    layer = {"0/weight": np.zeros((2, 8)), "0/bias": np.zeros(8)}
    save_file(layer, tmp_path / "other.safetensors")
    write_expert(tmp_path / "narrow.safetensors", layer, {})
    for name in ("other", "narrow"):
        with pytest.raises(ConfigError, match="no walking expert"):
            read_expert(tmp_path / f"{name}.safetensors")


def test_way_leads_over_the_centre_of_the_next_cell_and_in_the_last_to_the_goal():
    maze = make_world("antmaze-medium", 1).environment
    corner, beside = np.array(maze.ij_to_xy((1, 1))), np.array(maze.ij_to_xy((1, 2)))
    goal = beside + np.array([0.5, -0.5])
    _, distances = maze.get_oracle_subgoal(corner, goal)
    far = np.array(maze.ij_to_xy((2, 1)))
    np.testing.assert_allclose(
        heading(maze, far, goal, distances), [0.0, -1.0], atol=1e-12
    )
    offset = goal - (beside + 0.1)
    np.testing.assert_allclose(
        heading(maze, beside + 0.1, goal, distances), offset / np.linalg.norm(offset)
    )


def test_ant_data_depend_on_the_seed_and_not_on_an_interruption(tmp_path):
    class StopError(Exception):
        pass

    def stop(rows, episodes):
        raise StopError

    target = Target(episodes=6)
    generate(tmp_path / "one", NAVIGATE, target, seed=3)
    with pytest.raises(StopError):
        generate(tmp_path / "two", NAVIGATE, target, seed=3, progress=stop)
    result = generate(tmp_path / "two", NAVIGATE, target, seed=3)
    generate(tmp_path / "other", NAVIGATE, target, seed=4)
    assert result.made_rows < result.rows + 2 * NAVIGATE.max_steps
    one, two, other = (
        read_dataset(tmp_path / name) for name in ("one", "two", "other")
    )
    assert one.observations.shape == (150, 29)
    assert one.actions.shape == (150, 8)
    for name in ("observations", "actions", "rewards", "masks", "end_observations"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert not np.array_equal(one.observations, other.observations)
    meta = read_dataset_manifest(tmp_path / "one").meta
    assert meta["figures"]["fallen"] == 0
    assert meta["expert_sha256"] == expert_sha256()


def test_recorded_observations_are_the_recorded_states():
    episode = EpisodeMaker(NAVIGATE, 0).make(0)
    np.testing.assert_array_equal(
        episode.observations,
        np.hstack([episode.extras["qpos"], episode.extras["qvel"]]),
    )


class Toppler:
    """Turns the ant on its back after five steps."""

    def __init__(self, world):
        self._env = world.environment
        self.tally = Tally()
        self._steps = 0

    def begin(self, rng):
        self._steps = 0

    def action(self):
        self._steps += 1
        if self._steps == 5:
            qpos = self._env.data.qpos.copy()
            qpos[2], qpos[3:7] = 0.6, [0.0, 1.0, 0.0, 0.0]
            self._env.set_state(qpos, np.zeros(14))
        return np.zeros(8)


def test_fall_ends_the_episode_with_the_goal_unreached():
    world = make_world("antmaze-medium", 1)
    episode = play_episode(world, Toppler(world), NAVIGATE, seed=0)
    assert len(episode.rewards) == 5
    np.testing.assert_array_equal(episode.masks, 1.0)


def test_falls_are_counted_in_the_metadata(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sim.oracles.AntNavigator", lambda world, recipe: Toppler(world)
    )
    generate(tmp_path / "data", NAVIGATE, Target(episodes=4))
    assert read_dataset_manifest(tmp_path / "data").meta["figures"]["fallen"] == 4
    dataset = read_dataset(tmp_path / "data")
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminals), [4, 9, 14, 19])
    assert dataset.masks.all(), "a fall is a cut, not an end of the task"
