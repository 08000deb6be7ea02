# SPDX-License-Identifier: Apache-2.0
"""Policy updates as they travel: parts of one safetensors blob, its hash and its signature."""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass, replace
from typing import Final

from qam_ros.contract.errors import ArtifactError
from qam_ros.contract.messages import PolicyUpdate
from qam_ros.contract.weights import MAX_WEIGHT_BYTES

GOLDEN_NAME: Final = "golden/chunks"
"""Tensor of an update beside the weights: the chunks (64, h, A) they give on the artifact's probes."""
MAX_PARTS: Final = 4096
SIGNATURE_DOMAIN: Final = b"qam_ros policy update, signature 2\0"
"""Begins what is signed, so that nothing else signed with the same key passes for an update."""


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """A whole update, not yet verified."""

    header: PolicyUpdate
    data: bytes


class DamagedError(ArtifactError):
    """Not what was sent, or not the version it says it is: no verdict on that version."""


class PartCollector:
    """Puts the parts of one update after the other together; parts may repeat and come in any order."""

    def __init__(self) -> None:
        self._header: PolicyUpdate | None = None
        self._parts: dict[int, bytes] = {}

    def add(self, part: PolicyUpdate) -> tuple[Offer | None, str]:
        """Take in a part.

        Returns:
            The update once it is whole; and why the part was refused, empty if it was not.
        """
        if not (0 <= part.part < part.parts <= MAX_PARTS):
            return (
                None,
                f"part {part.part} of {part.parts}; at most {MAX_PARTS} are allowed",
            )
        if (
            not 0 < part.total_size <= MAX_WEIGHT_BYTES
            or len(part.data) > part.total_size
        ):
            return (
                None,
                f"size {part.total_size} bytes; at most {MAX_WEIGHT_BYTES} are allowed",
            )
        if self._header is None or _identity(part) != _identity(self._header):
            self._header, self._parts = part, {}
        self._parts[part.part] = part.data
        if sum(map(len, self._parts.values())) > part.total_size:
            self._header, self._parts = None, {}
            return (
                None,
                f"its parts are more than the {part.total_size} bytes announced",
            )
        if len(self._parts) < part.parts:
            return None, ""
        data = b"".join(self._parts[index] for index in range(part.parts))
        self._header, self._parts = None, {}
        return Offer(part, data), ""


def _identity(part: PolicyUpdate) -> tuple[object, ...]:
    return (
        part.run_id,
        part.version,
        part.parent_version,
        part.parts,
        part.total_size,
        part.sha256,
    )


def canonical_header(header: PolicyUpdate) -> bytes:
    """What is signed of an update: all that its parts have in common.

    The one field without a fixed length has its length before it, so no two headers give the same
    bytes; the blob is in it by its sha256. See ``docs/formats/stream.md``.
    """
    run_id = header.run_id.encode()
    return b"".join(
        (
            SIGNATURE_DOMAIN,
            struct.pack(">I", len(run_id)),
            run_id,
            struct.pack(
                ">QQIQ",
                header.version,
                header.parent_version,
                header.parts,
                header.total_size,
            ),
            header.sha256,
        )
    )


def sign(header: PolicyUpdate, key: bytes | None) -> bytes:
    """HMAC-SHA256 of an update's header (32 bytes); zeros without a key.

    Args:
        header: any part; its sha256 must be that of the blob, 32 bytes.
        key: shared key, or None.
    """
    if key is None:
        return bytes(32)
    return hmac.digest(key, canonical_header(header), "sha256")


def split_update(
    data: bytes,
    *,
    run_id: str,
    version: int,
    parent_version: int,
    key: bytes | None = None,
    part_bytes: int = 256 * 1024,
) -> list[PolicyUpdate]:
    """Parts of an update, ready to publish.

    Args:
        data: safetensors blob of the weights and the tensor ``GOLDEN_NAME``.
        run_id: training run.
        version: version of the weights.
        parent_version: version that runs where it is offered.
        key: shared key, or None.
        part_bytes: size of a part; DDS sends large messages badly.
    """
    chunks = [
        data[start : start + part_bytes] for start in range(0, len(data), part_bytes)
    ]
    header = PolicyUpdate(
        run_id=run_id,
        version=version,
        parent_version=parent_version,
        part=0,
        parts=len(chunks),
        total_size=len(data),
        sha256=hashlib.sha256(data).digest(),
        hmac=bytes(32),
        data=b"",
    )
    header = replace(header, hmac=sign(header, key))
    return [
        replace(header, part=index, data=chunk) for index, chunk in enumerate(chunks)
    ]
