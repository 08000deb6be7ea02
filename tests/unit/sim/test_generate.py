# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

from qam_ros.contract.dataset import read_dataset, read_dataset_manifest
from qam_ros.contract.errors import ConfigError, DatasetError
from sim.episodes import EpisodeMaker
from sim.generate import Target, generate
from sim.labels import LABEL_KEYS, label
from sim.maze_drivers import is_corridor
from sim.oracles import make_driver
from sim.recipes import make_recipe
from sim.shards import SETTINGS
from sim.worlds import WORLDS, make_world

MAZE = make_recipe("task", "pointmaze-medium", 1, max_steps=30)


def arrays(dataset):
    named = {
        field.name: getattr(dataset, field.name)
        for field in dataclasses.fields(dataset)
        if field.name != "extras"
    }
    return named | dict(dataset.extras)


def assert_same(first, second):
    one, two = arrays(first), arrays(second)
    assert one.keys() == two.keys()
    for key, array in one.items():
        np.testing.assert_array_equal(array, two[key], err_msg=key)


class StopError(Exception):
    pass


def test_data_depend_on_the_seed_and_not_on_the_workers_or_an_interruption(tmp_path):
    target = Target(episodes=10)
    generate(tmp_path / "one", MAZE, target, seed=3, workers=1)
    generate(tmp_path / "two", MAZE, target, seed=3, workers=2)
    generate(tmp_path / "other", MAZE, target, seed=4, workers=1)
    one = read_dataset(tmp_path / "one")
    assert_same(one, read_dataset(tmp_path / "two"))
    assert not np.array_equal(
        one.observations[:30], read_dataset(tmp_path / "other").observations[:30]
    )

    def stop(rows, episodes):
        raise StopError

    with pytest.raises(StopError):
        generate(tmp_path / "three", MAZE, target, seed=3, progress=stop)
    (tmp_path / "three.partial" / "shard_00000004.99.tmp").write_bytes(b"torn")
    result = generate(tmp_path / "three", MAZE, target, seed=3)
    assert_same(one, read_dataset(tmp_path / "three"))
    assert result.made_rows < result.rows, "the finished shard was not played again"
    assert not (tmp_path / "three.partial").exists()


def test_rows_end_with_the_episode_that_reaches_the_target(tmp_path):
    result = generate(tmp_path / "data", MAZE, Target(rows=100), seed=0)
    dataset = read_dataset(tmp_path / "data")
    lengths = np.diff(np.flatnonzero(dataset.terminals) + 1, prepend=0)
    assert result.rows == len(dataset) == lengths.sum() >= 100
    assert lengths[:-1].sum() < 100


def test_an_unfinished_run_with_other_settings_is_not_continued(tmp_path):
    def stop(rows, episodes):
        raise StopError

    with pytest.raises(StopError):
        generate(tmp_path / "data", MAZE, Target(episodes=8), seed=0, progress=stop)
    other = dataclasses.replace(MAZE, noise=0.3)
    with pytest.raises(DatasetError, match="recipe differ"):
        generate(tmp_path / "data", other, Target(episodes=8), seed=0)
    with pytest.raises(DatasetError, match="seed differ"):
        generate(tmp_path / "data", MAZE, Target(episodes=8), seed=1)
    assert (tmp_path / "data.partial" / SETTINGS).exists()


def test_a_damaged_shard_is_named(tmp_path):
    def stop(rows, episodes):
        raise StopError

    with pytest.raises(StopError):
        generate(tmp_path / "data", MAZE, Target(episodes=8), seed=0, progress=stop)
    shard = next((tmp_path / "data.partial").glob("shard_*.npz"))
    shard.write_bytes(shard.read_bytes()[:-200])
    with pytest.raises(DatasetError, match=shard.name):
        generate(tmp_path / "data", MAZE, Target(episodes=8), seed=0)


def test_manifest_names_simulator_versions_and_every_setting(tmp_path):
    generate(tmp_path / "data", MAZE, Target(episodes=1), seed=7)
    meta = read_dataset_manifest(tmp_path / "data").meta
    assert meta["seed"] == 7
    assert meta["recipe"] == MAZE.settings()
    assert set(meta["versions"]) == {"mujoco", "ogbench", "numpy"}
    assert (meta["world"], meta["task"]) == ("pointmaze-medium", 1)


@pytest.fixture(scope="module")
def cube_maker():
    return EpisodeMaker(make_recipe(goal_probability=1.0), 0)


def test_task_episode_ends_with_the_extra_rows_in_the_goal(cube_maker):
    episode = cube_maker.make(0)
    assert episode.success
    assert len(episode.rewards) < 194
    np.testing.assert_array_equal(episode.masks[:-6], 1.0)
    np.testing.assert_array_equal(episode.rewards[:-6], -1.0)
    np.testing.assert_array_equal(episode.masks[-6:], 0.0)
    np.testing.assert_array_equal(episode.rewards[-6:], 0.0)


def test_recorded_rewards_equal_ogbenchs_relabelling(cube_maker):
    episode = cube_maker.make(0)
    states = {key: episode.extras[key] for key in LABEL_KEYS if key in episode.extras}
    rewards, masks = label("cube-single", 1, states)
    np.testing.assert_array_equal(rewards, episode.rewards)
    np.testing.assert_array_equal(masks, episode.masks)


def test_recorded_actions_replay_to_the_recorded_observations(cube_maker, cube):
    from sim.seeding import SeedStream, episode_seed

    episode = cube_maker.make(1)
    cube.reset(episode_seed(0, 1, SeedStream.DATA))
    for observation, action in zip(episode.observations, episode.actions, strict=True):
        np.testing.assert_array_equal(
            cube.observation().astype(np.float32), observation
        )
        cube.act(action)
        cube.step()
    np.testing.assert_array_equal(
        cube.observation().astype(np.float32), episode.end_observation
    )


def test_goal_probability_zero_aims_elsewhere():
    recipe = make_recipe(goal_probability=0.0, max_steps=150)
    episode = EpisodeMaker(recipe, 0).make(0)
    cube = episode.extras["qpos"][:, 14:17]
    goal = np.array([0.425, -0.1, 0.02])
    assert not episode.success
    assert np.abs(cube[-1] - cube[0]).max() > 0.05, "the cube was carried somewhere"
    assert np.linalg.norm(cube[-1] - goal) > 0.04


def test_play_data_of_a_scene_carry_button_states_and_labels():
    episode = EpisodeMaker(make_recipe("play", "puzzle-3x3", max_steps=60), 0).make(0)
    assert episode.extras["button_states"].shape == (60, 9)
    rewards, masks = label("puzzle-3x3", 1, episode.extras)
    assert rewards.min() >= -9
    assert np.all((rewards == 0) == (masks == 0))
    sparse, _ = label("puzzle-3x3", 1, episode.extras, sparse=True)
    assert set(np.unique(sparse)) <= {-1.0, 0.0}
    np.testing.assert_array_equal(sparse == 0, rewards == 0)


def test_navigate_data_cross_the_maze():
    episode = EpisodeMaker(make_recipe("navigate", "pointmaze-medium"), 0).make(0)
    cells = {tuple(cell) for cell in np.round(episode.observations / 4.0).astype(int)}
    assert len(episode.rewards) == 1000
    assert len(cells) > 8


def test_navigate_data_start_and_aim_beside_the_centres_of_cells():
    world = make_world("pointmaze-large", 1)
    driver = make_driver(world, make_recipe("navigate", "pointmaze-large"))
    goals, starts = [], []
    for seed in range(40):
        world.reset(seed)
        driver.begin(np.random.default_rng(seed))
        starts.append(world.environment.get_xy())
        goals.append(driver._target)
    for places in (np.array(starts), np.array(goals)):
        offsets = (places + 2) % 4 - 2
        assert 0.8 < np.abs(offsets).max() <= 1.0
    cells = [world.environment.xy_to_ij(goal) for goal in goals]
    assert not any(is_corridor(world.environment, cell) for cell in cells)


def test_what_a_driver_reached_is_counted(tmp_path):
    recipe = make_recipe("play", "scene", max_steps=300)
    made = generate(tmp_path / "data", recipe, Target(episodes=2), seed=0)
    assert made.targets >= 6
    assert made.targets * 0.8 <= made.reached <= made.targets
    figures = read_dataset_manifest(tmp_path / "data").meta["figures"]
    assert figures["reached"] == made.reached


def test_a_worker_makes_no_more_than_the_target_where_episodes_have_one_length():
    recipe = make_recipe("play", "scene", max_steps=300)
    assert Target(rows=601).of(recipe) == Target(episodes=3)
    assert Target(rows=601).of(make_recipe()) == Target(rows=601)


def test_worlds_without_a_fitting_robot_need_one_named(tmp_path, monkeypatch):
    recipe = make_recipe("play", "cube-double")
    unfit = dataclasses.replace(WORLDS["cube-double"], robot=None)
    monkeypatch.setitem(WORLDS, "cube-double", unfit)
    with pytest.raises(DatasetError, match="--robot"):
        generate(tmp_path / "data", recipe, Target(episodes=1))
    assert not (tmp_path / "data.partial").exists()


@pytest.mark.parametrize(
    ("arguments", "overrides", "message"),
    [
        (("tsak",), {}, "did you mean 'task'"),
        (("navigate", "cube-single"), {}, "use one of task, play, noisy"),
        (("play", "pointmaze-medium"), {}, "use one of task, navigate"),
        (("task", "cube-double"), {}, "use one of play, noisy"),
        ((), {"nosie": 0.1}, "did you mean 'noise'"),
        ((), {"noise": "much"}, "expects float, found 'much'"),
        ((), {"goal_probability": 1.5}, "is a probability"),
        ((), {"segment_s": 0}, "must be > 0"),
        ((), {"stack_low": 0.5, "stack_high": 0.1}, "'stack_low' must not exceed"),
    ],
)
def test_wrong_recipes_are_refused_in_words(arguments, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_recipe(*arguments, **overrides)


def test_a_target_is_either_rows_or_episodes():
    for rows, episodes in ((0, 0), (10, 10)):
        with pytest.raises(ConfigError, match="either rows or episodes"):
            Target(rows, episodes)
