# SPDX-License-Identifier: Apache-2.0
"""The ant mazes as a robot: sensors, torques, falls, labels."""

import numpy as np
import pytest

from qam_ros.contract.errors import QamError
from qam_ros.contract.interface import assemble, load_interface
from sim.labels import label
from sim.worlds import make_world

UPSIDE_DOWN = np.array([0.0, 1.0, 0.0, 0.0])


@pytest.fixture(scope="module")
def ant():
    return make_world("antmaze-medium", 1)


@pytest.fixture(scope="module")
def twin():
    return make_world("antmaze-medium", 1)


@pytest.fixture(scope="module")
def robot():
    return load_interface("ant")


def raw(sensors):
    return {
        (topic, field): values
        for topic, fields in sensors.items()
        for field, values in fields.items()
    }


def test_observation_rebuilt_from_messages_equals_the_environments_own(ant, robot):
    rng = np.random.default_rng(0)
    ant.reset(11)
    for _ in range(30):
        rebuilt = assemble(robot, raw(ant.sensors()))
        np.testing.assert_array_equal(rebuilt, ant.observation().astype(np.float32))
        ant.act(rng.uniform(-1, 1, 8))
        ant.step()


def test_torque_commands_move_the_ant_as_the_environments_own_steps(
    ant, twin, robot, drive
):
    rng = np.random.default_rng(1)
    ant.reset(4)
    twin.reset(4)
    for _ in range(40):
        action = rng.uniform(-1, 1, 8)
        observation, reward, terminated, _, _ = ant.environment.step(action)
        twin.apply(drive(robot, twin.sensors(), action))
        result = twin.step()
        # action * 30 / 30 is off by a rounding, which grows along the walk
        np.testing.assert_allclose(twin.observation(), observation, rtol=0, atol=1e-9)
        assert (result.reward, result.terminated) == (reward, terminated)


def test_velocities_are_given_in_the_frames_of_maze_and_torso(ant):
    ant.reset(2)
    ant.environment.set_state(
        np.array([0, 0, 1, np.sqrt(0.5), 0, 0, np.sqrt(0.5), *np.zeros(8)]),
        np.array([1.0, 0, 0, 0.3, 0, 0, *np.zeros(8)]),
    )  # a quarter turn to the left, moving along x, tilting about the torso's x
    sensors = ant.sensors()
    np.testing.assert_allclose(
        sensors["odom"]["twist.twist.linear"], [0, -1, 0], atol=1e-12
    )
    np.testing.assert_allclose(
        sensors["velocity"]["twist.angular"], [0, 0.3, 0], atol=1e-12
    )


def test_motors_go_limp_half_a_second_after_the_last_torque(ant):
    ant.reset(0)
    ant.apply({"joint_effort": {"effort": np.full(8, 60.0)}})
    torques = []
    for _ in range(7):
        ant.step()
        torques.append(ant.environment.data.ctrl.copy())
    assert all(np.all(torque == 1.0) for torque in torques[:5]), "bounded to 30 Nm"
    assert all(np.all(torque == 0.0) for torque in torques[5:])


def test_ant_on_its_back_has_fallen_and_a_standing_one_has_not(ant):
    ant.reset(0)
    assert not ant.step().fallen
    qpos = ant.environment.data.qpos.copy()
    qpos[2], qpos[3:7] = 0.6, UPSIDE_DOWN
    ant.environment.set_state(qpos, np.zeros(14))
    result = ant.step()
    assert result.fallen
    assert not result.terminated, "a fall does not end a task"


def test_resets_depend_on_the_seed_alone(ant):
    ant.reset(1)
    first = ant.observation()
    ant.act(np.ones(8))
    ant.step()
    ant.reset(2)
    assert not np.array_equal(first, ant.observation())
    ant.reset(1)
    np.testing.assert_array_equal(first, ant.observation())


def test_efforts_of_the_wrong_size_are_refused_by_name(ant):
    with pytest.raises(QamError, match="joint_effort"):
        ant.apply({"joint_effort": {"effort": np.zeros(7)}})


@pytest.mark.parametrize("maze", ["medium", "large", "giant"])
def test_labels_of_every_task_are_what_the_environment_would_pay(maze):
    for task in range(1, 6):
        environment = make_world(f"antmaze-{maze}", task).environment
        environment.reset(seed=0)
        goal = np.array(environment.cur_goal_xy)
        qpos = np.zeros((3, 15), dtype=np.float32)
        qpos[:, :2] = goal + np.array([[0.0, 0.0], [0.49, 0.0], [0.0, 0.51]])
        rewards, masks = label(f"antmaze-{maze}", task, {"qpos": qpos})
        paid = []
        for row in qpos:
            environment.set_xy(row[:2])
            paid.append(environment.step(np.zeros(8))[1])
        np.testing.assert_array_equal(rewards, paid)
        np.testing.assert_array_equal(rewards, [0.0, 0.0, -1.0])
        np.testing.assert_array_equal(masks, [0.0, 0.0, 1.0])
