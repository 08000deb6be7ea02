# SPDX-License-Identifier: Apache-2.0
"""The files of a rosbag2 bag: their order, their records, and metadata.yaml."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import yaml
from mcap.exceptions import McapError
from mcap.stream_reader import StreamReader

RECORD_LIMIT: Final = 1 << 28
TORN: Final = (McapError, struct.error, ValueError, EOFError, OSError, ArithmeticError)
"""What reading a file that ends in the middle of a record raises."""


@dataclass(slots=True)
class BagFile:
    """One MCAP file of a bag, as metadata.yaml describes it."""

    path: Path
    topics: dict[str, tuple[str, int]] = field(default_factory=dict)
    first_ns: int | None = None
    last_ns: int = 0

    def add(self, topic: str, kind: str, stamp_ns: int) -> None:
        """Count a message."""
        self.topics[topic] = (kind, self.topics.get(topic, (kind, 0))[1] + 1)
        self.first_ns = (
            stamp_ns if self.first_ns is None else min(self.first_ns, stamp_ns)
        )
        self.last_ns = max(self.last_ns, stamp_ns)

    def include(self, other: BagFile) -> None:
        """Count another file's messages too."""
        for topic, (kind, count) in other.topics.items():
            self.topics[topic] = (kind, self.topics.get(topic, (kind, 0))[1] + count)
        if other.first_ns is not None:
            first_ns = other.first_ns if self.first_ns is None else self.first_ns
            self.first_ns = min(first_ns, other.first_ns)
            self.last_ns = max(self.last_ns, other.last_ns)

    @property
    def messages(self) -> int:
        """Messages in the file."""
        return sum(count for _, count in self.topics.values())

    def times(self) -> dict[str, Any]:
        """Start and duration in rosbag2's words."""
        first_ns = self.first_ns or 0
        return {
            "starting_time": {"nanoseconds_since_epoch": first_ns},
            "duration": {"nanoseconds": max(self.last_ns - first_ns, 0)},
            "message_count": self.messages,
        }


def mcap_files(bag: Path) -> list[Path]:
    """Files of a bag in the order of their numbers."""

    def number(path: Path) -> tuple[int, str]:
        last = path.stem.rpartition("_")[2]
        return (int(last) if last.isdigit() else 0, path.name)

    return sorted(bag.glob("*.mcap"), key=number)


def mcap_records(stream: IO[bytes]) -> Iterator[Any]:
    """Records in the order they were written, checksums verified; ends with one of ``TORN``."""
    return StreamReader(
        stream, validate_crcs=True, record_size_limit=RECORD_LIMIT
    ).records


def write_metadata(bag: Path, files: list[BagFile], hashes: dict[str, str]) -> None:
    """Write metadata.yaml as rosbag2 (version 9) has it, whole or not at all.

    Args:
        bag: folder of the bag.
        files: its files, in order.
        hashes: type description hash of each message type, where known.
    """
    whole = BagFile(bag)
    for file in files:
        whole.include(file)
    topics = [
        {
            "topic_metadata": {
                "name": topic,
                "type": kind,
                "serialization_format": "cdr",
                "offered_qos_profiles": [],
                "type_description_hash": hashes.get(kind, ""),
            },
            "message_count": count,
        }
        for topic, (kind, count) in whole.topics.items()
    ]
    information = {
        "version": 9,
        "storage_identifier": "mcap",
        **whole.times(),
        "topics_with_message_count": topics,
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": [file.path.name for file in files],
        "files": [{"path": file.path.name, **file.times()} for file in files],
        "custom_data": None,
        "ros_distro": "",
    }
    part = bag / "metadata.yaml.part"
    part.write_text(
        yaml.safe_dump({"rosbag2_bagfile_information": information}, sort_keys=False)
    )
    part.replace(bag / "metadata.yaml")
