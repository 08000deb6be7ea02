# SPDX-License-Identifier: Apache-2.0
"""The second robot over DDS, whole: Odometry in, TwistStamped or Twist out, to the goal of the maze."""

import csv

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: run make setup")
pytest.importorskip("qam_msgs.msg", reason="needs qam_msgs, built by `make setup`")

from system import check_exactly_once, run_system

from qam_ros.contract.transition import GuardMode
from qam_ros.runtime.timing import read_timing


@pytest.fixture(scope="module", params=["TwistStamped", "Twist"])
def finished(request, tmp_path_factory, maze_policy):
    """A graph that played two episodes in lockstep and ended by itself, and the commands seen."""
    from geometry_msgs import msg

    overlay = ["overlay:=mobile_base.twist"] if request.param == "Twist" else []
    folder = tmp_path_factory.mktemp(request.param) / "run"
    words = ["mobile_base", f"artifact:={maze_policy}", "episodes:=2", *overlay]
    with run_system(folder, "mobile_base", *words) as system:
        kind = getattr(msg, request.param)
        commands = system.graph.collect(kind, "cmd_vel", 4096)
        code = system.finish(60.0)
        left = system.left()
    return system, code, left, commands


def test_it_ends_by_itself_and_leaves_no_process(finished):
    system, code, left, _ = finished
    assert code == 0, system.text()
    assert left == []


def test_the_cloned_policy_reaches_the_goal_about_as_fast_as_the_script(finished):
    system = finished[0]
    with (system.folder / "episodes.csv").open() as file:
        episodes = list(csv.DictReader(file))
    assert [row["success"] for row in episodes] == ["1", "1"]
    # The script takes 167 to 184 steps; the world's own limit is 1000.
    assert all(150 < int(row["steps"]) < 300 for row in episodes)


def test_every_step_of_the_world_got_its_command(finished):
    timing = read_timing(finished[0].folder / "plant_timing.npz")
    steps, missing = timing["stamp_ns"].size, int(timing["timeouts"][0])
    assert steps > 300
    assert missing <= 3  # half a second each: a busy machine may miss one now and then


def test_every_executed_row_is_stored_once_and_follows_the_proposal(finished):
    system = finished[0]
    rows = system.rows()
    check_exactly_once(system.executed(), rows)
    assert not rows["masked"].any()
    assert set(rows["guard_mode"]) == {GuardMode.ACTIVE}
    assert np.array_equal(rows["executed"], np.clip(rows["proposed"], -1, 1))
    assert rows["terminated"].sum() == rows["has_next"].sum() == 2


def test_the_base_went_where_it_was_told_to(finished):
    rows = finished[0].rows()
    goes_on = ~rows["has_next"].astype(bool)
    moved = np.diff(rows["observation"], axis=0)[goes_on[:-1]]
    wanted = 0.2 * rows["executed"][:-1][goes_on[:-1]]  # 2 m/s for 0.1 s
    free = np.linalg.norm(moved - wanted, axis=1) < 1e-5
    assert free.mean() > 0.8  # the walls of the maze stop it now and then


def test_the_commands_on_the_topic_are_the_executed_actions(finished):
    system, _, _, commands = finished
    twists = [getattr(message, "twist", message) for message in commands]
    seen = {tuple(np.float32([t.linear.x, t.linear.y])) for t in twists}
    executed = {tuple(2 * row) for row in system.rows()["executed"]}
    assert len(seen) > 20  # the publisher keeps one: a slow observer misses some
    assert seen <= executed | {(0.0, 0.0)}
