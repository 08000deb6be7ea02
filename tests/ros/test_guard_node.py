# SPDX-License-Identifier: Apache-2.0
"""The guard process over DDS: topics, lifecycle, stops, files, end."""

import os
import signal
import subprocess
import time

import numpy as np
import pytest

from qam_ros.contract.interface import load_interface
from qam_ros.contract.messages import (
    ActionProposal,
    EpisodeEvent,
    EpisodeKind,
    GuardReport,
)
from qam_ros.contract.transition import GuardMode
from qam_ros.runtime.bringup import find_executable
from qam_ros.runtime.guard_log import executed_keys, read_guard_log
from qam_ros.runtime.timing import read_timing

INTERFACE = load_interface("ur5e_2f85")
PERIOD_NS = 50_000_000
ACTION = np.array([0.5, -0.5, 0.25, 0.5, 0.5], dtype=np.float32)
COMMANDING = {"robot": "ur5e_2f85", "dry_run": False, "ramp_s": 0.0}
POSE = {
    "pose.position": np.array([0.4, 0.0, 0.2]),
    "pose.orientation": np.array([1.0, 0.0, 0.0, 0.0]),
}


class Rig:
    """The rest of a robot's graph around one guard process."""

    def __init__(self, graph, *, clock):
        from qam_ros.nodes import qos
        from qam_ros.nodes.convert import from_ros, ros_type, to_ros
        from qam_ros.nodes.sensors import command_codecs, sensor_codecs

        self.graph, self.to_ros = graph, to_ros
        self.k, self.number = -1, 0
        self.reports, self.commands = [], []
        node = graph.node
        node.create_subscription(
            ros_type(GuardReport),
            "guard_report",
            lambda message: self.reports.append(from_ros(message, GuardReport)),
            qos.HISTORY,
        )
        self.target = command_codecs(INTERFACE)["target_pose"]
        node.create_subscription(
            self.target.message_type, "target_pose", self.commands.append, 10
        )
        codecs = sensor_codecs(INTERFACE)
        self.sensors = {
            topic: (
                codecs[topic],
                graph.publisher(
                    codecs[topic].message_type, topic, qos.SENSOR_OUT, peers=1
                ),
            )
            for topic in ("effector_pose", "gripper_state")
        }
        self.events = graph.publisher(
            ros_type(EpisodeEvent), "episode_event", qos.HISTORY, peers=1
        )
        self.proposals = graph.publisher(
            ros_type(ActionProposal), "action_proposal", qos.HISTORY, peers=1
        )
        self.clock = None
        if clock:
            from rosgraph_msgs.msg import Clock

            self.clock = graph.publisher(Clock, "/clock", qos.CLOCK_OUT, peers=1)

    def meet(self):
        """Idle ticks until the guard answers one: matched topics may still lose first messages."""
        assert self.graph.wait(self.answered)

    def answered(self):
        self.step([], wait=False)
        self.graph.spin(0.1)
        return any(any(report.policy_session) for report in self.reports)

    def start(self, episode=1):
        """Meet the guard, then announce an episode that begins with the next step."""
        self.meet()
        self.graph.spin(0.2)
        self.reports.clear()
        self.commands.clear()
        self.k += 1
        self.event(EpisodeKind.START, episode)
        self.first_ns = self.stamp_ns()
        self.k -= 1

    def stamp_ns(self):
        if self.clock is not None:
            return 10**9 + self.k * PERIOD_NS
        return self.graph.node.get_clock().now().nanoseconds

    def event(self, kind=EpisodeKind.START, episode=1, stamp_ns=None):
        stamp_ns = self.stamp_ns() if stamp_ns is None else stamp_ns
        event = EpisodeEvent(stamp_ns, episode, kind, False, False, False, 0, 0.0)
        self.events.publish(self.to_ros(event))

    def sense(self, stamp_ns):
        fields = {"effector_pose": POSE, "gripper_state": {"position": [0.5]}}
        for topic, (codec, publisher) in self.sensors.items():
            publisher.publish(codec.encode(stamp_ns, fields[topic]))

    def step(self, action=ACTION, *, propose=True, wait=True):
        """One step of the world; the guard's report on it."""
        from rosgraph_msgs.msg import Clock

        from qam_ros.nodes.convert import to_time

        self.k += 1
        stamp_ns = self.stamp_ns()
        if self.clock is not None:
            self.clock.publish(Clock(clock=to_time(stamp_ns)))
        self.sense(stamp_ns)
        before = len(self.reports)
        if propose:
            self.proposals.publish(self.to_ros(self.proposal(stamp_ns, action)))
        if wait:
            assert self.graph.wait(lambda: len(self.reports) > before, 5.0)
            return self.reports[-1]
        return None

    def proposal(self, stamp_ns, action):
        self.number += 1
        return ActionProposal(
            stamp_ns=stamp_ns,
            policy_session=b"p" * 16,
            tick=self.number,
            episode=1,
            step=self.number,
            observation=np.full(28, self.number, dtype=np.float32),
            ages_s=np.zeros(9, dtype=np.float32),
            action=np.asarray(action, dtype=np.float32),
            policy_version=1,
            chunk_id=0,
            chunk_index=0,
        )

    def mode(self):
        return GuardMode(self.reports[-1].mode)


@pytest.fixture
def lockstep(graph, spawn, tmp_path):
    process = spawn(
        "guard_node", {**COMMANDING, "use_sim_time": True, "run_dir": str(tmp_path)}
    )
    rig = Rig(graph, clock=True)
    rig.process = process
    rig.start()
    return rig


def test_commands_answer_the_observation_and_the_report_names_the_row(lockstep):
    reports = [lockstep.step() for _ in range(3)]
    assert [GuardMode(report.mode) for report in reports] == [GuardMode.ACTIVE] * 3
    assert [report.seq for report in reports] == [0, 1, 2]
    assert all(r.executed.tobytes() == ACTION.tobytes() for r in reports)
    assert lockstep.graph.wait(lambda: len(lockstep.commands) == 3)
    stamp_ns, fields = lockstep.target.decode(lockstep.commands[-1])
    assert stamp_ns == lockstep.first_ns + 2 * PERIOD_NS
    np.testing.assert_allclose(
        fields["pose.position"], POSE["pose.position"] + 0.05 * ACTION[:3]
    )


def test_missing_proposals_hold_then_stop_until_reset(lockstep):
    lockstep.step()
    target = None
    # a proposal is missing when the clock has gone past its tick, hence one more
    lockstep.step(propose=False, wait=False)
    modes = []
    for _ in range(4):
        modes.append(GuardMode(lockstep.step(propose=False).mode))
        target = lockstep.target.decode(lockstep.commands[-1])[1]["pose.position"]
    assert modes == [GuardMode.HOLD] * 2 + [GuardMode.SAFE_STOP] * 2
    np.testing.assert_allclose(target, POSE["pose.position"] + 0.05 * ACTION[:3])
    lockstep.step()
    assert lockstep.graph.wait(lambda: lockstep.reports[-1].is_row)
    assert lockstep.mode() == GuardMode.SAFE_STOP
    assert lockstep.reports[-1].masked
    done = subprocess.run(  # as an operator does where there is no ros2 command
        [find_executable("qam"), "reset"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "measured pose" in done.stdout
    assert lockstep.step().mode == GuardMode.ACTIVE


def test_emergency_stop_latches_and_ends_cleanly_with_its_files(lockstep, tmp_path):
    from std_msgs.msg import Bool
    from std_srvs.srv import Trigger

    from qam_ros.nodes import qos

    lockstep.step()
    stop = lockstep.graph.publisher(Bool, "estop", qos.STOP_IN, peers=1)
    stop.publish(Bool(data=True))
    lockstep.graph.spin(0.2)
    assert lockstep.step().mode == GuardMode.ESTOP
    answer = lockstep.graph.call(Trigger, "/guard/reset")
    assert not answer.success
    lockstep.event(EpisodeKind.END, stamp_ns=lockstep.first_ns + 10 * PERIOD_NS)
    lockstep.graph.spin(0.3)
    started = time.monotonic()
    assert lockstep.process.stop(signal.SIGTERM) == 0
    assert time.monotonic() - started < 1.0
    session = lockstep.reports[0].session
    keys = executed_keys(read_guard_log(tmp_path / "guard.log"))
    assert keys == {(session, 0), (session, 1)}
    assert len(read_timing(tmp_path / "guard_timing.npz")["tick_ns"]) > 2


def test_an_emergency_stop_from_before_the_guard_started_counts(graph, spawn):
    from std_msgs.msg import Bool
    from std_srvs.srv import Trigger

    from qam_ros.nodes import qos

    button = graph.publisher(Bool, "estop_state", qos.STATUS)
    button.publish(Bool(data=True))
    spawn("guard_node", {**COMMANDING, "use_sim_time": True})
    rig = Rig(graph, clock=True)
    rig.start()
    assert graph.wait(lambda: rig.step().mode == GuardMode.ESTOP)
    other = graph.publisher(Bool, "estop", qos.STOP_IN, peers=1)
    other.publish(Bool(data=False))  # another button does not release this one
    graph.spin(0.2)
    assert not graph.call(Trigger, "/guard/reset").success
    button.publish(Bool(data=False))
    graph.spin(0.2)
    assert graph.call(Trigger, "/guard/reset").success


def test_diagnostics_name_who_took_over(lockstep):
    from diagnostic_msgs.msg import DiagnosticArray

    from qam_ros.contract.messages import HumanAction
    from qam_ros.nodes import qos
    from qam_ros.nodes.convert import ros_type

    seen = lockstep.graph.collect(DiagnosticArray, "/diagnostics")
    send = lockstep.graph.publisher(
        ros_type(HumanAction), "human_action", qos.STOP_IN, peers=1
    )
    for takeover, expected in ((True, "joystick"), (False, "policy")):
        message = HumanAction(lockstep.stamp_ns(), takeover, "joystick", ACTION)
        send.publish(lockstep.to_ros(message))
        seen.clear()
        assert lockstep.graph.wait(
            lambda expected=expected: any(
                item.key == "driven by" and item.value == expected
                for message in seen
                for status in message.status
                for item in status.values
            )
        )


def test_malformed_messages_are_counted_and_the_guard_goes_on(lockstep):
    from diagnostic_msgs.msg import DiagnosticArray

    seen = lockstep.graph.collect(DiagnosticArray, "/diagnostics")
    lockstep.step()
    lockstep.event(7)
    lockstep.graph.spin(0.2)
    assert lockstep.step().mode == GuardMode.ACTIVE

    def counted():
        values = {
            item.key: item.value
            for message in seen
            for status in message.status
            for item in status.values
        }
        return values.get("malformed messages") == "1"

    assert lockstep.graph.wait(counted)


def test_silent_policy_stops_the_robot_in_real_time(graph, spawn):
    spawn("guard_node", COMMANDING)
    rig = Rig(graph, clock=False)
    rig.start()
    for _ in range(5):
        rig.step(wait=False)
        graph.spin(0.05)
    last = time.monotonic()
    assert rig.mode() == GuardMode.ACTIVE
    assert graph.wait(lambda: rig.mode() == GuardMode.SAFE_STOP, 2.0)
    # three periods and half a one of patience; the rest is for a busy machine
    assert time.monotonic() - last < 3.5 * 0.05 + 0.3
    modes = [GuardMode(report.mode) for report in rig.reports]
    assert modes.count(GuardMode.HOLD) == 2
    assert max(report.latency_ns for report in rig.reports) > 0


def test_dry_run_is_the_default_and_publishes_no_command(graph, spawn):
    spawn("guard_node", {"robot": "ur5e_2f85", "use_sim_time": True})
    rig = Rig(graph, clock=True)
    rig.start()
    reports = [rig.step() for _ in range(3)]
    assert {GuardMode(report.mode) for report in reports} == {GuardMode.DRY_RUN}
    assert reports[-1].executed.size == 0
    assert graph.node.count_publishers("target_pose") == 0


def test_lifecycle_only_an_active_guard_commands(graph, spawn):
    from lifecycle_msgs.msg import State, Transition
    from lifecycle_msgs.srv import ChangeState, GetState

    spawn("guard_node", {**COMMANDING, "use_sim_time": True, "autostart": False})

    def change(transition):
        request = ChangeState.Request(transition=Transition(id=transition))
        return graph.call(ChangeState, "/guard/change_state", request).success

    def state():
        return graph.call(GetState, "/guard/get_state").current_state.id

    assert state() == State.PRIMARY_STATE_UNCONFIGURED
    assert change(Transition.TRANSITION_CONFIGURE)
    assert state() == State.PRIMARY_STATE_INACTIVE
    rig = Rig(graph, clock=True)
    for _ in range(5):
        assert not rig.answered()
    assert change(Transition.TRANSITION_ACTIVATE)
    rig.start()
    assert rig.step().mode == GuardMode.ACTIVE
    change(Transition.TRANSITION_ACTIVATE)  # not possible now; must not end the guard
    assert rig.step().mode == GuardMode.ACTIVE
    assert change(Transition.TRANSITION_DEACTIVATE)
    seen = len(rig.reports)
    rig.step(wait=False)
    graph.spin(0.3)
    assert len(rig.reports) == seen
    assert change(Transition.TRANSITION_CLEANUP)
    assert graph.wait(lambda: graph.node.count_publishers("target_pose") == 0)
    assert change(Transition.TRANSITION_CONFIGURE)
    assert change(Transition.TRANSITION_ACTIVATE)
    assert state() == State.PRIMARY_STATE_ACTIVE


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"robot": "ur5"}, "unknown robot 'ur5'"),
        ({"robot": "ur5e_2f85", "ramp_s": 99.0}, "ramp_s"),
        ({"robot": "ur5e_2f85", "dry_run": "no"}, "dry_run"),
    ],
)
def test_wrong_parameters_end_the_process_with_a_message(spawn, parameters, words):
    process = spawn("guard_node", parameters)
    assert process.wait(20.0) == os.EX_CONFIG
    assert words in process.text()


def test_a_signal_right_after_the_start_ends_cleanly(spawn):
    process = spawn("guard_node", COMMANDING)
    time.sleep(0.8)
    process.stop(signal.SIGINT)
    assert process.ended_cleanly()
