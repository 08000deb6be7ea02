# SPDX-License-Identifier: Apache-2.0
"""Observation assembler: newest message of every topic in, one observation with its ages out.

The same numbers as ``contract.assembly.assemble``, block by block as the messages come in.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
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


class Assembler:
    """Collects raw message values of a robot.

    Args:
        interface: the robot.
    """

    def __init__(self, interface: RobotInterface) -> None:
        self.rejected: Counter[str] = Counter()
        self._values = np.full(interface.observation_size, np.nan)
        self._offset = np.concatenate([b.offset_array for b in interface.observation])
        self._scale = np.concatenate([b.scale_array for b in interface.observation])
        self._blocks: dict[str, list[tuple[ObservationBlock, slice]]] = {}
        for block in interface.observation:
            item = (block, interface.observation_slices[block.name])
            self._blocks.setdefault(block.source.topic, []).append(item)
        self._topic_of = [block.source.topic for block in interface.observation]
        self._stamps: dict[str, int] = {}
        self._fresh: set[str] = set()

    @property
    def topics(self) -> tuple[str, ...]:
        """Topics to subscribe to."""
        return tuple(self._blocks)

    @property
    def complete(self) -> bool:
        """Every topic was received at least once."""
        return len(self._stamps) == len(self._blocks)

    @property
    def fresh(self) -> bool:
        """Every topic was received since the last ``observe``."""
        return len(self._fresh) == len(self._blocks)

    def update(self, stamp_ns: int, values: Mapping[str, Fields]) -> None:
        """Take in messages; older ones than those at hand and topics not needed are ignored.

        A message with a missing field or another size is counted in ``rejected``.

        Args:
            stamp_ns: stamp of the messages [ns].
            values: topic -> field path -> components, as the messages carry them.
        """
        for topic, fields in values.items():
            blocks = self._blocks.get(topic)
            if blocks is None:
                continue
            behind_ns = self._stamps.get(topic, stamp_ns) - stamp_ns
            if 0 < behind_ns < CLOCK_RESTART_NS:
                continue
            parts = [_block_part(block, fields) for block, _ in blocks]
            if any(part is None for part in parts):
                self.rejected[topic] += 1
                continue
            for (_, where), part in zip(blocks, parts, strict=True):
                self._values[where] = part
            self._stamps[topic] = stamp_ns
            self._fresh.add(topic)

    def common_stamp_ns(self) -> int | None:
        """Stamp [ns] if every topic has the same one, else None."""
        stamps = set(self._stamps.values())
        return stamps.pop() if self.complete and len(stamps) == 1 else None

    def observe(self) -> Observation:
        """The observation now; call only when ``complete``."""
        self._fresh.clear()
        stamp_ns = max(self._stamps.values())
        ages_ns = [stamp_ns - self._stamps[topic] for topic in self._topic_of]
        values = (self._values - self._offset) * self._scale
        return Observation(
            stamp_ns,
            values.astype(np.float32),
            (np.asarray(ages_ns) * 1e-9).astype(np.float32),
        )


def _block_part(block: ObservationBlock, fields: Fields) -> FloatArray | None:
    raw = fields.get(block.source.field)
    if raw is None:
        return None
    raw = np.asarray(raw, dtype=np.float64)
    if raw.shape != (block.raw_size,):
        return None
    if block.transform is None:
        whole = len(block.indices) == block.raw_size
        return raw if whole and _in_order(block.indices) else raw[list(block.indices)]
    # arctan2 would make a plausible angle of infinities; on four numbers numpy takes five times longer
    if not all(map(math.isfinite, raw.tolist())):
        return np.full(block.size, np.nan)
    return TRANSFORMS[block.transform].apply(raw)


@cache
def _in_order(indices: tuple[int, ...]) -> bool:
    return indices == tuple(range(len(indices)))
