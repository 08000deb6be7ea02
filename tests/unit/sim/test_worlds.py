# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from qam_ros.contract.errors import ConfigError, QamError
from qam_ros.contract.interface import assemble
from sim.oracles import make_driver
from sim.recipes import make_recipe
from sim.seeding import SeedStream, episode_seed, global_numpy_seed
from sim.worlds import make_world, split_name

# Rounding of about 1e-16 in the targets grows along a contact-rich episode; 1e-13 was measured.
REPLAY_TOLERANCE = 1e-10


def raw(sensors):
    return {
        (topic, field): values
        for topic, fields in sensors.items()
        for field, values in fields.items()
    }


def test_absolute_targets_of_an_episode_with_grasp_equal_the_environments_own_steps(
    cube, twin, ur5e, drive
):
    driver = make_driver(cube, make_recipe(goal_probability=1.0))
    cube.reset(3)
    twin.reset(3)
    with global_numpy_seed(3):
        driver.begin(np.random.default_rng(3))
        for _ in range(cube.max_episode_steps):
            action = driver.action().astype(np.float32).astype(np.float64)
            observation, reward, terminated, _, _ = cube.environment.step(action)
            twin.apply(drive(ur5e, twin.sensors(), action))
            result = twin.step()
            np.testing.assert_allclose(
                twin.observation(), observation, rtol=0, atol=REPLAY_TOLERANCE
            )
            np.testing.assert_allclose(
                twin.snapshot()["qpos"],
                cube.snapshot()["qpos"],
                rtol=0,
                atol=REPLAY_TOLERANCE,
            )
            assert (result.reward, result.terminated) == (reward, terminated)
            if terminated:
                break
    assert terminated, "the scripted pick and place should have reached the goal"
    assert result.success


def test_observation_rebuilt_from_messages_equals_the_environments_own(cube, ur5e):
    rng = np.random.default_rng(0)
    cube.reset(11)
    for _ in range(20):
        rebuilt = assemble(ur5e, raw(cube.sensors()))
        np.testing.assert_array_equal(rebuilt, cube.observation().astype(np.float32))
        cube.act(rng.uniform(-1, 1, 5))
        cube.step()


def test_repeated_target_holds_the_arm_and_a_zero_delta_lets_it_sink(cube):
    cube.reset(0)
    start = cube.sensors()["effector_pose"]["pose.position"]
    drift = 0.0
    for _ in range(120):  # 6 s
        cube.step()
        position = cube.sensors()["effector_pose"]["pose.position"]
        drift = max(drift, float(np.linalg.norm(position - start)))
    assert drift < 0.01
    cube.reset(0)
    for _ in range(120):
        cube.act(np.zeros(5))
        cube.step()
    position = cube.sensors()["effector_pose"]["pose.position"]
    assert np.linalg.norm(position - start) > 0.1


def test_holding_continues_from_the_last_action(cube):
    cube.reset(0)
    cube.act(np.array([0.5, 0.0, 0.5, 0.0, 0.5]))
    cube.step()
    for _ in range(40):
        cube.step()
    settled = cube.sensors()["effector_pose"]["pose.position"]
    for _ in range(40):
        cube.step()
    again = cube.sensors()["effector_pose"]["pose.position"]
    assert np.linalg.norm(again - settled) < 1e-3


def test_same_seed_gives_the_same_episode_whatever_was_played_before(cube, twin):
    twin.reset(99)
    for _ in range(7):
        twin.act(np.array([0.0, 0.0, -1.0, 0.5, 1.0]))
        twin.step()
    twin.reset(5)
    cube.reset(5)
    np.testing.assert_array_equal(cube.observation(), twin.observation())
    for _ in range(5):
        for world in (cube, twin):
            world.act(np.full(5, 0.3))
            world.step()
    np.testing.assert_array_equal(cube.observation(), twin.observation())


def test_maze_resets_depend_on_the_seed_alone(maze):
    maze.reset(1)
    first = maze.observation()
    maze.reset(2)
    assert not np.array_equal(first, maze.observation())
    maze.reset(1)
    np.testing.assert_array_equal(first, maze.observation())


def test_velocity_commands_move_the_base_as_the_environments_own_steps(
    maze, base, drive
):
    twin = make_world("pointmaze-medium", 1)
    rng = np.random.default_rng(0)
    maze.reset(4)
    twin.reset(4)
    for _ in range(50):
        action = rng.uniform(-1, 1, 2)
        observation, reward, terminated, _, _ = maze.environment.step(action)
        twin.apply(drive(base, twin.sensors(), action))
        result = twin.step()
        np.testing.assert_array_equal(
            assemble(base, raw(twin.sensors())), observation.astype(np.float32)
        )
        assert (result.reward, result.terminated) == (reward, terminated)


def test_base_stops_half_a_second_after_its_last_velocity_command(maze):
    maze.reset(0)
    maze.apply({"cmd_vel": {"twist.linear": np.array([0.2, 0.1, 0.0])}})
    speeds = []
    for _ in range(8):
        maze.step()
        speeds.append(np.linalg.norm(maze.sensors()["odom"]["twist.twist.linear"][:2]))
    assert all(speed > 0.1 for speed in speeds[:5])
    assert all(speed < 1e-6 for speed in speeds[5:])


def test_success_is_reported_one_step_after_the_goal_was_reached(maze):
    maze.reset(0)
    maze.environment.set_xy(np.array(maze.environment.cur_goal_xy))
    first = maze.step()
    assert first.success
    assert first.terminated
    assert first.reward == 0.0
    maze.reset(0)
    goal = np.array(maze.environment.cur_goal_xy)
    maze.environment.set_xy(goal - np.array([1.05, 0.0]))
    maze.act(np.array([1.0, 0.0]))
    arriving = maze.step()
    assert np.linalg.norm(maze.observation() - goal) < 1.0
    assert not arriving.success
    assert maze.step().success


def test_episode_is_truncated_at_the_step_limit(cube):
    cube.reset(0)
    results = [cube.step() for _ in range(cube.max_episode_steps)]
    assert [result.truncated for result in results] == [False] * 199 + [True]


def test_unknown_worlds_and_tasks_are_refused_with_the_valid_names():
    with pytest.raises(ConfigError, match="did you mean 'cube-single'"):
        make_world("cube-singel")
    with pytest.raises(ConfigError, match=r"give 1\.\.5"):
        make_world("cube-single", 6)
    with pytest.raises(ConfigError, match="no mode"):
        make_world("pointmaze-medium", 1, "data_collection")


def test_ogbench_names_are_understood():
    assert split_name("cube-single-singletask-task3-v0") == ("cube-single", 3)
    assert split_name("pointmaze-medium-singletask-v0") == ("pointmaze-medium", 1)
    assert split_name("cube-single-play-singletask-task2-v0") == ("cube-single", 2)
    assert split_name("antmaze-large-navigate-singletask-v0") == ("antmaze-large", 1)
    with pytest.raises(ConfigError, match="names task 3"):
        split_name("cube-single-singletask-task3-v0", 2)


def test_commands_of_the_wrong_size_are_refused_by_name(cube, maze):
    cube.reset(0)
    with pytest.raises(QamError, match="gripper_command"):
        cube.apply({"gripper_command": {"position": np.zeros(2)}})
    with pytest.raises(QamError, match="cmd_vel"):
        maze.apply({"cmd_vel": {"twist.linear": np.zeros(2)}})


def test_seeds_of_data_plant_and_evaluation_differ():
    seeds = {
        episode_seed(seed, index, stream)
        for seed in range(3)
        for index in range(50)
        for stream in SeedStream
    }
    assert len(seeds) == 3 * 50 * len(SeedStream)


def test_global_seeding_leaves_the_generator_as_it_was():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    with global_numpy_seed(3):
        np.random.uniform()  # noqa: NPY002
    after = np.random.get_state()[1]  # noqa: NPY002
    np.testing.assert_array_equal(before, after)
