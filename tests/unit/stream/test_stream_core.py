# SPDX-License-Identifier: Apache-2.0
"""The whole stream process without ROS: messages in, rows in a replay log, honest health."""

import time

import numpy as np
import pytest

from qam_ros.contract.errors import StreamError
from qam_ros.contract.messages import ActionProposal, StepReward, TransitionAck
from qam_ros.runtime.joiner import JoinerConfig
from qam_ros.runtime.recording import BagWriter, import_bag
from qam_ros.runtime.spool import SpoolConfig
from qam_ros.runtime.store import TransitionStore
from qam_ros.runtime.stream import Downlink, UplinkConfig
from qam_ros.runtime.stream_core import StreamConfig, StreamCore

SECOND = 10**9


@pytest.fixture
def start(tmp_path, interface):
    """Makes a stream core on the one spool of the test; the last one is stopped at the end."""
    cores = []

    def make(config=None, **more):
        path = tmp_path / "spool.sqlite"
        cores.append(StreamCore(path, interface, "base", config, **more))
        return cores[-1]

    yield make
    cores[-1].stop(5.0)


@pytest.fixture
def replay(tmp_path, interface):
    with TransitionStore(tmp_path / "replay.sqlite", interface) as store:
        yield store


def deliver(core, replay, wanted, timeout_s=10.0):
    """Exchange batches and acknowledgements until the replay log has that many rows."""
    downlink = Downlink(replay, "base")
    deadline = time.monotonic() + timeout_s
    while replay.last_position < wanted:
        assert time.monotonic() < deadline, core.health()
        batches = core.poll(time.monotonic_ns())
        while batches:
            ack = downlink.receive(batches.pop(0)).ack
            batches += core.acknowledge(ack, time.monotonic_ns())
        time.sleep(0.002)


def test_what_was_executed_is_what_replay_holds(start, replay, robot):
    core = start()
    for _ in range(3):
        robot.episode(40)
    for message in robot.messages:
        core.add(message, 0)
    deliver(core, replay, 120)
    assert replay.read(0, 1000)[1].tobytes() == robot.rows().tobytes()
    health = core.health()
    assert (health.level, health.message) == (0, "streaming")
    assert (health.values["depth"], health.values["acked"], health.values["rows"]) == (
        0,
        120,
        120,
    )


def test_abandoned_process_and_its_successor_deliver_once(start, replay, robot):
    """The first is left in the middle, as kill -9 leaves it; the history comes to the second."""
    robot.episode(50)
    half = len(robot.messages) // 2
    first = start()
    for message in robot.messages[:half]:
        first.add(message, 0)
    deliver(first, replay, 10)
    second = start()
    for message in robot.messages:
        second.add(message, 0)
    deliver(second, replay, 50)
    first.stop(5.0)
    rows = np.sort(replay.read(0, 1000)[1], order="seq")
    flushed = (
        rows["masked"] == 1
    )  # at most the one row that was open when the first was stopped
    assert flushed.sum() <= 1
    assert rows["seq"].tolist() == list(range(50))


@pytest.mark.parametrize("clean", [True, False])
def test_row_that_waits_is_written_masked_on_a_clean_stop_only(start, robot, clean):
    robot.episode(20)
    late = next(m for m in robot.messages if isinstance(m, StepReward))
    core = start()
    for message in robot.messages:
        if message is not late:
            core.add(message, 0)
    assert core.joiner.pending == 1
    assert core.stop(5.0, flush=clean)
    rows = start().writer.store.read(0, 100)[1]
    assert (rows.size, rows["masked"].sum()) == ((20, 1) if clean else (19, 0))


def test_row_that_waited_when_a_process_failed_is_joined_by_its_successor(
    start, replay, robot
):
    robot.episode(20)
    late = next(m for m in robot.messages if isinstance(m, StepReward))
    failed = start()
    for message in robot.messages:
        if message is not late:
            failed.add(message, 0)
    failed.stop(5.0, flush=False)
    core = start()
    for message in robot.messages:
        core.add(message, 0)
    deliver(core, replay, 20)
    rows = np.sort(replay.read(0, 100)[1], order="seq")
    assert rows.tobytes() == robot.rows().tobytes()


def test_restart_goes_on_with_what_a_learner_without_its_replay_log_still_needs(
    start, tmp_path, interface, replay, robot
):
    """The learner lost its log after all 50 rows; the restart comes after 10 were sent again."""
    config = StreamConfig(
        spool=SpoolConfig(tidy_period_s=0.02),
        uplink=UplinkConfig(batch_rows=10, window_rows=10),
    )
    core = start(config)
    robot.episode(50)
    for message in robot.messages:
        core.add(message, 0)
    deliver(core, replay, 50)
    with TransitionStore(tmp_path / "new.sqlite", interface) as empty:
        for turn in range(4):
            ack = TransitionAck("base", core.uplink.spool, 0, 0)
            core.acknowledge(ack, turn * SECOND)
        (batch,) = core.poll(4 * SECOND)
        core.acknowledge(Downlink(empty, "base").receive(batch).ack, 4 * SECOND)
        assert core.health().values["acked"] == 10
        assert core.stop(5.0, flush=False)
        deliver(start(config), empty, 50)
        assert empty.read(0, 100)[1].tobytes() == robot.rows().tobytes()


def test_bag_equals_what_the_stream_delivered(
    start, replay, robot, interface, tmp_path
):
    core = start(open_recorder=lambda: BagWriter(tmp_path / "bag", interface, "base"))
    for _ in range(3):
        robot.episode(30, missing={4})
    late = [message for message in robot.messages if isinstance(message, StepReward)][
        10
    ]
    for message in [*(m for m in robot.messages if m is not late), late]:
        core.add(message, 0)
    core.poll(60 * SECOND)
    deliver(core, replay, len(robot.truth))
    assert core.stop(5.0)
    delivered = np.sort(replay.read(0, 1000)[1], order=["session", "seq"])
    recorded = np.sort(
        import_bag(tmp_path / "bag", interface), order=["session", "seq"]
    )
    assert recorded.tobytes() == delivered.tobytes()
    assert recorded.size == len(robot.truth)


def test_nothing_is_sent_unheard(start, robot):
    core = start()
    robot.episode(20)
    for message in robot.messages:
        core.add(message, 0)
    assert core.poll(SECOND, heard=False) == []


def test_without_learner_nothing_is_sent(start, robot):
    core = start(StreamConfig(spool=SpoolConfig(wait_for_ack=False)))
    robot.episode(5)
    for message in robot.messages:
        core.add(message, 0)
    time.sleep(0.1)
    assert core.poll(SECOND) == []
    assert core.backlog == 0


def test_health_names_a_harm_once_and_keeps_its_count(start, robot):
    core = start(StreamConfig(joiner=JoinerConfig(successor_timeout_s=1)))
    robot.episode(5)
    lost = [
        message for message in robot.messages if isinstance(message, ActionProposal)
    ][2]
    for message in robot.messages:
        if message is not lost:
            core.add(message, 0)
    core.poll(2 * SECOND)
    health = core.health()
    assert health.level == 1
    assert health.values["without_proposal"] == 1
    assert core.health().level == 0
    assert core.health().values["without_proposal"] == 1


def test_impossible_acknowledgement_is_counted_not_fatal(start, replay, robot):
    core = start()
    robot.episode(5)
    for message in robot.messages:
        core.add(message, 0)
    deliver(core, replay, 5)
    core.acknowledge(TransitionAck("base", core.uplink.spool, 999, 999), 0)
    health = core.health()
    assert health.level == 1
    assert "acknowledges row 999" in health.message


def test_message_that_means_nothing_is_named_once_and_stays_counted(start):
    core = start()
    core.refuse(StreamError("EpisodeEvent: kind 7 means nothing"))
    health = core.health()
    assert (health.level, health.values["malformed messages"]) == (1, 1)
    assert "kind 7" in health.message
    assert (core.health().level, core.health().values["malformed messages"]) == (0, 1)


def test_full_disk_shows_as_an_error(start, robot):
    core = start()
    core.writer.store.connection.execute("PRAGMA query_only = ON")
    robot.episode(5)
    for message in robot.messages:
        core.add(message, 0)
    deadline = time.monotonic() + 5
    while core.health().level != 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "readonly" in core.health().message
