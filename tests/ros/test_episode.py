# SPDX-License-Identifier: Apache-2.0
"""An operator in the plant's place, over DDS: the rows come out complete."""

import importlib.util
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: run make setup")
pytest.importorskip("qam_msgs.msg", reason="needs qam_msgs, built by `make setup`")

from std_srvs.srv import Trigger
from system import check_exactly_once, run_system

from qam_ros.contract.interface import load_interface
from qam_ros.contract.messages import (
    ActionProposal,
    EpisodeEvent,
    EpisodeKind,
    GuardReport,
    StepReward,
)
from qam_ros.nodes import qos
from qam_ros.nodes.convert import from_ros, ros_type, to_ros
from qam_ros.runtime.bringup import find_executable
from qam_ros.runtime.child import Child
from qam_ros.runtime.store import TransitionStore

SCRIPT = Path(__file__).parents[1] / "unit" / "stream" / "conftest.py"
BASE = load_interface("mobile_base")
STEPS = 20


class Operated:
    """The scripted robot of the unit tests, with stamps of now, and what is said about episodes."""

    def __init__(self, graph):
        spec = importlib.util.spec_from_file_location("episode_script", SCRIPT)
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        self.graph, self.robot = graph, script.Robot(BASE)
        self.proposals = self.publisher(ActionProposal, "action_proposal")
        self.reports = self.publisher(GuardReport, "guard_report")
        self.rewards = graph.collect(ros_type(StepReward), "step_reward", qos.HISTORY)
        self.events = graph.collect(
            ros_type(EpisodeEvent), "episode_event", qos.HISTORY
        )

    def publisher(self, kind, topic):
        # The stream node and the episode node.
        return self.graph.publisher(ros_type(kind), topic, qos.HISTORY, peers=2)

    def now_ns(self):
        return self.graph.node.get_clock().now().nanoseconds

    def tick(self, step=0, *, idle=False):
        """One control period; the robot's clock runs ahead of the wall, never behind."""
        robot = self.robot
        late = (self.now_ns() - robot.now_ns) // robot.period_ns
        robot.now_ns += max(0, late + 1) * robot.period_ns  # in phase, as a driver is
        proposal = robot.proposal(step, idle=idle)
        self.proposals.publish(to_ros(proposal))
        self.reports.publish(to_ros(robot.report(proposal, step, is_row=not idle)))
        self.graph.spin(0.01)
        robot.now_ns += robot.period_ns
        return proposal

    def event(self, kind):
        """The newest event, once it is of this kind."""
        assert self.graph.wait(lambda: self.events and self.events[-1].kind == kind)
        return from_ros(self.events[-1], EpisodeEvent)

    def start(self):
        """Start an episode; the robot's next observation is its first."""
        self.tick(idle=True)
        assert self.graph.wait(
            lambda: self.graph.call(Trigger, "episode/start").success
        )
        self.robot.episode_id = self.event(EpisodeKind.START).episode


@pytest.fixture
def operated(graph, spawn, tmp_path):
    spawn("stream_node", {"robot": "mobile_base", "run_dir": str(tmp_path)})
    spawn("episode_node", {"robot": "mobile_base"})
    return Operated(graph)


def stored(operated, folder, count):
    """Rows of the spool, once there are so many."""
    with TransitionStore(folder / "spool.sqlite", BASE) as spool:
        assert operated.graph.wait(lambda: spool.last_position >= count, 20.0)
        return spool.read(0, 1000)[1]


def test_rows_that_an_operator_labels_are_complete(operated, tmp_path):
    for verdict in ("success", "failure"):
        operated.start()
        for step in range(STEPS):
            operated.tick(step)
        answer = operated.graph.call(Trigger, f"episode/{verdict}")
        assert answer.success
        assert f"{STEPS} rows labelled" in answer.message
        end = operated.event(EpisodeKind.END)
        assert (end.steps, end.success) == (STEPS, verdict == "success")
        operated.tick(STEPS, idle=True)
    rows = stored(operated, tmp_path, 2 * STEPS)
    assert rows.size == 2 * STEPS
    assert not rows["masked"].any()
    last = [STEPS - 1, 2 * STEPS - 1]
    assert np.flatnonzero(rows["has_next"]).tolist() == last
    assert np.flatnonzero(rows["terminated"]).tolist() == last[:1]
    assert np.flatnonzero(rows["truncated"]).tolist() == last[1:]
    assert np.flatnonzero(rows["reward"] != -1.0).tolist() == last[:1]


def test_the_command_speaks_for_the_operator(operated):
    def qam(verb):
        words = [find_executable("qam"), "episode", verb]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    refused = qam("success")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "no episode runs" in refused.stderr
    operated.tick(idle=True)
    operated.start()
    aborted = qam("abort")
    assert (aborted.returncode, aborted.stderr) == (0, "")
    assert operated.event(EpisodeKind.ABORT).episode == operated.robot.episode_id


def test_an_episode_does_not_outlive_its_operator_node(graph, spawn, tmp_path):
    spawn("stream_node", {"robot": "mobile_base", "run_dir": str(tmp_path)})
    node = spawn("episode_node", {"robot": "mobile_base"})
    operated = Operated(graph)
    operated.start()
    operated.tick(0)
    assert node.stop() == 0
    assert operated.event(EpisodeKind.ABORT).steps == 1


@pytest.fixture(scope="module")
def system(tmp_path_factory, base_artifact):
    """Stream, guard and policy in real time, an operator, and a plant that nobody lets speak."""
    folder = tmp_path_factory.mktemp("operator") / "run"
    words = ["policy", "robot:=mobile_base", "overlay:="]
    words += [f"artifact:={base_artifact}", "dry_run:=false", "episodes:=operator"]
    with run_system(folder, "mobile_base", *words) as system:
        unheard = ["-r", "episode_event:=own_event", "-r", "step_reward:=own_reward"]
        settings = ["-p", "world:=pointmaze-medium", "-p", "pace:=realtime"]
        command = [find_executable("plant_node"), "--ros-args", *unheard, *settings]
        system.nodes.append(Child(command, folder.with_suffix(".plant"), os.environ))
        yield system


def test_a_robot_in_real_time_moves_and_learns_by_its_operator_alone(system):
    called = system.graph.call
    events = system.listen(EpisodeEvent, "episode_event")
    system.expect(
        lambda: events or called(Trigger, "episode/start").success, "a start", 60.0
    )
    system.expect(system.moves, "motion")
    system.expect(lambda: sum(r.is_row for r in system.reports) >= 25, "rows")
    assert called(Trigger, "episode/success").success
    system.expect(lambda: not system.reports[-1].is_row, "the end of the rows")
    assert system.stop() == 0
    rows = np.sort(system.rows(), order="seq")  # a row that waits is passed by others
    check_exactly_once(system.executed(), rows)
    assert rows["terminated"].tolist() == [0] * (rows.size - 1) + [1]
    assert rows["reward"].tolist() == [-1.0] * (rows.size - 1) + [0.0]
    assert rows["has_next"][-1]
    reports = [r for r in system.reports if r.is_row]
    held = sum(r.masked for r in reports)
    # On a loaded machine a period may pass without an observation: the row before it has no next.
    periods = np.diff([r.observation_stamp_ns for r in reports]) * 1e-9
    gaps = np.abs(periods / BASE.control_period_s - 1) >= 0.5
    assert int(rows["masked"].sum()) <= held + int(gaps.sum())
