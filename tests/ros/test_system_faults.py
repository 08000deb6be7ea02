# SPDX-License-Identifier: Apache-2.0
"""A robot in real time and everything that goes wrong with it; recorded all the while."""

import signal
import subprocess

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: run make setup")
pytest.importorskip("qam_msgs.msg", reason="needs qam_msgs, built by `make setup`")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from std_msgs.msg import Bool
from std_srvs.srv import Trigger
from system import MOVING, NOBODY, check_exactly_once, keys, run_system

from qam_ros.contract.artifact import read_artifact
from qam_ros.contract.conversion import from_transitions
from qam_ros.contract.dataset import read_dataset
from qam_ros.contract.messages import HumanAction, PolicyStatus, PolicyUpdate
from qam_ros.contract.transition import ActionSource, GuardMode
from qam_ros.contract.weights import encode_weights
from qam_ros.nodes import qos
from qam_ros.runtime.bringup import find_executable
from qam_ros.runtime.recording import import_bag
from qam_ros.runtime.sampler import OnnxSampler
from qam_ros.runtime.update_parts import GOLDEN_NAME, split_update

PERIOD_S = 0.1
MAX_AGE_S = 0.3
BUSY_S = 0.25  # what a busy machine may add to a deadline
FAR = 120  # step up to which the base is seconds away from the end of its episode


@pytest.fixture(scope="module")
def running(tmp_path_factory, maze_policy):
    folder = tmp_path_factory.mktemp("faults") / "run"
    words = [f"artifact:={maze_policy}", "pace:=realtime", "record:=true"]
    with run_system(folder, "mobile_base", "mobile_base", *words) as system:
        system.commands = system.graph.collect(TwistStamped, "cmd_vel", 100)
        yield system


@pytest.fixture
def robot(running):
    """The running robot, moving, well inside an episode."""
    running.until_moving()
    running.expect(lambda: running.moves() and running.reports[-1].step < FAR, "motion")
    return running


def velocities(system, since_ns):
    """Commands stamped later than a time: (n, 2)."""
    from qam_ros.nodes.convert import from_time

    late = [m for m in system.commands if from_time(m.header.stamp) > since_ns]
    return np.array([(m.twist.linear.x, m.twist.linear.y) for m in late])


def stopped(system, begin):
    """Guard reports from an index on, once a stop is among them."""
    modes = (GuardMode.SAFE_STOP, GuardMode.ESTOP)
    system.expect(lambda: any(r.mode in modes for r in system.after(begin)), "a stop")
    return system.after(begin)


def check_at_rest(system, seconds=0.5):
    """The base is told to stand still, and the guard reports no motion."""
    begin, stop_ns = len(system.reports), system.reports[-1].stamp_ns
    system.graph.spin(seconds)
    assert not velocities(system, stop_ns).any()
    assert not any(report.mode in MOVING for report in system.after(begin))
    return system.after(begin)


def test_emergency_stop_latches_until_released_and_reset(robot):
    press = robot.graph.publisher(Bool, "estop", peers=1)
    begin = len(robot.reports)
    press.publish(Bool(data=True))
    reports = stopped(robot, begin)
    assert reports[-1].mode == GuardMode.ESTOP
    assert reports[-1].masked
    answer = robot.graph.call(Trigger, "guard/reset")
    assert not answer.success
    assert "release" in answer.message
    press.publish(Bool(data=False))
    assert all(r.mode == GuardMode.ESTOP for r in check_at_rest(robot))
    assert robot.graph.call(Trigger, "guard/reset").success
    robot.expect(robot.moves, "motion after the reset")


def test_a_person_who_takes_over_is_named_in_every_row(robot):
    send = robot.talk(HumanAction, "human_action", qos.STOP_IN)
    action = np.array([0.25, -0.5], dtype=np.float32)
    begin = len(robot.reports)

    def driven():
        send(HumanAction(robot.reports[-1].stamp_ns, True, "joystick", action))
        return [r for r in robot.after(begin) if r.source == ActionSource.HUMAN]

    robot.expect(lambda: len(driven()) >= 5, "ticks of a person")
    human = driven()
    assert all(np.array_equal(report.executed, action) for report in human)
    send(HumanAction(robot.reports[-1].stamp_ns, False, "joystick", action))
    seqs = {report.seq for report in human if report.is_row}

    def rows():
        found = robot.rows()
        return found[np.isin(found["seq"], list(seqs))]

    robot.expect(lambda: len(rows()) == len(seqs), "the rows")
    assert set(rows()["source"]) == {ActionSource.HUMAN}
    assert np.array_equal(rows()["executed"], np.tile(action, (len(seqs), 1)))
    assert not np.array_equal(rows()["proposed"], rows()["executed"])
    assert not rows()["masked"].any()
    robot.expect(lambda: robot.reports[-1].source == ActionSource.POLICY, "the policy")


def test_without_policy_it_holds_then_stops_on_the_third_missing_tick(robot):
    begin = len(robot.reports) - 1
    session = robot.reports[-1].policy_session
    robot.kill("policy")
    reports = stopped(robot, begin)
    last = max(i for i, r in enumerate(reports) if r.mode in MOVING)
    after = [report.mode for report in reports[last + 1 :]]
    assert after[:3] == [GuardMode.HOLD, GuardMode.HOLD, GuardMode.SAFE_STOP]
    sent = velocities(robot, reports[last].observation_stamp_ns - 1)[:3]
    assert len(sent) == 3
    assert (sent == sent[0]).all(), "holding repeats the command"

    def proposes():
        return robot.reports[-1].policy_session not in (session, NOBODY)

    robot.expect(proposes, "proposals of the new policy", 60)
    begin = len(robot.reports)

    def rows():
        return sum(report.is_row for report in robot.after(begin))

    # Its first proposals are without observation: the sensors have yet to find the new process.
    robot.expect(lambda: rows() >= 3, "proposals with an observation")
    check_at_rest(robot)
    rest = robot.after(begin)
    assert {report.mode for report in rest} == {GuardMode.SAFE_STOP}, "nobody moves"
    assert robot.graph.call(Trigger, "guard/reset").success
    robot.expect(robot.moves, "motion after the reset")
    assert robot.processes()["policy"]["restarts"] == 1


def test_silent_sensors_lead_to_a_stop_within_their_age_and_three_periods(robot):
    begin = len(robot.reports) - 1
    robot.send("plant", signal.SIGSTOP)
    try:
        reports = stopped(robot, begin)
    finally:
        robot.send("plant", signal.SIGCONT)
    stop = next(r for r in reports if r.mode == GuardMode.SAFE_STOP)
    seen_ns = max(report.observation_stamp_ns for report in reports)
    waited_s = (stop.stamp_ns - seen_ns) * 1e-9
    assert waited_s <= MAX_AGE_S + 3 * PERIOD_S + BUSY_S
    modes = [report.mode for report in reports[: reports.index(stop) + 1]]
    assert modes[-3:] == [GuardMode.HOLD, GuardMode.HOLD, GuardMode.SAFE_STOP]


class Offers:
    """Updates of the artifact's weights, offered to the running policy."""

    def __init__(self, robot, path):
        self.artifact = read_artifact(path)
        self.robot = robot
        self.statuses = robot.listen(PolicyStatus, "policy_status", qos.STATUS)
        self.diagnostics = robot.graph.collect(DiagnosticArray, "/diagnostics", 100)
        self.send = robot.talk(PolicyUpdate, "policy_update", qos.UPDATE)

    def offer(self, version, weights, golden=None):
        """Send an update; returns the verdict on it."""
        if golden is None:
            sampler = OnnxSampler(self.artifact)
            sampler.set_weights(weights)
            probes = self.artifact.golden
            golden = sampler.sample_all(probes.observations, probes.noise)
        blob = encode_weights({**weights, GOLDEN_NAME: golden})
        parts = split_update(
            blob, run_id="test", version=version, parent_version=1, part_bytes=8192
        )
        for part in parts:
            self.send(part)
        self.robot.expect(
            lambda: any(s.offered_version == version for s in self.statuses), "verdict"
        )
        return next(s for s in self.statuses if s.offered_version == version)

    def refusal(self):
        """The last refusal in the policy's diagnostics."""
        found = [
            item.value
            for message in self.diagnostics
            for status in message.status
            if status.name == "/policy"
            for item in status.values
            if item.key == "last refusal"
        ]
        return found[-1] if found else ""


def test_bad_weights_are_refused_and_good_ones_run_and_roll_back(robot, maze_policy):
    offers = Offers(robot, maze_policy)
    weights = offers.artifact.weights
    name = next(name for name in weights if name.endswith("weight"))
    broken = {**weights, name: np.full_like(weights[name], np.nan)}
    scaled = {**weights, name: weights[name] * np.float32(1.01)}
    verdicts = [
        offers.offer(2, broken, offers.artifact.golden.chunks),
        offers.offer(3, scaled, offers.artifact.golden.chunks),
    ]
    for verdict, words in zip(verdicts, ("NaN", "golden chunks"), strict=True):
        assert not verdict.accepted
        assert words in verdict.reason
        assert verdict.running_version == 1
    robot.expect(lambda: verdicts[1].reason in offers.refusal(), "diagnostics")

    good = offers.offer(4, scaled)
    assert good.accepted, good.reason
    assert (good.running_version, good.refused) == (4, 2)

    def ran():
        rows = robot.rows()
        return rows[rows["policy_version"] == 4]

    robot.expect(lambda: len(ran()) >= 3, "rows of the new version")
    assert ran()["chunk_index"][0] == 0, "a swap waits for the end of a chunk"
    versions = robot.rows()["policy_version"]
    assert set(versions.tolist()) == {1, 4}, "refused weights never ran"

    assert robot.graph.call(Trigger, "policy/rollback").success
    last = lambda: robot.rows()["policy_version"][-1]  # noqa: E731
    robot.expect(lambda: last() == 1, "rows of the old version")


def data(*words):
    """Run `qam data`."""
    command = [find_executable("qam"), "data", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_recording_survives_kill_9_and_becomes_the_streamed_dataset(robot, tmp_path):
    robot.expect(lambda: len(robot.rows()) > 30, "rows")
    second_ago = set(keys(robot.rows()))
    robot.graph.spin(1.0)
    robot.kill("stream")
    count = len(robot.rows())
    robot.expect(lambda: len(robot.rows()) >= count + 5, "rows of the new stream")
    assert robot.stop() == 0, robot.text()
    assert robot.left() == []

    rows = np.sort(robot.rows(), order="seq")
    check_exactly_once(robot.executed(), rows)
    bags = [robot.folder / "bag", robot.folder / "bag_1"]
    data("recover", bags[0])
    kept = [import_bag(bag, robot.interface) for bag in bags]
    assert second_ago <= set(keys(kept[0])), "at most a second is lost"
    recorded = np.sort(np.concatenate(kept), order="seq")
    assert recorded.tobytes() == rows.tobytes(), "the next bag goes on"
    for number, bag in enumerate(bags):
        folder = tmp_path / f"dataset_{number}"
        data("import", bag, "--output", folder)
        expected = from_transitions(kept[number], robot.interface)
        imported = read_dataset(folder, robot.interface)
        for name in ("observations", "actions", "rewards", "masks", "terminals"):
            found, wanted = getattr(imported, name), getattr(expected, name)
            assert found.tobytes() == wanted.tobytes(), name
        assert imported.valid.tobytes() == expected.valid.tobytes()
        assert imported.extras["seq"].tolist() == sorted(kept[number]["seq"])
