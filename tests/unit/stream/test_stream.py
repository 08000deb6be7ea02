# SPDX-License-Identifier: Apache-2.0
"""Uplink and downlink: batches, acknowledgements, and what may go wrong with either."""

import dataclasses
import zlib

import numpy as np
import pytest

from qam_ros.contract.errors import StreamError, TransitionError
from qam_ros.contract.interface import load_interface
from qam_ros.contract.transition import decode, encode, validate_transitions
from qam_ros.runtime.store import TransitionStore
from qam_ros.runtime.stream import Downlink, Uplink, UplinkConfig

SECOND = 10**9
CONFIG = UplinkConfig(batch_rows=10, window_rows=40, resend_s=1.0)


@pytest.fixture
def rows(robot):
    robot.episode(100)
    return robot.rows()


@pytest.fixture
def spool(tmp_path, interface, rows):
    with TransitionStore(tmp_path / "spool.sqlite", interface) as store:
        store.append(rows)
        yield store


@pytest.fixture
def replay(tmp_path, interface):
    with TransitionStore(tmp_path / "replay.sqlite", interface) as store:
        yield store


@pytest.fixture
def uplink(spool):
    return Uplink(spool, "base", CONFIG)


@pytest.fixture
def downlink(replay):
    return Downlink(replay, "base")


def exchange(uplink, downlink, now_ns=0, rounds=20):
    """A network that loses nothing; returns the rows that were new."""
    fresh = []
    for _ in range(rounds):
        for batch in uplink.poll(now_ns):
            receipt = downlink.receive(batch)
            fresh.append(receipt.rows)
            uplink.acknowledge(receipt.ack, now_ns)
    return np.concatenate(fresh) if fresh else np.empty(0, uplink.store.dtype)


def test_all_rows_arrive_bit_for_bit(uplink, downlink, replay, rows):
    fresh = exchange(uplink, downlink)
    assert fresh.tobytes() == rows.tobytes()
    assert replay.read(0, 1000)[1].tobytes() == rows.tobytes()
    assert (uplink.acked, uplink.resent, downlink.duplicates) == (100, 0, 0)


def test_no_more_than_a_window_is_sent_without_acknowledgement(uplink):
    batches = uplink.poll(0)
    assert [batch.first_position for batch in batches] == [1, 11, 21, 31]
    assert uplink.poll(SECOND // 2) == []


def test_no_more_batches_are_on_their_way_than_the_topic_keeps(downlink, spool):
    config = UplinkConfig(batch_rows=1, window_batches=3, resend_s=1.0)
    uplink = Uplink(spool, "base", config)
    batches = uplink.poll(0)
    assert [batch.first_position for batch in batches] == [1, 2, 3]
    assert uplink.poll(0) == []
    uplink.acknowledge(downlink.receive(batches[0]).ack, 0)
    assert [batch.first_position for batch in uplink.poll(0)] == [4]
    again = uplink.poll(2 * SECOND)
    assert [batch.first_position for batch in again] == [2, 3, 4]


def test_large_rows_go_out_in_smaller_batches(spool):
    size = spool.dtype.itemsize
    for limit, expected in ((3 * size + 1, 3), (1, 1)):
        config = dataclasses.replace(CONFIG, batch_bytes=limit)
        assert {
            batch.count for batch in Uplink(spool, "base", config).poll(0)[:-1]
        } == {expected}


def test_everything_behind_the_acknowledgement_is_sent_again_after_a_silence(
    uplink, downlink
):
    batches = uplink.poll(0)
    uplink.acknowledge(downlink.receive(batches[0]).ack, SECOND // 2)
    assert uplink.poll(SECOND)[0].first_position == 41
    again = uplink.poll(SECOND * 8 // 5)
    assert [batch.first_position for batch in again] == [11, 21, 31, 41]
    assert uplink.resent == 40


def test_silence_counts_from_the_sending_not_from_the_start(
    uplink, downlink, spool, robot
):
    exchange(uplink, downlink)
    robot.episode(5)
    spool.append(robot.rows())
    assert len(uplink.poll(100 * SECOND)) == 1
    assert uplink.poll(100 * SECOND + SECOND // 2) == []


def test_batch_behind_a_gap_is_answered_with_what_is_there(uplink, downlink, replay):
    first, second, *_ = uplink.poll(0)
    receipt = downlink.receive(second)
    assert (receipt.gap, receipt.ack.committed, receipt.rows.size) == (True, 0, 0)
    downlink.receive(first)
    assert downlink.receive(second).ack.committed == 20
    assert replay.last_position == 20


def test_repeated_batch_is_acknowledged_but_not_stored_again(uplink, downlink, replay):
    batch = uplink.poll(0)[0]
    downlink.receive(batch)
    receipt = downlink.receive(batch)
    assert (receipt.ack.committed, receipt.rows.size, replay.last_position) == (
        10,
        0,
        10,
    )
    assert downlink.duplicates == 10


def test_restarted_uplink_is_a_new_spool_behind_the_kept_acknowledgement(
    uplink, downlink, spool, replay, rows
):
    for batch in uplink.poll(0)[:3]:
        uplink.acknowledge(downlink.receive(batch).ack, 0)
    spool.set_meta(
        "acked", 20
    )  # the acknowledgement of 30 was not kept before the kill
    again = Uplink(spool, "base", CONFIG)
    assert again.spool != uplink.spool
    fresh = exchange(again, downlink)
    assert fresh.tobytes() == rows[30:].tobytes()
    assert downlink.duplicates == 10
    assert replay.read(0, 1000)[1].tobytes() == rows.tobytes()


def test_spool_that_lost_its_newest_rows_in_a_power_cut_delivers_what_follows(
    tmp_path, interface, uplink, downlink, replay, robot, rows
):
    """Its positions are used again for other rows, which only a new spool id keeps apart."""
    exchange(uplink, downlink)
    with TransitionStore(tmp_path / "older.sqlite", interface) as older:
        older.append(rows[:90])
        older.set_meta("acked", 80)
        robot.episode(20)
        newer = robot.rows()[100:]
        older.append(newer)
        exchange(Uplink(older, "base", CONFIG), downlink)
    assert replay.read(0, 1000)[1].tobytes() == np.concatenate([rows, newer]).tobytes()


def test_learner_that_lost_its_replay_gets_everything_the_spool_still_has(
    tmp_path, interface, uplink, downlink, spool, robot, rows
):
    exchange(uplink, downlink)
    spool.trim(30)
    robot.episode(10)
    spool.append(robot.rows()[100:])
    with TransitionStore(tmp_path / "new.sqlite", interface) as empty:
        fresh = Downlink(empty, "base")
        for step in range(20):
            exchange(uplink, fresh, step * SECOND, rounds=3)
        assert empty.read(0, 1000)[1].tobytes() == robot.rows()[30:].tobytes()
    assert uplink.unavailable == 30


def test_single_old_acknowledgement_changes_nothing(uplink, downlink):
    batches = uplink.poll(0)
    acks = [downlink.receive(batch).ack for batch in batches]
    assert uplink.acknowledge(acks[3], 0)
    assert not uplink.acknowledge(acks[0], 10 * SECOND)
    assert uplink.acked == 40


def test_acknowledgements_of_others_are_passed_over(uplink, downlink):
    ack = downlink.receive(uplink.poll(0)[0]).ack
    assert not uplink.acknowledge(dataclasses.replace(ack, robot="arm"), 0)
    assert not uplink.acknowledge(dataclasses.replace(ack, spool=bytes(16)), 0)
    assert uplink.acked == 0


def test_acknowledgement_of_what_was_never_there_is_an_error(uplink, downlink):
    ack = downlink.receive(uplink.poll(0)[0]).ack
    with pytest.raises(StreamError, match="acknowledges row 101 of a spool of 100"):
        uplink.acknowledge(dataclasses.replace(ack, committed=101), 0)
    assert uplink.acked == 0


def test_late_acknowledgement_of_the_first_sending_counts_after_going_back(
    uplink, downlink
):
    acks = [downlink.receive(batch).ack for batch in uplink.poll(0)]
    uplink.config = dataclasses.replace(CONFIG, window_rows=10)
    assert uplink.poll(2 * SECOND)[0].first_position == 1
    assert uplink.acknowledge(acks[3], 2 * SECOND)
    assert uplink.poll(2 * SECOND)[0].first_position == 41


def test_rows_that_vanish_under_the_uplink_are_an_error(uplink, spool):
    spool.trim(50)
    with pytest.raises(StreamError, match="rows 1 to 50 are gone"):
        uplink.poll(0)


def damage(data):
    return data[:5] + bytes([data[5] ^ 1]) + data[6:]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("robot", lambda batch: {"robot": "arm"}),
        ("format_version", lambda batch: {"format_version": 2}),
        ("interface_hash", lambda batch: {"interface_hash": "0" * 64}),
        ("size of spool", lambda batch: {"spool": b"short"}),
        ("size of data", lambda batch: {"data": batch.data[:-1]}),
        ("size of data", lambda batch: {"count": 9}),
        ("crc32", lambda batch: {"data": damage(batch.data)}),
        ("position", lambda batch: {"first_position": 0}),
        ("count", lambda batch: {"count": 0, "data": b"", "crc32": zlib.crc32(b"")}),
    ],
)
def test_wrong_batch_is_refused_by_field_and_nothing_is_taken(
    uplink, downlink, replay, field, change
):
    batch = uplink.poll(0)[0]
    with pytest.raises(StreamError, match=field):
        downlink.receive(dataclasses.replace(batch, **change(batch)))
    assert replay.last_position == 0
    assert downlink.receive(batch).rows.size == 10


def changed(batch, interface, change):
    """The batch as a faulty sender would seal it."""
    rows = decode(batch.data, interface, batch.count)
    change(rows)
    data = encode(rows)
    return dataclasses.replace(batch, data=data, crc32=zlib.crc32(data))


def test_rows_that_cannot_be_trained_on_are_committed_masked_and_counted(
    uplink, downlink, replay, interface
):
    def spoil(rows):
        rows["observation"][1, 0] = np.nan
        rows["reward"][3] = np.inf
        rows["executed"][5, 0] = 50.0
        rows["executed"][7, 1] = np.nan

    receipt = downlink.receive(changed(uplink.poll(0)[0], interface, spoil))
    assert (receipt.ack.committed, downlink.unusable) == (10, 4)
    stored = replay.read(0, 100)[1]
    assert np.flatnonzero(stored["masked"]).tolist() == [1, 3, 5, 7]
    assert stored.tobytes() == receipt.rows.tobytes()
    assert np.isnan(stored["observation"][1, 0]), "the evidence is kept"
    validate_transitions(stored, interface)


@pytest.mark.parametrize(
    ("field", "value"), [("seq", 2**63), ("terminated", 2), ("source", 9)]
)
def test_row_that_no_sender_of_this_version_makes_is_refused_with_its_batch(
    uplink, downlink, replay, interface, field, value
):
    def spoil(rows):
        rows[field][4] = value

    batch = uplink.poll(0)[0]
    with pytest.raises(TransitionError, match=f"transition 4 .*'{field}'"):
        downlink.receive(changed(batch, interface, spoil))
    assert (replay.last_position, replay.committed(batch.spool)) == (0, 0)
    assert downlink.receive(batch).rows.size == 10


def test_batch_of_another_interface_names_both_hashes(uplink, tmp_path):
    arm = load_interface("ur5e_2f85")
    downlink = Downlink(TransitionStore(tmp_path / "arm.sqlite", arm), "base")
    with pytest.raises(StreamError) as caught:
        downlink.receive(uplink.poll(0)[0])
    downlink.store.close()
    assert caught.value.details["expected"] == arm.semantic_hash
