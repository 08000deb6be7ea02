# SPDX-License-Identifier: Apache-2.0
"""The stream node over DDS: every executed row reaches a learner once, through kills of either side."""

import dataclasses
import importlib.util
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy")
pytest.importorskip("qam_msgs.msg", reason="needs qam_msgs, built by `make setup`")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

from qam_ros.contract import messages as contract
from qam_ros.contract.interface import load_interface
from qam_ros.nodes import qos
from qam_ros.nodes.convert import from_ros, ros_type, to_ros
from qam_ros.nodes.process import Stop
from qam_ros.nodes.ros import Diagnostics, Level, spin_node
from qam_ros.nodes.stream_node import StreamNode
from qam_ros.runtime.recording import import_bag, recover
from qam_ros.runtime.store import TransitionStore
from qam_ros.runtime.stream import Downlink

SCRIPT = Path(__file__).parents[1] / "unit" / "stream" / "conftest.py"
TOPICS = {
    contract.ActionProposal: "action_proposal",
    contract.GuardReport: "guard_report",
    contract.StepReward: "step_reward",
    contract.EpisodeEvent: "episode_event",
}


@pytest.fixture(scope="module")
def interface():
    return load_interface("mobile_base")


@pytest.fixture
def robot(interface):
    """The scripted robot of the unit tests."""
    spec = importlib.util.spec_from_file_location("stream_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Robot(interface)


class Learner:
    """Receiving end in the test's process; ``restart`` is what kill -9 and a new start amount to."""

    def __init__(self, graph, path, interface):
        self.path, self.interface, self.store = path, interface, None
        self.restart()
        kind = ros_type(contract.TransitionAck)
        self.acks = graph.node.create_publisher(kind, "transition_ack", qos.ACK)
        kind = ros_type(contract.TransitionBatch)
        graph.node.create_subscription(
            kind, "transition_batch", self.receive, qos.BATCH
        )

    def restart(self):
        if self.store is not None:
            self.store.close()
        self.store = TransitionStore(self.path, self.interface)
        self.downlink = Downlink(self.store, self.interface.robot)

    def receive(self, message):
        receipt = self.downlink.receive(from_ros(message, contract.TransitionBatch))
        self.acks.publish(to_ros(receipt.ack))

    def rows(self):
        return self.store.read(0, 10**6)[1]


@pytest.fixture
def learner(graph, tmp_path, interface):
    learner = Learner(graph, tmp_path / "replay.sqlite", interface)
    yield learner
    learner.store.close()


@pytest.fixture
def play(graph):
    """Publishes messages, some at a time, as the robot's nodes do; spins in between."""
    publishers = {
        kind: graph.node.create_publisher(ros_type(kind), topic, qos.HISTORY)
        for kind, topic in TOPICS.items()
    }

    def publish(messages, rate_hz=3000.0):
        begin = time.monotonic()
        for index, message in enumerate(messages):
            publishers[type(message)].publish(to_ros(message))
            while time.monotonic() < begin + index / rate_hz:
                graph.executor.spin_once(timeout_sec=0.001)

    publish.matched = lambda: all(
        p.get_subscription_count() for p in publishers.values()
    )
    return publish


@pytest.fixture
def start(spawn, tmp_path):
    """Starts the stream node on the test's one run directory."""

    def make(**parameters):
        settings = {
            "robot": "mobile_base",
            "run_dir": str(tmp_path / "run"),
            "resend_s": 0.3,
        }
        return spawn("stream_node", settings | parameters)

    return make


def in_order(rows):
    return np.sort(rows, order=["session", "seq"])


def newest_values(received):
    """Values of the newest diagnostics, by name."""
    states = [status for message in received for status in message.status]
    return {item.key: item.value for item in states[-1].values} if states else {}


def test_executed_rows_replay_and_bag_are_equal_bit_for_bit(
    start, play, graph, learner, robot, interface, tmp_path
):
    node = start(record=True)
    for _ in range(4):
        robot.episode(50, missing={7}, masked={20})
    play(robot.messages)
    assert graph.wait(lambda: learner.store.last_position == len(robot.truth)), (
        node.text()
    )
    assert in_order(learner.rows()).tobytes() == in_order(robot.rows()).tobytes()
    begin = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - begin < 1.0
    recorded = import_bag(tmp_path / "run" / "bag", interface)
    assert in_order(recorded).tobytes() == in_order(robot.rows()).tobytes()


@pytest.mark.slow
def test_kills_of_either_side_lose_nothing_and_repeat_nothing(
    start, play, graph, learner, robot
):
    while len(robot.truth) < 3000:
        robot.episode(int(robot.rng.integers(5, 200)), missing={3}, masked={4})
    parts = np.array_split(np.arange(len(robot.messages)), 9)
    node = start()
    for turn, part in enumerate(parts):
        play([robot.messages[index] for index in part])
        if turn % 3 == 0:
            node.kill()
            node = start()
        elif turn % 3 == 1:
            learner.restart()
    assert graph.wait(lambda: learner.store.last_position >= len(robot.truth), 60), (
        node.text()
    )
    graph.spin(0.5)
    assert in_order(learner.rows()).tobytes() == in_order(robot.rows()).tobytes()


def test_stream_node_that_starts_last_gets_the_history(
    start, play, graph, learner, robot
):
    robot.episode(300)
    play(robot.messages)
    start()
    assert graph.wait(lambda: learner.store.last_position == 300)
    assert learner.rows()["seq"].tolist() == list(range(300))


def test_recording_without_learner_loses_at_most_a_second_to_kill_9(
    start, play, graph, robot, interface, tmp_path
):
    robot.episode(2000)
    node = start(record=True, uplink=False)
    assert graph.wait(play.matched)
    rate_hz = 450.0  # three messages a row
    play(robot.messages[:1500], rate_hz)
    node.kill()
    bag = tmp_path / "run" / "bag"
    assert recover(bag).repaired
    rows = import_bag(bag, interface)
    assert rows["seq"].tolist() == list(range(rows.size))
    assert rows.size >= (1500 - rate_hz * 1.0) / 3
    expected = robot.rows()[: rows.size]
    assert rows.tobytes() == expected.tobytes()


def test_diagnostics_report_the_spool_once_a_second(start, play, graph, robot):
    received = graph.collect(DiagnosticArray, "/diagnostics")
    start()
    robot.episode(20)
    play(robot.messages)

    assert graph.wait(lambda: newest_values(received).get("spooled") == "20")
    values = newest_values(received)
    assert values["depth"] == "20"  # no learner acknowledges
    assert values["dropped"] == values["lost_reports"] == "0"


def malformed(robot):
    """One message of each kind with a value that means nothing, beside those that are right."""
    spoilt = {
        contract.ActionProposal: {"observation": np.zeros(1, np.float32)},
        contract.GuardReport: {"mode": 200},
        contract.StepReward: {"reward": np.nan},
        contract.EpisodeEvent: {"kind": 7},
    }
    first = {type(message): message for message in reversed(robot.messages)}
    return [
        dataclasses.replace(first[kind], **values) for kind, values in spoilt.items()
    ]


def test_malformed_messages_on_every_topic_are_counted_and_the_node_goes_on(
    start, play, graph, learner, robot
):
    """They stay in the topics' history, so that a restarted node meets them again."""
    diagnostics = graph.collect(DiagnosticArray, "/diagnostics")
    kind = ros_type(contract.TransitionBatch)
    batches = graph.collect(kind, "transition_batch", qos.BATCH)
    robot.episode(20)
    play([*malformed(robot), *robot.messages])
    node = start()
    assert graph.wait(lambda: learner.store.last_position == 20 and batches), (
        node.text()
    )
    ack = contract.TransitionAck("mobile_base", bytes(batches[-1].spool), 2**64 - 1, 0)
    learner.acks.publish(to_ros(ack))

    def counted(**expected):
        values = newest_values(diagnostics)
        return {name: values.get(name) for name in expected} == expected

    expected = {"malformed messages": "2", "malformed": "2"}
    assert graph.wait(lambda: counted(**expected, refused_acks="1")), node.text()
    node.kill()
    node = start()
    robot.episode(20)
    play(robot.messages[-100:])  # some of them twice
    assert graph.wait(lambda: learner.store.last_position == 40), node.text()
    assert graph.wait(lambda: counted(**expected, refused_acks="0")), node.text()
    assert in_order(learner.rows()).tobytes() == in_order(robot.rows()).tobytes()
    assert node.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_within_a_second_with_code_0(start, graph, number):
    node = start()
    received = graph.collect(DiagnosticArray, "/diagnostics")
    assert graph.wait(lambda: received)
    begin = time.monotonic()
    assert node.stop(number) == 0
    assert time.monotonic() - begin < 1.0


@pytest.fixture
def args(tmp_path):
    """Command line of a stream node."""
    settings = {"robot": "mobile_base", "run_dir": tmp_path}
    pairs = ["{}:={}".format(*item) for item in settings.items()]
    return ["--ros-args", *(word for pair in pairs for word in ("-p", pair))]


@pytest.fixture
def stop():
    return Stop()


@pytest.fixture
def node(graph, args, stop):
    """A stream node in the test's process and domain, without an executor."""
    rclpy.init(args=args)
    node = StreamNode(stop)
    yield node
    node.destroy_node()
    rclpy.shutdown()


@pytest.mark.parametrize(
    ("level", "published"),
    [
        (True, DiagnosticStatus.OK),
        (False, DiagnosticStatus.WARN),
        (Level.OK, DiagnosticStatus.OK),
        (Level.WARN, DiagnosticStatus.WARN),
        (Level.ERROR, DiagnosticStatus.ERROR),
    ],
)
def test_diagnostics_have_the_level_that_the_node_gives(node, graph, level, published):
    received = graph.collect(DiagnosticArray, "/diagnostics")
    diagnostics = Diagnostics(node, lambda: (level, "so it is", {}))
    assert graph.wait(lambda: diagnostics.publish() or received)
    assert received[-1].status[0].level == published
    node.close()


def test_rows_that_cannot_be_kept_are_an_error_in_the_diagnostics(node, graph, robot):
    received = graph.collect(DiagnosticArray, "/diagnostics")
    node.core.writer.store.connection.execute("PRAGMA query_only = ON")
    robot.episode(20)
    node.core.writer.put(robot.rows())

    def level():
        node._diagnostics.publish()
        return received[-1].status[0].level if received else None

    assert graph.wait(lambda: level() == DiagnosticStatus.ERROR)
    assert "readonly" in received[-1].status[0].message
    node.close()


def test_process_ends_with_code_1_once_its_spool_thread_has_ended(
    node, graph, robot, monkeypatch
):
    def broken(_rows):
        raise ValueError("not a matter of the disk")

    robot.episode(20)
    assert node.exit_code is None
    monkeypatch.setattr(node.core.writer.store, "append", broken)
    node.core.writer.put(robot.rows())
    assert graph.wait(lambda: node.exit_code == 1)
    assert "not a matter of the disk" in node.core.health().message
    node.close()


def test_clean_stop_takes_the_messages_that_wait(
    node, stop, play, graph, robot, interface, tmp_path
):
    """Without an executor nothing is taken before the node closes."""
    assert graph.wait(play.matched)
    robot.episode(20)
    play(robot.messages)
    graph.spin(0.5)
    stop.requested = True
    node.close()
    with TransitionStore(tmp_path / "spool.sqlite", interface) as spool:
        assert spool.read(0, 100)[1].tobytes() == robot.rows().tobytes()


class Failing(StreamNode):
    """A stream node that fails by a mistake of its own once 19 rows are written."""

    def _poll(self):
        super()._poll()
        if self.core.writer.status().last_position == 19:
            raise ValueError("a mistake")


def test_rows_that_wait_when_the_node_fails_are_left_to_its_successor(
    graph, args, stop, start, play, learner, robot, interface, tmp_path
):
    robot.episode(20)
    late = [m for m in robot.messages if isinstance(m, contract.StepReward)][10]
    play([message for message in robot.messages if message is not late])
    with pytest.raises(ValueError, match="a mistake"):
        spin_node(lambda: Failing(stop), stop, args)
    with TransitionStore(tmp_path / "spool.sqlite", interface) as spool:
        kept = spool.read(0, 100)[1]
    assert (len(kept), kept["masked"].sum()) == (19, 0)
    start(run_dir=str(tmp_path))
    play([late])
    assert graph.wait(lambda: learner.store.last_position == 20)
    assert in_order(learner.rows()).tobytes() == in_order(robot.rows()).tobytes()


def test_signal_during_start_ends_it_with_code_0(start):
    node = start()
    time.sleep(0.6)
    assert node.stop() in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"robot": "mobile_bas"}, "did you mean 'mobile_base'"),
        ({"run_dir": ""}, "'run_dir' is not set"),
        ({"run_dir": "/proc/no_folder"}, "/proc/no_folder/spool.sqlite"),
        ({"resend_s": 0.0}, "resend_s"),
    ],
)
def test_wrong_setting_ends_it_with_its_own_code_and_a_reason(start, parameters, words):
    node = start(**parameters)
    assert node.wait(15.0) == os.EX_CONFIG
    assert words in node.text()
