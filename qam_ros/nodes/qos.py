# SPDX-License-Identifier: Apache-2.0
"""Quality of service of every topic, each with its reason."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy


def _profile(depth: int, *, reliable: bool = True, kept: bool = False) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE
        if reliable
        else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL
        if kept
        else DurabilityPolicy.VOLATILE,
    )


SENSOR_IN = _profile(5, reliable=False)
"""Reads from any driver, best effort or reliable; an old sample is worth nothing."""
SENSOR_OUT = _profile(5)
"""A reliable publisher matches best-effort and reliable readers."""
LOCKSTEP_IN = _profile(5)
"""Sensors in lockstep: the simulation waits for an answer, so no sample may be lost."""
CLOCK_OUT = _profile(1)
"""Only the newest time counts; matches both kinds of reader."""
COMMAND = _profile(1)
"""A command must arrive, and only the newest one may."""
HISTORY = _profile(4096, kept=True)
"""Proposals, reports, rewards and events: a stream node that restarts still gets what it missed."""
TICK_IN = _profile(5)
"""Proposals at the guard: reliable, but what is older than a few ticks is of no use."""
LABEL_IN = _profile(256)
"""Reports at the episode node: a row whose report it misses goes without a label, and is masked."""
EVENT_IN = _profile(10, kept=True)
"""Episode events at guard and policy: one that joins late must know what episode runs."""
BATCH = _profile(64)
"""Transition batches: reliable; what is lost all the same is resent, so nothing need be kept."""
ACK = _profile(64)
"""Acknowledgements: a later one covers those before, and a batch sent again is acknowledged again."""
UPDATE = _profile(64)
"""Parts of policy updates: reliable; a robot that joins late is offered the update again."""
STATUS = _profile(1, kept=True)
"""Statuses: the present one, also for those who join late."""
STOP_IN = _profile(10)
"""Emergency stop and human actions: every one must arrive."""
STATE_IN = _profile(1, kept=True)
"""A stop button that keeps its state: pressed before the guard started, it counts."""
DIAGNOSTICS = _profile(10)
"""As diagnostic aggregators expect it."""
