# SPDX-License-Identifier: Apache-2.0
"""The spool thread: nothing it does holds up who hands it rows; trouble is loud and passes."""

import time

import numpy as np
import pytest

from qam_ros.contract.errors import StreamError
from qam_ros.runtime.spool import SpoolConfig, SpoolWriter
from qam_ros.runtime.store import TransitionStore

CONFIG = SpoolConfig(
    retry_s=0.02, tidy_period_s=0.02, record_period_s=0.02, keep_rows=10
)


def eventually(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


@pytest.fixture
def rows(robot):
    robot.episode(200)
    return robot.rows()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spool.sqlite"


@pytest.fixture
def start(path, interface):
    """Makes a running writer that is stopped at the end."""
    writers = []

    def make(config=CONFIG, **more):
        writers.append(SpoolWriter(path, interface, config, **more))
        writers[-1].start()
        return writers[-1]

    yield make
    for writer in writers:
        writer.stop(5.0)


def read(path, interface):
    with TransitionStore(path, interface) as store:
        return store.read(0, 10**6)[1]


def full(store, *, more_pages):
    """Give the file a limit, as a disk that is full has one; None takes it away."""
    pages = store.connection.execute("PRAGMA page_count").fetchone()[0]
    limit = 2**30 if more_pages is None else pages + more_pages
    store.connection.execute(f"PRAGMA max_page_count = {limit}")


class Bag:
    """A recorder that remembers, and fails when it is told to."""

    made = ()

    def __init__(self, fails=False):
        self.fails, self.rows, self.closed = fails, [], False
        Bag.made = (*Bag.made, self)

    def write(self, rows):
        if self.fails:
            raise OSError(28, "No space left on device")
        self.rows += rows["seq"].tolist()

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def no_bags():
    Bag.made = ()


def test_rows_are_on_disk_when_it_stops(path, interface, rows, start):
    writer = start()
    for part in np.array_split(rows, 37):
        writer.put(part)
    assert writer.stop(5.0)
    assert read(path, interface).tobytes() == rows.tobytes()
    assert writer.status().queued == writer.status().dropped == 0


def test_full_disk_is_loud_and_nothing_is_lost_once_there_is_room(
    path, interface, rows, start
):
    writer = start()
    writer.put(rows[:50])
    eventually(lambda: writer.status().last_position == 50)
    full(writer.store, more_pages=0)
    for part in np.array_split(rows[50:], 20):
        begin = time.perf_counter()
        writer.put(part)
        assert (
            time.perf_counter() - begin < 0.1
        )  # handing over never waits for the disk
    eventually(lambda: "database or disk is full" in writer.status().problem)
    assert writer.status().dropped == 0
    full(writer.store, more_pages=None)
    eventually(lambda: writer.status().problem == "")
    eventually(lambda: writer.status().last_position == 200)
    assert read(path, interface).tobytes() == rows.tobytes()


def test_what_no_longer_fits_into_the_queue_is_dropped_and_counted(rows, start):
    writer = start(SpoolConfig(queue_rows=60, retry_s=0.02))
    full(writer.store, more_pages=0)
    writer.store.connection.execute("PRAGMA query_only = ON")
    for part in np.array_split(rows, 20):
        writer.put(part)
    eventually(lambda: "readonly" in writer.status().problem)
    assert writer.status().queued + writer.status().dropped == 200
    assert 0 < writer.status().queued <= 60


def test_error_that_is_not_the_disks_is_a_problem_and_ends_the_thread(
    path, interface, rows, start, monkeypatch
):
    writer = start()

    def broken(_rows):
        raise ValueError("not a matter of the disk")

    monkeypatch.setattr(writer.store, "append", broken)
    writer.put(rows)
    eventually(lambda: writer.failed)
    assert "not a matter of the disk" in writer.status().problem
    assert writer.stop(1.0)
    assert not read(path, interface).size


def test_stopping_with_a_full_disk_ends_in_time_and_counts(rows, start):
    writer = start()
    writer.store.connection.execute("PRAGMA query_only = ON")
    writer.put(rows)
    begin = time.monotonic()
    assert writer.stop(1.0)
    assert time.monotonic() - begin < 0.9
    assert writer.status().dropped == 200


def test_acknowledged_rows_are_trimmed_but_the_newest_are_kept(
    path, interface, rows, start
):
    writer = start()
    writer.put(rows)
    eventually(lambda: writer.status().last_position == 200)
    writer.acknowledge(150)
    eventually(lambda: read(path, interface).size == 60)
    writer.stop(5.0)
    with TransitionStore(path, interface) as store:
        assert store.meta("acked") == 150
        assert store.first_position == 141


def test_acknowledgement_that_goes_back_is_kept(path, interface, rows, start):
    writer = start()
    writer.put(rows)
    eventually(lambda: writer.status().last_position == 200)
    writer.acknowledge(150)
    eventually(lambda: writer.store.first_position == 141)
    writer.acknowledge(140)
    assert writer.stop(5.0)
    with TransitionStore(path, interface) as store:
        assert (store.meta("acked"), store.first_position) == (140, 141)


def test_rows_that_no_learner_takes_are_bounded(rows, start):
    writer = start(SpoolConfig(max_rows=120, retry_s=0.02))
    writer.put(rows[:100])
    eventually(lambda: writer.status().last_position == 100)
    writer.put(rows[100:])
    eventually(lambda: "no learner has acknowledged" in writer.status().problem)
    assert writer.status().dropped == 100
    writer.acknowledge(100)
    writer.put(rows[100:150])
    eventually(lambda: writer.status().last_position == 150)
    eventually(lambda: writer.status().problem == "")


def test_recording_gets_each_row_once_and_is_closed(rows, start):
    writer = start(open_recorder=Bag)
    for part in np.array_split(rows, 11):
        writer.put(part)
    writer.stop(5.0)
    (bag,) = Bag.made
    assert bag.rows == list(range(200))
    assert bag.closed


def test_recording_goes_on_in_a_new_bag_where_a_failed_one_stopped(rows, start):
    writer = start(open_recorder=lambda: Bag(fails=not Bag.made))
    writer.put(rows)
    eventually(lambda: writer.status().recorded == 200)
    assert [bag.rows for bag in Bag.made] == [[], list(range(200))]
    eventually(lambda: writer.status().problem == "")


def test_recording_that_fails_does_not_stop_the_spool(rows, start):
    writer = start(open_recorder=lambda: Bag(fails=True))
    writer.put(rows)
    eventually(lambda: writer.status().last_position == 200)
    eventually(lambda: "recording: " in writer.status().problem)
    assert writer.status().recorded == 0


def test_restart_records_what_the_last_life_did_not(rows, start):
    first = start(open_recorder=lambda: Bag(fails=True))
    first.put(rows[:100])
    eventually(lambda: first.status().last_position == 100)
    first.stop(5.0)
    second = start(open_recorder=Bag)
    second.put(rows[100:])
    eventually(lambda: second.status().recorded == 200)
    assert Bag.made[-1].rows == list(range(200))


def test_recording_that_is_asked_for_later_begins_with_the_next_row(rows, start):
    for recorder, begin, end in ((Bag, 0, 50), (None, 50, 100), (Bag, 100, 200)):
        writer = start(open_recorder=recorder)
        writer.put(rows[begin:end])
        assert writer.stop(5.0)
    assert [bag.rows for bag in Bag.made] == [list(range(50)), list(range(100, 200))]


def test_without_learner_recorded_rows_are_trimmed(path, interface, rows, start):
    config = SpoolConfig(
        tidy_period_s=0.02, record_period_s=0.02, keep_rows=10, wait_for_ack=False
    )
    writer = start(config, open_recorder=Bag)
    writer.put(rows)
    eventually(lambda: read(path, interface).size == 10)
    assert Bag.made[-1].rows == list(range(200))


def test_idle_writer_does_not_spin(start):
    writer = start()
    eventually(lambda: writer.status().problem == "")
    begin = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - begin < 0.2
    assert writer.stop(1.0)


def test_spool_that_cannot_be_opened_is_named_at_once(tmp_path, interface):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StreamError, match=r"file/spool\.sqlite"):
        SpoolWriter(tmp_path / "file" / "spool.sqlite", interface)
