# SPDX-License-Identifier: Apache-2.0
"""A robot whose plant is not part of the bringup: one sensor that fails, and a dry run."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: run make setup")
pytest.importorskip("qam_msgs.msg", reason="needs qam_msgs, built by `make setup`")

from geometry_msgs.msg import PoseStamped
from policies import random_start
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from system import MOVING, check_exactly_once, run_system

from qam_ros.contract.transition import GuardMode, LimitBit
from qam_ros.nodes import qos
from qam_ros.nodes.convert import from_time

PERIOD_NS = 50_000_000
MAX_AGE_NS = 150_000_000
OVERLAY = """\
format_version: 1
overlay_of: ur5e_2f85
observation:
  joint_position: {source: {topic: joint_states_passed_on}}
  joint_velocity: {source: {topic: joint_states_passed_on}}
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return random_start(tmp_path_factory.mktemp("start"), "ur5e_2f85", {}).artifact


class Cable:
    """Passes joint states on: as they are, not at all, or always the same with new stamps."""

    def __init__(self, graph):
        self.state = "good"
        self.last_good_ns = 0
        self._kept = None
        self._out = graph.node.create_publisher(
            JointState, "joint_states_passed_on", qos.SENSOR_OUT
        )
        graph.node.create_subscription(
            JointState, "joint_states", self._pass, qos.LOCKSTEP_IN
        )

    def _pass(self, message):
        if self.state == "silent":
            return
        if self.state == "frozen":
            self._kept.header = message.header
            message = self._kept
        else:
            self._kept = message
            self.last_good_ns = from_time(message.header.stamp)
        self._out.publish(message)


@pytest.fixture(scope="module")
def wired(tmp_path_factory, artifact):
    """A robot in lockstep with a plant of its own and a cable between them."""
    folder = tmp_path_factory.mktemp("wired")
    overlay = folder / "overlay.yaml"
    overlay.write_text(OVERLAY)
    words = [f"artifact:={artifact}", f"overlay:={overlay}"]
    words += ["use_sim_time:=true", "dry_run:=false"]
    with run_system(folder / "run", "ur5e_2f85", "policy", *words) as system:
        system.cable = Cable(system.graph)
        system.targets = system.graph.collect(PoseStamped, "target_pose", 100)
        system.poses = system.graph.collect(PoseStamped, "effector_pose", 100)
        system.add("plant_node", world="cube-single", command_timeout_s=0.3)
        system.until_moving()
        yield system


@pytest.fixture
def robot(wired):
    """The wired robot, moving."""
    wired.cable.state = "good"
    wired.until_moving()
    return wired


def stop_by(robot, state):
    """Let the cable fail; reports from the last motion to the stop."""
    begin = len(robot.reports)
    robot.cable.state = state
    robot.expect(
        lambda: any(r.mode == GuardMode.SAFE_STOP for r in robot.after(begin)), "a stop"
    )
    reports = robot.after(begin - 1)
    modes = [report.mode for report in reports]
    end = modes.index(GuardMode.SAFE_STOP)
    first = max((i for i in range(end) if modes[i] in MOVING), default=0)
    return reports[first : end + 1]


@pytest.mark.parametrize(
    ("state", "bit"), [("silent", LimitBit.MISSING), ("frozen", LimitBit.FROZEN)]
)
def test_one_failing_sensor_leads_to_hold_and_then_the_safe_action(robot, state, bit):
    reports = stop_by(robot, state)
    last_good_ns, stop = robot.cable.last_good_ns, reports[-1]
    modes = [report.mode for report in reports[1:]]
    assert modes == [GuardMode.HOLD, GuardMode.HOLD, GuardMode.SAFE_STOP]
    assert all(report.limit_bits & bit for report in reports[1:])
    assert all(report.masked for report in reports[1:])
    assert stop.stamp_ns - last_good_ns <= MAX_AGE_NS + 3 * PERIOD_NS

    targets, poses = len(robot.targets), len(robot.poses)
    robot.expect(lambda: len(robot.poses) > poses + 10, "the world goes on")
    held = [target.pose for target in robot.targets[targets:]]
    assert held
    assert all(pose == held[0] for pose in held), "the target is repeated"
    heights = [message.pose.position.z for message in robot.poses[poses:]]
    assert max(heights) - min(heights) < 0.05, "a held arm does not sink"

    robot.cable.state = "good"
    before = len(robot.reports)
    robot.expect(lambda: any(r.is_row for r in robot.after(before)), "good ticks")
    assert not any(r.mode in MOVING for r in robot.after(before)), "without reset"
    assert robot.graph.call(Trigger, "guard/reset").success
    robot.expect(robot.moves, "motion after the reset")
    assert GuardMode.RAMP in {report.mode for report in robot.after(before)}


def test_a_dry_run_reports_what_it_would_do_and_commands_nothing(
    artifact, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("dry") / "run"
    words = ["policy", f"artifact:={artifact}", "use_sim_time:=true"]
    with run_system(folder, "ur5e_2f85", *words) as system:
        # Nobody commands, so every step takes this long.
        system.add("plant_node", world="cube-single", command_timeout_s=0.2)
        system.expect(
            lambda: sum(r.mode == GuardMode.DRY_RUN for r in system.reports) >= 10,
            "ticks of a dry run",
        )
        for topic in ("target_pose", "gripper_command"):
            assert system.graph.node.count_publishers(topic) == 0
        assert system.stop() == 0, system.text()
        dry = [r for r in system.reports if r.mode == GuardMode.DRY_RUN]
        assert all(report.masked and report.executed.size == 0 for report in dry)
        rows = system.rows()
        check_exactly_once(system.executed(), rows)
        assert rows["masked"].all()
        assert np.isfinite(rows["proposed"]).all()
        assert rows["proposed"].any()
