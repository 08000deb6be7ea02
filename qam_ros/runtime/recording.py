# SPDX-License-Identifier: Apache-2.0
"""Bags of transitions: MCAP files in rosbag2's layout that survive ``kill -9``.

A bag is a folder with ``<name>_0.mcap``, ``<name>_1.mcap``, ... and ``metadata.yaml``, which comes
last. Each call of ``BagWriter.write`` ends a chunk and hands it to the operating system, so that a
killed recorder leaves every row of every finished call in the file; ``recover`` reads such a file
as a stream and writes the missing end. docs/formats/recording.md
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from mcap.records import Channel, Footer, Message, Metadata, Schema
from mcap.writer import CompressionType, Writer

from qam_ros.contract.errors import DatasetError
from qam_ros.contract.interface import (
    RobotInterface,
    explain_mismatch,
    read_interface,
    write_interface,
)
from qam_ros.contract.transition import TRANSITION_VERSION, Rows, validate_transitions
from qam_ros.runtime.bag_files import (
    TORN,
    BagFile,
    mcap_files,
    mcap_records,
    write_metadata,
)
from qam_ros.runtime.cdr import TRANSITION_TYPE, TransitionCodec

TOPIC: Final = "transition"
_ABOUT: Final = "qam_transitions"  # MCAP metadata record: what the rows are made of
_HINT: Final = "run `qam data recover` on it first"


class BagWriter:
    """Records the rows of one robot.

    Args:
        folder: the bag; must not exist. See ``free_folder``.
        interface: what the rows are made of; the bag carries it.
        robot: name in the messages.
        file_bytes: a file is closed and the next begun above this size.

    Raises:
        OSError: the folder exists already or cannot be made.
    """

    def __init__(
        self,
        folder: str | Path,
        interface: RobotInterface,
        robot: str,
        *,
        file_bytes: int = 1 << 26,
    ) -> None:
        self.folder = Path(folder)
        self.interface = interface
        self.robot = robot
        self.file_bytes = file_bytes
        self._codec = TransitionCodec(interface, robot)
        self._files: list[BagFile] = []
        self._stream: IO[bytes] | None = None
        self._writer: Any = None  # mcap leaves some methods without types
        self._channel = 0
        self.folder.mkdir(parents=True)
        self._begin()

    def write(self, rows: Rows) -> None:
        """Record rows; when it returns, they survive the death of the process."""
        if self._stream is None or self._stream.tell() > self.file_bytes:
            self._end()
            self._begin()
        for row in rows:
            stamp_ns = int(row["observation_stamp_ns"])
            self._writer.add_message(
                self._channel,
                stamp_ns,
                self._codec.write(row),
                stamp_ns,
                int(row["seq"]) & 0xFFFFFFFF,
            )
            self._files[-1].add(TOPIC, TRANSITION_TYPE, stamp_ns)
        self._writer.flush()

    def close(self) -> None:
        """Write the end of the file and metadata.yaml."""
        self._end()
        write_metadata(
            self.folder, self._files, {TRANSITION_TYPE: self._codec.type_hash}
        )

    def _begin(self) -> None:
        path = self.folder / f"{self.folder.name}_{len(self._files)}.mcap"
        self._stream = path.open("xb")
        self._files.append(BagFile(path))
        self._writer = Writer(self._stream, compression=CompressionType.NONE)
        self._writer.start(profile="ros2", library="qam_ros")
        about = {
            "robot": self.robot,
            "transition_version": str(TRANSITION_VERSION),
            "interface_hash": self.interface.semantic_hash,
            "interface": json.dumps(write_interface(self.interface)),
        }
        self._writer.add_metadata(_ABOUT, about)
        schema = self._writer.register_schema(
            TRANSITION_TYPE, "ros2msg", self._codec.definition.encode()
        )
        self._channel = self._writer.register_channel(
            TOPIC, "cdr", schema, {"offered_qos_profiles": ""}
        )
        self._writer.flush()
        self._stream.flush()

    def _end(self) -> None:
        if self._stream is not None:
            self._writer.finish()
            self._stream.close()
            self._stream = None


def free_folder(folder: str | Path) -> Path:
    """The folder itself if it does not exist yet, else the first free of <folder>_1, _2, ..."""
    folder = Path(folder)
    candidate, number = folder, 0
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}_{number}")
    return candidate


def recorded_interface(bag: str | Path) -> RobotInterface:
    """Robot interface that a bag was recorded with, as its first file says.

    Raises:
        DatasetError: no bag, a damaged one, or one without transitions.
    """
    paths = mcap_files(Path(bag))
    if not paths:
        raise DatasetError(
            f"{bag}: no .mcap file in this folder; name the folder of a bag"
        )
    return _check_about(paths[0], _read_transitions(paths[0])[0], None)


def import_bag(bag: str | Path, interface: RobotInterface | None = None) -> Rows:
    """Transitions of a bag, each key once, sorted by session (as it first appears) and seq.

    Args:
        bag: folder of a bag.
        interface: what the rows should be made of; None takes the interface in the bag.

    Returns:
        (N,) rows, bit for bit as they were recorded.

    Raises:
        DatasetError: no bag, a damaged one, one without transitions or of another interface.
        TransitionError: a row breaks the rules of the format.
    """
    bag = Path(bag)
    if not (bag / "metadata.yaml").is_file() and mcap_files(bag):
        raise DatasetError(
            f"{bag}: metadata.yaml is missing, so recording did not end well; {_HINT}"
        )
    parts = []
    for path in mcap_files(bag):
        about, messages = _read_transitions(path)
        if not about and not messages:
            continue  # killed before the first flush
        recorded = _check_about(path, about, interface)
        codec = TransitionCodec(recorded, about["robot"])
        rows = np.zeros(len(messages), codec.dtype)
        for index, data in enumerate(messages):
            codec.read(data, rows, index)
        validate_transitions(rows, recorded)
        parts.append(rows)
    if not parts:
        raise DatasetError(
            f"{bag}: no transitions in this folder; name the folder of a bag that was recorded "
            "by `qam up record`"
        )
    return _sorted_once(np.concatenate(parts))


@dataclass(frozen=True, slots=True)
class Recovery:
    """What ``recover`` did.

    Args:
        bag: the folder, readable again.
        messages: messages in it now.
        repaired: files whose end was missing; the originals are kept as ``*.mcap.damaged``.
    """

    bag: Path
    messages: int
    repaired: tuple[Path, ...]


def recover(bag: str | Path) -> Recovery:
    """Make a bag readable whose recorder was killed; a sound bag is left as it is.

    Args:
        bag: folder of a bag, of transitions or any other.

    Raises:
        DatasetError: there is no MCAP file in the folder.
    """
    bag = Path(bag)
    paths = mcap_files(bag)
    if not paths:
        raise DatasetError(
            f"{bag}: no .mcap file in this folder; name the folder of a bag"
        )
    files: list[BagFile] = []
    repaired: list[Path] = []
    for path in paths:
        found, sound = _scan(path, None)
        if not sound:
            found = _rewrite(path)
            repaired.append(path)
        files.append(found)
    if repaired or not (bag / "metadata.yaml").is_file():
        write_metadata(bag, files, {})
    return Recovery(bag, sum(file.messages for file in files), tuple(repaired))


def _read_transitions(path: Path) -> tuple[dict[str, str], list[bytes]]:
    """What a file says about itself, and its messages on the transition topic."""
    about: dict[str, str] = {}
    wanted: set[int] = set()
    messages: list[bytes] = []
    try:
        with path.open("rb") as stream:
            for record in mcap_records(stream):
                if isinstance(record, Metadata) and record.name == _ABOUT:
                    about = dict(record.metadata)
                elif isinstance(record, Channel) and record.topic.lstrip("/") == TOPIC:
                    wanted.add(record.id)
                elif isinstance(record, Message) and record.channel_id in wanted:
                    messages.append(record.data)
    except TORN as error:
        raise DatasetError(
            f"{path}: damaged or cut short ({error}); {_HINT}"
        ) from error
    return about, messages


def _check_about(
    path: Path, about: dict[str, str], interface: RobotInterface | None
) -> RobotInterface:
    """The interface a file was recorded with, if it is the expected one."""
    if about.get("transition_version") != str(TRANSITION_VERSION):
        raise DatasetError(
            f"{path}: transitions of format {about.get('transition_version', 'unknown')}, this "
            f"program reads {TRANSITION_VERSION}; was it recorded by `qam up record`?"
        )
    recorded = read_interface(json.loads(about["interface"]), str(path))
    if interface is not None and interface.semantic_hash != recorded.semantic_hash:
        raise DatasetError(
            f"{path} was recorded with another robot interface: "
            f"{explain_mismatch(recorded, interface)}"
        )
    return recorded


def _sorted_once(rows: Rows) -> Rows:
    sessions: dict[bytes, int] = {}
    order = [
        (sessions.setdefault(bytes(session), len(sessions)), int(seq))
        for session, seq in zip(rows["session"], rows["seq"], strict=True)
    ]
    first: dict[tuple[int, int], int] = {}
    for index, key in enumerate(order):
        first.setdefault(key, index)
    return rows[[first[key] for key in sorted(first)]]


def _scan(path: Path, writer: Writer | None) -> tuple[BagFile, bool]:
    """Read a file as a stream, copy it into a writer if there is one; False if its end is torn."""
    found = BagFile(path)
    schemas: dict[int, tuple[int, str]] = {}
    channels: dict[int, tuple[int, str, str]] = {}
    try:
        with path.open("rb") as stream:
            for record in mcap_records(stream):
                if isinstance(record, Schema) and record.id not in schemas:
                    new = 0
                    if writer is not None:
                        new = writer.register_schema(
                            record.name, record.encoding, record.data
                        )
                    schemas[record.id] = (new, record.name)
                elif isinstance(record, Channel) and record.id not in channels:
                    schema, kind = schemas.get(record.schema_id, (0, ""))
                    new = 0
                    if writer is not None:
                        new = writer.register_channel(
                            record.topic,
                            record.message_encoding,
                            schema,
                            record.metadata,
                        )
                    channels[record.id] = (new, record.topic, kind)
                elif isinstance(record, Metadata) and writer is not None:
                    writer.add_metadata(record.name, record.metadata)
                elif isinstance(record, Message) and record.channel_id in channels:
                    channel, topic, kind = channels[record.channel_id]
                    found.add(topic, kind, record.log_time)
                    if writer is not None:
                        writer.add_message(
                            channel,
                            record.log_time,
                            record.data,
                            record.publish_time,
                            record.sequence,
                        )
                elif isinstance(record, Footer):
                    return found, True
    except TORN:
        pass
    return found, False


def _rewrite(path: Path) -> BagFile:
    """Replace a torn file by what a stream reader gets out of it; the original is kept aside."""
    fresh = path.with_suffix(".mcap.part")
    with fresh.open("wb") as stream:
        writer: Any = Writer(stream, compression=CompressionType.NONE)
        writer.start(profile="ros2", library="qam_ros")
        found, _ = _scan(path, writer)
        writer.finish()
        stream.flush()
        os.fsync(stream.fileno())
    damaged = path.with_suffix(".mcap.damaged")
    damaged.unlink(missing_ok=True)
    os.link(path, damaged)  # not moved: at no instant is there no file of this name
    fresh.replace(path)
    return found
