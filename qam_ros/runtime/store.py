# SPDX-License-Identifier: Apache-2.0
"""Transitions on disk: a SQLite file (WAL) that keeps each key once, in the order rows came.

The stream node uses it as its spool, the learner as its replay log. A row has a position, counted
from 1 without holes; trimming takes rows away at the front only and positions are never used
again. Whatever one call writes is one SQLite transaction, so that after ``kill -9`` the file holds
all of a call or nothing of it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qam_ros.contract.errors import StreamError
from qam_ros.contract.interface import (
    RobotInterface,
    explain_mismatch,
    read_interface,
    write_interface,
)
from qam_ros.contract.transition import TRANSITION_VERSION, Rows, transition_dtype

STORE_VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows (
    position INTEGER PRIMARY KEY, session BLOB NOT NULL, seq INTEGER NOT NULL, data BLOB NOT NULL,
    UNIQUE (session, seq));
CREATE TABLE IF NOT EXISTS spools (
    spool BLOB PRIMARY KEY, robot TEXT NOT NULL, committed INTEGER NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Committed:
    """How far a spool has been taken over: ``position`` is the highest contiguous one."""

    robot: str
    spool: bytes
    position: int


class TransitionStore:
    """Rows of one robot interface in one SQLite file.

    One object is one connection, for one thread at a time; a file may be open in several, one of
    which writes.

    Args:
        path: the file; made if missing, its folder too.
        interface: what the rows are made of; must match what the file was made for.
        synchronous: NORMAL survives the death of the process; FULL also that of the machine, for
            one fsync (about 10 ms on a disk) a call.

    Raises:
        StreamError: the file cannot be opened, is damaged, newer, or of another interface.
    """

    def __init__(
        self,
        path: str | Path,
        interface: RobotInterface,
        *,
        synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
    ) -> None:
        self.path = Path(path)
        self.interface = interface
        self.dtype = transition_dtype(interface)
        with self._named():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(
                self.path, timeout=10.0, isolation_level=None, check_same_thread=False
            )
        try:
            with self._named():
                self.connection.execute("PRAGMA journal_mode = WAL")
                self.connection.execute(f"PRAGMA synchronous = {synchronous}")
                self.connection.execute("PRAGMA journal_size_limit = 67108864")
                # Not executescript: it would end the transaction that keeps a half-made file out.
                with self._transaction():
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        self.connection.execute(statement)
                    self._agree()
        except BaseException:
            self.connection.close()
            raise

    # What the file is.

    def _agree(self) -> None:
        """Describe a new file; compare an existing one with the interface."""
        found = dict(self.connection.execute("SELECT key, value FROM meta"))
        if not found:
            described = {
                "store_version": STORE_VERSION,
                "transition_version": TRANSITION_VERSION,
                "interface": json.dumps(write_interface(self.interface)),
                "interface_hash": self.interface.semantic_hash,
                "last_position": 0,
            }
            self.connection.executemany(
                "INSERT INTO meta VALUES (?, ?)", described.items()
            )
            return
        for name, mine in (
            ("store_version", STORE_VERSION),
            ("transition_version", TRANSITION_VERSION),
        ):
            if found.get(name) != mine:
                raise StreamError(
                    f"{self.path}: {name} is {found.get(name)}, this program reads {mine}; "
                    "use the program that wrote the file, or another file",
                    found=found.get(name),
                    expected=mine,
                )
        if found["interface_hash"] != self.interface.semantic_hash:
            theirs = read_interface(json.loads(found["interface"]))
            raise StreamError(
                f"{self.path} holds transitions of another robot interface: "
                f"{explain_mismatch(theirs, self.interface)}; use another file",
                found=found["interface_hash"],
                expected=self.interface.semantic_hash,
            )

    def meta(self, key: str, default: int = 0) -> int:
        """A whole number kept under a name, such as how far the spool was acknowledged."""
        with self._named():
            row = self.connection.execute(
                "SELECT value FROM meta WHERE key = ?", (key,)
            ).fetchone()
        return default if row is None else int(row[0])

    def set_meta(self, key: str, value: int) -> None:
        """Keep a whole number under a name, durably."""
        with self._named(), self._transaction():
            self._put(key, value)

    @property
    def last_position(self) -> int:
        """Position of the newest row = number of rows ever appended; 0 in an empty file."""
        return self.meta("last_position")

    @property
    def first_position(self) -> int:
        """Position of the oldest row that is still there; ``last_position + 1`` if none is."""
        with self._named():
            (first,) = self.connection.execute(
                "SELECT min(position) FROM rows"
            ).fetchone()
        return self.last_position + 1 if first is None else int(first)

    def committed(self, spool: bytes) -> int:
        """Highest contiguous position taken over from a spool; 0 for an unknown one."""
        with self._named():
            row = self.connection.execute(
                "SELECT committed FROM spools WHERE spool = ?", (spool,)
            ).fetchone()
        return 0 if row is None else int(row[0])

    # Rows.

    def append(self, rows: Rows, committed: Committed | None = None) -> Rows:
        """Write rows whose key is not there yet, in one transaction.

        Args:
            rows: (N,) of the interface's transition layout.
            committed: the position of a spool that is taken over with these rows.

        Returns:
            The rows that were new, (M,) with M <= N.

        Raises:
            StreamError: the rows have another layout, or the file cannot be written. Nothing of
                the call is then in the file.
        """
        if rows.dtype != self.dtype or rows.ndim != 1:
            raise StreamError(
                f"{self.path}: rows of {rows.dtype.itemsize} bytes, shape {rows.shape}, expected "
                f"(N,) rows of {self.dtype.itemsize} bytes ({self.interface.robot})"
            )
        if not rows.size and committed is None:
            return rows
        with self._named(), self._transaction():
            fresh = self._without_known(rows)
            if fresh.size:
                self._insert(fresh)
            if committed is not None:
                self.connection.execute(
                    "INSERT INTO spools VALUES (?, ?, ?) ON CONFLICT (spool) DO UPDATE "
                    "SET committed = max(committed, excluded.committed)",
                    (committed.spool, committed.robot, committed.position),
                )
        return fresh

    def read(self, after: int, limit: int) -> tuple[int, Rows]:
        """Rows behind a position, oldest first.

        Args:
            after: position behind which to begin, 0 for the beginning.
            limit: greatest number of rows.

        Returns:
            (position of the first row, rows); without rows (after + 1, empty).
        """
        with self._named():
            found = self.connection.execute(
                "SELECT position, data FROM rows WHERE position > ? ORDER BY position LIMIT ?",
                (after, limit),
            ).fetchall()
        data = b"".join(blob for _, blob in found)
        rows = np.frombuffer(data, dtype=self.dtype)
        return (int(found[0][0]) if found else after + 1), rows

    def recent_keys(self, limit: int) -> list[tuple[bytes, int]]:
        """Keys (session, seq) of the newest rows, oldest first."""
        with self._named():
            found = self.connection.execute(
                "SELECT session, seq FROM rows ORDER BY position DESC LIMIT ?", (limit,)
            ).fetchall()
        return [(bytes(session), int(seq)) for session, seq in reversed(found)]

    def trim(self, position: int) -> int:
        """Take away the rows up to a position; returns how many went."""
        with self._named(), self._transaction():
            return self.connection.execute(
                "DELETE FROM rows WHERE position <= ?", (position,)
            ).rowcount

    def close(self) -> None:
        """Close the file; what was written stays, whether or not this is called."""
        self.connection.close()

    def __enter__(self) -> TransitionStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Inside a transaction.

    def _without_known(self, rows: Rows) -> Rows:
        """The rows whose key is neither in the file nor earlier among the rows."""
        sessions = _session_bytes(rows)
        sequence = rows["seq"].tolist()
        known: set[tuple[bytes, int]] = set()
        for session in set(sessions):
            mine = [
                seq
                for owner, seq in zip(sessions, sequence, strict=True)
                if owner == session
            ]
            known.update(
                (session, seq)
                for (seq,) in self.connection.execute(
                    "SELECT seq FROM rows WHERE session = ? AND seq BETWEEN ? AND ?",
                    (session, min(mine), max(mine)),
                )
            )
        keep = np.ones(rows.size, dtype=bool)
        for index, key in enumerate(zip(sessions, sequence, strict=True)):
            keep[index] = key not in known
            known.add(key)
        return rows if keep.all() else rows[keep]

    def _insert(self, rows: Rows) -> None:
        last = int(
            self.connection.execute(
                "SELECT value FROM meta WHERE key = 'last_position'"
            ).fetchone()[0]
        )
        data, size = rows.tobytes(), self.dtype.itemsize
        self.connection.executemany(
            "INSERT INTO rows VALUES (?, ?, ?, ?)",
            (
                (
                    last + 1 + index,
                    session,
                    seq,
                    data[index * size : (index + 1) * size],
                )
                for index, (session, seq) in enumerate(
                    zip(_session_bytes(rows), rows["seq"].tolist(), strict=True)
                )
            ),
        )
        self._put("last_position", last + rows.size)

    def _put(self, key: str, value: int) -> None:
        self.connection.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value)
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            if (
                self.connection.in_transaction
            ):  # SQLite itself rolls back on a full disk
                self.connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turn an error of SQLite or the file system into one that names the file.

        OverflowError: a number that no integer of SQLite holds.
        """
        try:
            yield
        except (sqlite3.Error, OSError, OverflowError) as error:
            code: Any = getattr(error, "sqlite_errorname", type(error).__name__)
            raise StreamError(
                f"{self.path}: {error} ({code}); check free space, permissions and whether the "
                "folder is on a local disk; a damaged file can be moved away",
                code=code,
            ) from error


def _session_bytes(rows: Rows) -> list[bytes]:
    """The 16 bytes of each row's session."""
    data = np.ascontiguousarray(rows["session"]).tobytes()
    return [data[start : start + 16] for start in range(0, len(data), 16)]
