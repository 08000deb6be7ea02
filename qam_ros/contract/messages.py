# SPDX-License-Identifier: Apache-2.0
"""In-process form of the messages of package qam_msgs: same names, same fields.

Stamps are integers in nanoseconds, uuids and hashes are bytes, vectors are float32 arrays. They are
compared by identity, because arrays have no single truth value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qam_ros.contract.transition import EpisodeKind

__all__ = [
    "ActionProposal",
    "EpisodeEvent",
    "EpisodeKind",
    "Floats",
    "GuardReport",
    "HumanAction",
    "LearnerStatus",
    "PolicyStatus",
    "PolicyUpdate",
    "StepReward",
    "TransitionAck",
    "TransitionBatch",
]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ActionProposal:
    """What the policy saw and proposes, every tick.

    Args:
        stamp_ns: observation time [ns].
        policy_session: uuid of the policy process (16 bytes).
        tick: counts this session's ticks from 0.
        episode: episode id.
        step: steps since the episode started.
        observation: (O,), empty when none is complete.
        ages_s: (blocks,) age of each block [s].
        action: (A,) normalised, empty when nothing is proposed.
        policy_version: version of the weights.
        chunk_id: which chunk the action belongs to.
        chunk_index: index in that chunk.
    """

    stamp_ns: int
    policy_session: bytes
    tick: int
    episode: int
    step: int
    observation: Floats
    ages_s: Floats
    action: Floats
    policy_version: int
    chunk_id: int
    chunk_index: int


@dataclass(frozen=True, slots=True, eq=False)
class GuardReport:
    """What the guard did with a tick, proposal or none.

    Args:
        stamp_ns: action time [ns].
        session: uuid of the guard process (16 bytes).
        tick: counts this session's ticks from 0.
        is_row: the tick becomes a transition.
        seq: counts this session's rows from 0; valid if ``is_row``.
        policy_session: session of the proposal, zeros if there was none.
        policy_tick: tick of the proposal.
        observation_stamp_ns: observation time of the proposal [ns].
        episode: episode id.
        step: steps since the episode started.
        mode: transition.GuardMode.
        source: transition.ActionSource.
        limit_bits: transition.LimitBit.
        masked: never train on this row.
        executed: (A,) normalised, empty if nothing was sent.
        latency_ns: command publication less observation time [ns]; real time only.
    """

    stamp_ns: int
    session: bytes
    tick: int
    is_row: bool
    seq: int
    policy_session: bytes
    policy_tick: int
    observation_stamp_ns: int
    episode: int
    step: int
    mode: int
    source: int
    limit_bits: int
    masked: bool
    executed: Floats
    latency_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class StepReward:
    """Reward of the action applied at an observation.

    Args:
        stamp_ns: time of the observation the action was applied at [ns].
        episode: episode id.
        step: steps since the episode started.
        reward: the reward.
        terminated: the task ended here; stops the bootstrap.
        truncated: the episode was cut here.
    """

    stamp_ns: int
    episode: int
    step: int
    reward: float
    terminated: bool
    truncated: bool


@dataclass(frozen=True, slots=True, eq=False)
class EpisodeEvent:
    """Start, end or abort of an episode.

    Args:
        stamp_ns: START: first observation's time; END: final observation's time [ns].
        episode: episode id.
        kind: EpisodeKind.
        terminated: the task ended.
        truncated: the episode was cut.
        success: the task was solved.
        steps: number of actions of the episode.
        episode_return: sum of its rewards.
    """

    stamp_ns: int
    episode: int
    kind: int
    terminated: bool
    truncated: bool
    success: bool
    steps: int
    episode_return: float


@dataclass(frozen=True, slots=True, eq=False)
class HumanAction:
    """Input of a human who may take over.

    Args:
        stamp_ns: time of the input [ns].
        takeover: the human drives.
        source_label: device or person.
        action: (A,) normalised.
    """

    stamp_ns: int
    takeover: bool
    source_label: str
    action: Floats


@dataclass(frozen=True, slots=True, eq=False)
class PolicyUpdate:
    """One part of a set of weights offered to a running policy.

    Args:
        run_id: training run.
        version: version of the weights, increasing.
        parent_version: version that ran when these were offered.
        part: index of this part.
        parts: number of parts.
        total_size: bytes of the whole blob.
        sha256: of the whole blob (32 bytes).
        hmac: HMAC-SHA256 of header and sha256 (docs/formats/stream.md; 32 bytes), zeros without a key.
        data: bytes of this part of one safetensors blob.
    """

    run_id: str
    version: int
    parent_version: int
    part: int
    parts: int
    total_size: int
    sha256: bytes
    hmac: bytes
    data: bytes


@dataclass(frozen=True, slots=True, eq=False)
class PolicyStatus:
    """What the robot runs, and its verdict on the version offered last.

    Args:
        stamp_ns: time of the status [ns].
        robot: robot name.
        running_version: version in use.
        offered_version: version judged last; after a rollback the one that was left.
        accepted: the verdict.
        reason: the verdict in words.
        probe_change: mean absolute action change on the probes.
        swap_ms: time the swap took [ms].
        swaps: number of accepted versions.
        refused: number of refused versions.
    """

    stamp_ns: int
    robot: str
    running_version: int
    offered_version: int
    accepted: bool
    reason: str
    probe_change: float
    swap_ms: float
    swaps: int
    refused: int


@dataclass(frozen=True, slots=True, eq=False)
class LearnerStatus:
    """Heartbeat of the learner.

    Args:
        stamp_ns: time of the status [ns].
        run_id: training run.
        updates: gradient updates so far.
        rows: rows committed to replay.
        allowed_steps: credit, total environment steps the plant may have taken.
        version: newest version of the weights.
        finished: the run is complete.
        updates_per_s: present rate [1/s].
    """

    stamp_ns: int
    run_id: str
    updates: int
    rows: int
    allowed_steps: int
    version: int
    finished: bool
    updates_per_s: float


@dataclass(frozen=True, slots=True, eq=False)
class TransitionBatch:
    """Consecutive rows of a spool.

    Args:
        robot: robot name.
        spool: uuid of the spool (16 bytes).
        first_position: spool position of the first row, counted from 1.
        count: number of rows.
        format_version: TRANSITION_VERSION.
        interface_hash: semantic hash of the robot interface (hex).
        crc32: of ``data``.
        data: packed rows, see ``transition.encode``.
    """

    robot: str
    spool: bytes
    first_position: int
    count: int
    format_version: int
    interface_hash: str
    crc32: int
    data: bytes


@dataclass(frozen=True, slots=True, eq=False)
class TransitionAck:
    """How far the learner has committed a spool.

    Args:
        robot: robot name.
        spool: uuid of the spool (16 bytes).
        committed: highest contiguous position committed durably; 0 = none.
        rows_total: rows in replay.
    """

    robot: str
    spool: bytes
    committed: int
    rows_total: int
