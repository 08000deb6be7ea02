# SPDX-License-Identifier: Apache-2.0
"""Observation assembler: newest message of every topic in, one observation with its ages out.

The same numbers as ``contract.assembly.assemble``, block by block as the messages come in.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from qam_ros.contract.blocks import ObservationBlock
from qam_ros.contract.robot_interface import RobotInterface
from qam_ros.contract.transforms import TRANSFORMS

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
Fields = Mapping[str, FloatArray]

CLOCK_RESTART_NS: Final = 1_000_000_000
"""A stamp so much older than the last one comes from a restarted clock, not from a detour."""


REORDERING: Final = frozenset({"quaternion_wxyz"})
"""Transforms that only move numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What the policy sees at a tick.

    Args:
        stamp_ns: stamp of the newest block [ns].
        values: (O,) float32.
        ages_s: (blocks,) stamp less the block's own stamp [s].
    """

    stamp_ns: int
    values: Float32Array
    ages_s: Float32Array


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a topic: its path, its shape, and its place in the list of raw fields."""

    path: str
    shape: tuple[int]
    index: int


class Assembler:
    """Collects raw message values of a robot.

    What can be looked up once is looked up here, and what only moves numbers is one gather: a tick
    finds the processor's caches full of weights, and every line of it counts twice.

    Args:
        interface: the robot.
    """

    def __init__(self, interface: RobotInterface) -> None:
        self.rejected: Counter[str] = Counter()
        self._offset = np.concatenate([b.offset_array for b in interface.observation])
        self._scale = np.concatenate([b.scale_array for b in interface.observation])
        self._fields: dict[str, list[_Field]] = {}
        self._raw: list[FloatArray] = []
        starts: dict[tuple[str, str], int] = {}
        places: dict[tuple[str, str], int] = {}
        for block in interface.observation:
            key = block.source.key
            if key not in starts:
                starts[key] = sum(raw.size for raw in self._raw)
                places[key] = len(self._raw)
                field = _Field(key[1], (block.raw_size,), len(self._raw))
                self._fields.setdefault(key[0], []).append(field)
                self._raw.append(np.full(block.raw_size, np.nan))
        self._order = np.concatenate(
            [starts[b.source.key] + _order(b) for b in interface.observation]
        )
        self._transformed = [
            (
                places[block.source.key],
                interface.observation_slices[block.name],
                TRANSFORMS[block.transform].apply,
            )
            for block in interface.observation
            if block.transform is not None and block.transform not in REORDERING
        ]
        self._topic_of = [block.source.topic for block in interface.observation]
        self._stamps: dict[str, int] = {}

    @property
    def topics(self) -> tuple[str, ...]:
        """Topics to subscribe to."""
        return tuple(self._fields)

    @property
    def complete(self) -> bool:
        """Every topic was received at least once."""
        return len(self._stamps) == len(self._fields)

    def update(self, stamp_ns: int, values: Mapping[str, Fields]) -> None:
        """Take in messages; older ones than those at hand and topics not needed are ignored.

        A message with a missing field or another size is counted in ``rejected``.

        Args:
            stamp_ns: stamp of the messages [ns].
            values: topic -> field path -> components, as the messages carry them. The arrays are
                kept until the topic's next message: they must not change.
        """
        for topic, fields in values.items():
            wanted = self._fields.get(topic)
            if wanted is None:
                continue
            behind_ns = self._stamps.get(topic, stamp_ns) - stamp_ns
            if 0 < behind_ns < CLOCK_RESTART_NS:
                continue
            found: list[FloatArray] = []
            for field in wanted:
                raw = _float64(fields.get(field.path))
                if raw is None or raw.shape != field.shape:
                    self.rejected[topic] += 1
                    break
                found.append(raw)
            else:
                for field, raw in zip(wanted, found, strict=True):
                    self._raw[field.index] = raw
                self._stamps[topic] = stamp_ns

    def common_stamp_ns(self) -> int | None:
        """Stamp [ns] if every topic has the same one, else None."""
        stamps = set(self._stamps.values())
        return stamps.pop() if self.complete and len(stamps) == 1 else None

    def observe(self) -> Observation:
        """The observation now; call only when ``complete``."""
        stamps = self._stamps
        stamp_ns = max(stamps.values())
        ages_s = [(stamp_ns - stamps[topic]) * 1e-9 for topic in self._topic_of]
        values = np.concatenate(self._raw).take(self._order)  # (O,)
        for index, where, apply in self._transformed:
            raw = self._raw[index]
            # arctan2 would make a plausible angle of infinities; on four numbers numpy takes five
            # times longer
            finite = all(map(math.isfinite, raw.tolist()))
            values[where] = apply(raw) if finite else np.nan
        values -= self._offset
        values *= self._scale
        return Observation(
            stamp_ns, values.astype(np.float32), np.array(ages_s, dtype=np.float32)
        )


def _order(block: ObservationBlock) -> npt.NDArray[np.intp]:
    """Which numbers of its raw field a block is made of, (size,); of a transform's output, any."""
    if block.transform is None:
        return np.array(block.indices, dtype=np.intp)
    if block.transform in REORDERING:
        numbers = np.arange(block.raw_size, dtype=np.float64)
        return TRANSFORMS[block.transform].apply(numbers).astype(np.intp)
    return np.zeros(block.size, dtype=np.intp)


def _float64(raw: FloatArray | None) -> FloatArray | None:
    if raw is None or (type(raw) is np.ndarray and raw.dtype == np.float64):
        return raw
    return np.asarray(raw, dtype=np.float64)
