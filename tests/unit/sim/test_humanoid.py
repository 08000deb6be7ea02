# SPDX-License-Identifier: Apache-2.0
"""The humanoid mazes as a robot: sensors, torques, labels, published files, no generator."""

import numpy as np
import pytest

from qam_ros.contract.dataset import read_dataset
from qam_ros.contract.errors import ConfigError, QamError
from qam_ros.contract.interface import assemble, load_interface
from qam_ros.runtime.guard_config import guard_config
from sim.cli import data
from sim.import_npz import import_npz
from sim.labels import label
from sim.worlds import make_world

TOLERANCE = 1e-9  # a torque divided by its gear again is off by a rounding, which grows


@pytest.fixture(scope="module")
def humanoid():
    return make_world("humanoidmaze-medium", 1)


@pytest.fixture(scope="module")
def twin():
    return make_world("humanoidmaze-medium", 1)


@pytest.fixture(scope="module")
def robot():
    return load_interface("humanoid")


def raw(sensors):
    return {
        (topic, field): values
        for topic, fields in sensors.items()
        for field, values in fields.items()
    }


def published(world, rows, segment):
    """Arrays of a file in OGBench's form: rows of random actions."""
    rng = np.random.default_rng(0)
    world.reset(0)
    columns = {name: [] for name in ("observations", "actions", "qpos", "qvel")}
    for _ in range(rows):
        action = rng.uniform(-1, 1, 21)
        columns["observations"].append(world.observation())
        columns["actions"].append(action)
        for name, values in world.snapshot().items():
            columns[name].append(values)
        world.act(action)
        world.step()
    arrays = {name: np.array(values, "f4") for name, values in columns.items()}
    return arrays | {"terminals": np.arange(rows) % segment == segment - 1}


def test_observation_rebuilt_from_messages_equals_the_environments_own(humanoid, robot):
    rng = np.random.default_rng(0)
    assert robot.observation_size == 69
    for seed in range(4):  # each begins in another position of body and limbs
        humanoid.reset(seed)
        for _ in range(15):
            rebuilt = assemble(robot, raw(humanoid.sensors()))
            own = humanoid.observation().astype(np.float32)
            np.testing.assert_array_equal(rebuilt, own)
            humanoid.act(rng.uniform(-1, 1, 21))
            humanoid.step()


def test_torque_commands_move_the_humanoid_as_the_environments_own_steps(
    humanoid, twin, robot, drive
):
    rng = np.random.default_rng(1)
    humanoid.reset(4)
    twin.reset(4)
    for _ in range(40):
        action = rng.uniform(-1, 1, 21)
        observation, reward, terminated, _, _ = humanoid.environment.step(action)
        twin.apply(drive(robot, twin.sensors(), action))
        result = twin.step()
        np.testing.assert_allclose(
            twin.observation(), observation, rtol=0, atol=TOLERANCE
        )
        assert (result.reward, result.terminated) == (reward, terminated)


def test_joints_motors_and_gears_are_those_of_the_model(humanoid, robot):
    model = humanoid.environment.model
    joints = tuple(model.joint(k).name for k in range(1, model.njnt))  # 0: the torso
    watched = {block.name: block for block in robot.observation}
    for name in ("joint_position", "joint_velocity"):
        assert watched[name].elements == watched[name].source.joints == joints
    (torque,) = robot.action
    motors = tuple(model.joint(k).name for k in model.actuator_trnid[:, 0])
    assert torque.elements == torque.target.joints == motors
    np.testing.assert_array_equal(torque.scale, model.actuator_gear[:, 0])
    np.testing.assert_array_equal(torque.high, torque.scale)
    np.testing.assert_array_equal(torque.low, np.negative(torque.scale))


def test_velocities_are_given_in_the_frames_of_maze_and_torso(humanoid):
    humanoid.reset(2)
    qpos, qvel = np.zeros(28), np.zeros(27)
    qpos[2], qpos[[3, 6]] = 3.0, np.sqrt(0.5)  # a quarter turn to the left
    qvel[0], qvel[3] = 1.0, 0.3  # moving along x, tilting about the torso's x
    humanoid.environment.set_state(qpos, qvel)
    sensors = humanoid.sensors()
    linear = sensors["odom"]["twist.twist.linear"]
    np.testing.assert_allclose(linear, [0, -1, 0], atol=1e-12)
    angular = sensors["velocity"]["twist.angular"]
    np.testing.assert_allclose(angular, [0, 0.3, 0], atol=1e-12)
    left = sensors["left_hand_pose"]["pose.position"]
    right = sensors["right_hand_pose"]["pose.position"]
    assert left[1] > 0.0 > right[1], (
        "y points to the left of the torso, however it turns"
    )


def test_motors_go_limp_a_tenth_of_a_second_after_the_last_torque(humanoid):
    humanoid.reset(0)
    humanoid.apply({"joint_effort": {"effort": np.full(21, 500.0)}})
    torques = []
    for _ in range(6):
        humanoid.step()
        torques.append(humanoid.environment.data.ctrl.copy())
    assert all(np.all(torque == 1.0) for torque in torques[:4]), "bounded to the gears"
    assert all(np.all(torque == 0.0) for torque in torques[4:])


def test_efforts_of_the_wrong_size_are_refused_by_name(humanoid):
    with pytest.raises(QamError, match="joint_effort"):
        humanoid.apply({"joint_effort": {"effort": np.zeros(8)}})


def test_a_humanoid_that_lies_has_not_fallen_for_good(humanoid):
    humanoid.reset(0)
    for _ in range(60):
        result = humanoid.step()  # no torque: it sinks to the floor
    assert humanoid.sensors()["head_pose"]["pose.position"][2] < 1.0
    assert not result.fallen
    assert not result.terminated


def test_resets_depend_on_the_seed_alone(humanoid):
    humanoid.reset(1)
    first = humanoid.observation()
    humanoid.act(np.ones(21))
    humanoid.step()
    humanoid.reset(2)
    assert not np.array_equal(first, humanoid.observation())
    humanoid.reset(1)
    np.testing.assert_array_equal(first, humanoid.observation())


def test_its_joints_and_nothing_else_are_watched_for_frozen_sensors(robot):
    (watch,) = guard_config(robot).watches
    assert watch.topic == "joint_states"
    where = robot.observation_slices["joint_position"]
    assert list(watch.indices) == list(range(where.start, where.stop))


@pytest.mark.parametrize(
    ("maze", "steps"), [("medium", 2000), ("large", 2000), ("giant", 4000)]
)
def test_length_and_labels_of_every_task_are_the_environments_own(maze, steps):
    for task in range(1, 6):
        world = make_world(f"humanoidmaze-{maze}", task)
        assert world.max_episode_steps == steps
        world.reset(0)
        qpos = np.zeros((3, 28), dtype=np.float32)
        offsets = np.array([[0.0, 0.0], [0.49, 0.0], [0.0, 0.51]])
        qpos[:, :2] = np.array(world.environment.cur_goal_xy) + offsets
        rewards, masks = label(world.name, task, {"qpos": qpos})
        paid = []
        for row in qpos:
            world.environment.set_xy(row[:2])
            paid.append(world.environment.step(np.zeros(21))[1])
        np.testing.assert_array_equal(rewards, paid)
        np.testing.assert_array_equal(rewards, [0.0, 0.0, -1.0])
        np.testing.assert_array_equal(masks, [0.0, 0.0, 1.0])


def test_a_published_file_is_imported_as_it_is_and_labelled_for_each_task(
    humanoid, tmp_path
):
    arrays = published(humanoid, rows=40, segment=20)
    places = []
    for task in range(1, 6):
        world = make_world("humanoidmaze-medium", task)
        world.reset(0)
        places.append(world.environment.cur_goal_xy)
    arrays["qpos"][:5, :2] = places  # row k lies in the goal of task k + 1
    file = tmp_path / "humanoidmaze-medium-navigate-v0.npz"
    np.savez_compressed(file, **arrays)
    kept = ~arrays["terminals"]
    for task in range(1, 6):
        import_npz([file], tmp_path / f"{task}", task=task)
        dataset = read_dataset(tmp_path / f"{task}")
        for name in ("observations", "actions"):
            values = getattr(dataset, name)
            np.testing.assert_array_equal(values, arrays[name][kept])
        ends = arrays["observations"][~kept]
        np.testing.assert_array_equal(dataset.end_observations, ends)
        distances = np.linalg.norm(arrays["qpos"][kept, :2] - places[task - 1], axis=1)
        near = distances <= 0.5
        assert near[task - 1]
        np.testing.assert_array_equal(dataset.masks == 0, near)
        np.testing.assert_array_equal(dataset.rewards, near - 1.0)


@pytest.mark.parametrize(
    "chosen",
    [
        ["--preset", "humanoidmaze-medium-navigate"],
        ["--world", "humanoidmaze-giant", "--recipe", "navigate"],
        ["--world", "humanoidmaze-large"],
    ],
)
def test_data_cannot_be_generated_and_the_error_says_where_to_get_them(
    chosen, tmp_path
):
    message = "no expert for robot 'humanoid'; import the published files"
    with pytest.raises(ConfigError, match=message):
        data(["generate", str(tmp_path / "out"), *chosen])
    assert not list(tmp_path.iterdir())
