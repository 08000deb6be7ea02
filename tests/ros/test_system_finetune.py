# SPDX-License-Identifier: Apache-2.0
"""The whole loop over DDS in lockstep: what the guard executed is what the learner's replay holds."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: run make setup")
pytest.importorskip("qam_msgs.msg", reason="needs qam_msgs, built by `make setup`")
pytest.importorskip("torch", reason="needs torch: run make setup")

from policies import random_start
from system import check_exactly_once, run_system

from qam_ros.contract.messages import LearnerStatus, PolicyStatus
from qam_ros.nodes import qos

STEPS = 60
EPISODES = 6
LEARNER = {
    "online_steps": STEPS * EPISODES,
    "start_rows": 40,
    "utd": 0.5,
    "window": 40,
    "offer_every": 30,
    "checkpoint_every": 30,
    "log_every": 10,
    "reoffer_s": 1.0,
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return random_start(tmp_path_factory.mktemp("start"), "ur5e_2f85", LEARNER)


class Watched:
    """A loop with the statuses of learner and policy."""

    def __init__(self, system):
        self.system = system
        self.learner = system.listen(LearnerStatus, "learner_status", qos.STATUS)
        self.policy = system.listen(PolicyStatus, "policy_status", qos.STATUS)

    @property
    def swaps(self):
        return self.policy[-1].swaps if self.policy else 0


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory):
    """A loop that played its episodes undisturbed and ended by itself."""
    folder = tmp_path_factory.mktemp("loop") / "run"
    words = [f"max_episode_steps:={STEPS}", f"episodes:={EPISODES}", *start.words()]
    with run_system(folder, "ur5e_2f85", "sim_finetune", *words) as system:
        loop = Watched(system)
        loop.code = system.finish(100.0)
        loop.left = system.left()
    return loop


def test_the_loop_ends_by_itself_and_leaves_no_process(finished):
    assert finished.code == 0, finished.system.text()
    assert finished.left == []


def test_what_was_executed_is_in_replay_exactly_once(finished):
    system = finished.system
    replay = system.rows("replay.sqlite")
    assert len(replay) == STEPS * EPISODES
    check_exactly_once(system.executed(), replay)
    assert replay.tobytes() == system.rows("spool.sqlite").tobytes()
    assert not replay["masked"].any()
    assert np.array_equal(replay["executed"], np.clip(replay["proposed"], -1, 1))


def test_new_versions_ran_and_every_row_knows_its_own(finished):
    rows = np.sort(finished.system.rows("replay.sqlite"), order="seq")
    versions = rows["policy_version"].astype(int)
    assert versions[0] == 1
    assert len(set(versions)) >= 3, "at least two swaps inside the rows"
    assert (np.diff(versions) >= 0).all()
    for chunk in set(rows["chunk_id"].tolist()):
        mine = rows[rows["chunk_id"] == chunk]
        assert len(set(mine["policy_version"])) == 1
        assert mine["chunk_index"].tolist() == list(range(len(mine)))


def test_the_credit_kept_the_robot_near_the_updates(finished):
    last = finished.learner[-1]
    assert last.rows == STEPS * EPISODES
    for status in finished.learner:
        assert status.rows <= status.allowed_steps
    assert last.updates > 0


def test_killed_learner_and_killed_stream_lose_nothing_and_repeat_nothing(
    start, tmp_path
):
    words = ["sim_finetune", f"max_episode_steps:={STEPS}", *start.words()]
    with run_system(tmp_path / "run", "ur5e_2f85", *words) as system:
        loop = Watched(system)
        system.expect(lambda: loop.swaps >= 1, "a swap", 60.0)

        system.expect(lambda: loop.learner, "the learner's heartbeat")
        before, updates = len(system.reports), loop.learner[-1].updates
        system.kill("learner")
        loop.learner.clear()
        system.expect(lambda: loop.learner, "the learner's heartbeat", 60.0)
        assert len(system.reports) > before + 10, "the robot goes on without a learner"
        system.expect(lambda: loop.learner[-1].updates > updates, "updates again", 60.0)

        rows = loop.learner[-1].rows
        system.kill("stream")
        system.expect(lambda: loop.learner[-1].rows > rows, "rows again", 60.0)

        system.expect(lambda: loop.learner[-1].finished, "the last verdict", 60.0)
        assert system.stop() == 0, system.text()
        assert system.left() == []
        replay = system.rows("replay.sqlite")
        check_exactly_once(system.executed(), replay)
        assert loop.learner[-1].rows <= len(replay)
        assert {entry["restarts"] for entry in system.processes().values()} == {0, 1}
