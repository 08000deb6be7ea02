# SPDX-License-Identifier: Apache-2.0
"""The store keeps each key once, whole calls or nothing, and says what is wrong with a file."""

import dataclasses
import sqlite3

import numpy as np
import pytest

from qam_ros.contract.errors import StreamError
from qam_ros.contract.interface import load_interface
from qam_ros.runtime.store import Committed, TransitionStore


@pytest.fixture
def rows(robot):
    robot.episode(30)
    return robot.rows()


@pytest.fixture
def store(tmp_path, interface):
    with TransitionStore(tmp_path / "spool.sqlite", interface) as store:
        yield store


def test_rows_come_back_bit_for_bit_in_order(store, rows):
    assert store.append(rows).tobytes() == rows.tobytes()
    first, found = store.read(0, 1000)
    assert first == 1
    assert found.tobytes() == rows.tobytes()
    first, found = store.read(10, 5)
    assert (first, found["seq"].tolist()) == (11, [10, 11, 12, 13, 14])


def test_reading_behind_the_end_gives_nothing(store, rows):
    store.append(rows)
    first, found = store.read(30, 10)
    assert (first, found.size) == (31, 0)


def test_known_keys_are_left_out_in_the_file_and_in_the_call(store, rows):
    store.append(rows[:10])
    fresh = store.append(np.concatenate([rows[5:12], rows[8:15]]))
    assert fresh["seq"].tolist() == [10, 11, 12, 13, 14]
    assert store.last_position == 15
    assert store.read(0, 100)[1]["seq"].tolist() == list(range(15))


def test_same_seq_of_another_session_is_another_row(store, rows):
    other = rows.copy()
    other["session"] = 7
    store.append(rows)
    assert store.append(other).size == rows.size


def test_file_goes_on_after_it_was_closed_or_not(tmp_path, interface, rows):
    path = tmp_path / "spool.sqlite"
    abandoned = TransitionStore(path, interface)
    abandoned.append(rows[:10])
    with TransitionStore(path, interface) as store:
        assert store.append(rows).size == 20
        assert store.last_position == 30
    abandoned.close()


def test_positions_are_never_used_again_after_trimming(store, rows):
    store.append(rows[:10])
    assert store.trim(10) == 10
    assert (store.first_position, store.last_position) == (11, 10)
    store.append(rows[10:])
    assert store.read(0, 1)[0] == 11


def test_recent_keys_are_the_newest_in_order(store, rows, keys_of):
    store.append(rows)
    assert store.recent_keys(5) == keys_of(rows[-5:])


def test_rows_and_commit_position_are_one_transaction(store, rows):
    spool = bytes(range(16))
    store.append(rows[:10], Committed("robot", spool, 10))
    assert store.committed(spool) == 10
    assert store.committed(bytes(16)) == 0
    store.connection.execute(
        "CREATE TRIGGER no BEFORE UPDATE ON spools BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    with pytest.raises(StreamError, match="no"):
        store.append(rows[10:], Committed("robot", spool, 30))
    assert (store.last_position, store.committed(spool)) == (10, 10)


def test_commit_position_never_goes_back(store, rows):
    store.append(rows, Committed("robot", bytes(16), 30))
    store.append(rows[:0], Committed("robot", bytes(16), 20))
    assert store.committed(bytes(16)) == 30


def append_until_full(store, rows):
    for part in range(100):
        more = rows.copy()
        more["session"] = part
        store.append(more)


def test_full_disk_is_named_and_leaves_nothing_of_the_call(store, rows):
    pages = store.connection.execute("PRAGMA page_count").fetchone()[0]
    store.connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    full = r"spool\.sqlite: database or disk is full .*free space"
    with pytest.raises(StreamError, match=full):
        append_until_full(store, rows)
    whole = store.last_position
    assert whole % 30 == 0
    assert store.read(0, 10_000)[1].size == whole


def test_file_of_another_robot_is_explained(tmp_path, store, rows):
    store.append(rows)
    with pytest.raises(
        StreamError, match=r"another robot interface: .+; use another file"
    ):
        TransitionStore(store.path, load_interface("ur5e_2f85"))


def test_tighter_limits_do_not_invalidate_a_file(store, interface):
    block = interface.action[0]
    tighter = dataclasses.replace(block, high=tuple(0.5 * high for high in block.high))
    with TransitionStore(
        store.path, dataclasses.replace(interface, action=(tighter,))
    ) as again:
        assert again.last_position == 0


def test_newer_file_is_refused_by_version(store, interface):
    store.set_meta("store_version", 2)
    with pytest.raises(StreamError, match="store_version is 2, this program reads 1"):
        TransitionStore(store.path, interface)


def test_file_that_is_no_database_is_named(tmp_path, interface):
    path = tmp_path / "spool.sqlite"
    path.write_bytes(b"no database" * 500)
    with pytest.raises(StreamError, match=r"spool\.sqlite: file is not a database"):
        TransitionStore(path, interface)


def test_rows_of_another_layout_are_refused(store):
    with pytest.raises(StreamError, match="expected"):
        store.append(np.zeros(3, "V9"))


def test_seq_that_sqlite_cannot_hold_is_an_error_of_the_store(store, rows):
    rows["seq"][3] = 2**63
    with pytest.raises(StreamError, match="OverflowError"):
        store.append(rows)
    assert store.last_position == 0


def test_file_that_cannot_be_written_is_named(store, rows):
    store.connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StreamError, match="readonly database"):
        store.append(rows)


def test_half_made_file_is_finished_on_the_next_open(tmp_path, interface, rows):
    path = tmp_path / "spool.sqlite"
    sqlite3.connect(path).close()
    with TransitionStore(path, interface) as store:
        assert store.append(rows).size == 30
