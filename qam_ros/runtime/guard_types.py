# SPDX-License-Identifier: Apache-2.0
"""What the guard knows, what goes into it, what comes out, and what it remembers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qam_ros.contract.messages import (
    ActionProposal,
    EpisodeEvent,
    GuardReport,
    HumanAction,
)
from qam_ros.contract.robot_interface import RobotInterface
from qam_ros.contract.transition import GuardMode
from qam_ros.runtime.guard_limits import CommandLimits

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]
BoolArray = npt.NDArray[np.bool_]
Fields = Mapping[str, FloatArray]
"""Raw values of one message: field path -> components."""


@dataclass(frozen=True)
class MeasuredInput:
    """Where a part of the measured command vector is read from."""

    topic: str
    field: str
    raw_size: int
    indices: IntArray
    transform: Callable[[FloatArray], FloatArray] | None
    where: slice
    max_age_ns: int


@dataclass(frozen=True)
class CommandOutput:
    """Where a part of the command vector is written to."""

    topic: str
    field: str
    size: int
    indices: IntArray
    transform: Callable[[FloatArray], FloatArray] | None
    where: slice
    velocity: bool


@dataclass(frozen=True)
class Watch:
    """Observation elements of one topic that cannot stay the same while the robot moves."""

    topic: str
    indices: IntArray
    max_age_ns: int


@dataclass(frozen=True)
class GuardConfig:
    """Everything the guard knows beforehand; made by ``guard_config``.

    Args:
        interface: the robot, with the limits of this deployment.
        limits: limits of the command vector.
        scale: (A,) physical action at normalised 1, less the offset.
        offset: (A,) physical action at normalised 0.
        delta: (A,) the action is added to the measured value.
        velocity: (A,) the command is a velocity.
        inputs: measured values.
        outputs: commands.
        watches: observation elements watched for a frozen sensor.
        max_ages_s: (blocks,) oldest observation blocks that may be acted on [s].
        period_ns: control period T [ns].
        hold_ticks: bad ticks in a row that are bridged by holding; the next one stops.
        ramp_ns: time in which the limits open after a start [ns].
        human_timeout_ns: oldest human action that is executed [ns].
        dry_run: compute and report, command nothing.
    """

    interface: RobotInterface
    limits: CommandLimits
    scale: FloatArray
    offset: FloatArray
    delta: BoolArray
    velocity: BoolArray
    inputs: tuple[MeasuredInput, ...]
    outputs: tuple[CommandOutput, ...]
    watches: tuple[Watch, ...]
    max_ages_s: FloatArray
    period_ns: int
    hold_ticks: int
    ramp_ns: int
    human_timeout_ns: int
    dry_run: bool


@dataclass(frozen=True, slots=True)
class GuardState:
    """What the guard remembers from tick to tick; the first one is ``initial_state``.

    Args:
        command: (A,) last command; its positions have no meaning until ``anchored``.
        rate: (A,) its rate [unit/s].
        mode: mode of the last tick.
        latch: SAFE_STOP or ESTOP until a reset, else None.
        tick: ticks so far.
        seq: rows so far.
        last_tick_ns: time of the last tick that was not refused [ns], None before the first.
        last_now_ns: clock at the last call [ns].
        restart: the next motion starts at the measured pose.
        anchored: the last position target is of this episode, so it may be repeated.
        ramp_start_ns: tick time of the first command after a start [ns].
        bad_ticks: bad ticks in a row.
        episode: id of the last episode started.
        in_episode: between its START and its END or ABORT.
        episode_start_ns: stamp of its first observation [ns].
        row_stamp_ns: observation stamp of the last row [ns], -1 before the first of an episode.
        policy: session of the policy that is answered, and the highest tick of it seen.
        retired: sessions answered before, the newest first; none of them is answered again.
        watched: the last observation, for frozen sensors, or None.
        changed_ns: per watch, stamp of the last observation in which it changed or may rest [ns].
    """

    command: FloatArray
    rate: FloatArray
    mode: GuardMode = GuardMode.IDLE
    latch: GuardMode | None = None
    tick: int = 0
    seq: int = 0
    last_tick_ns: int | None = None
    last_now_ns: int = 0
    restart: bool = True
    anchored: bool = False
    ramp_start_ns: int = 0
    bad_ticks: int = 0
    episode: int = 0
    in_episode: bool = False
    episode_start_ns: int = 0
    row_stamp_ns: int = -1
    policy: tuple[bytes, int] = (b"", -1)
    retired: tuple[bytes, ...] = ()
    watched: npt.NDArray[np.float32] | None = None
    changed_ns: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GuardInputs:
    """What is known at a tick.

    Args:
        now_ns: clock in the domain of the stamps [ns].
        tick_ns: time of this tick: a clock that never steps in real time, in lockstep the stamp
            of the observation answered or missed [ns].
        proposal: the policy's proposal, or None when it did not come in time.
        measured: topic -> (stamp [ns], raw fields).
        human: (time of arrival [ns], message) of the last human action, or None.
        estop: the emergency stop is pressed.
        reset: somebody asks to leave a latched stop.
        events: episode events since the last tick, in order.
    """

    now_ns: int
    tick_ns: int
    proposal: ActionProposal | None = None
    measured: Mapping[str, tuple[int, Fields]] = field(default_factory=dict)
    human: tuple[int, HumanAction] | None = None
    estop: bool = False
    reset: bool = False
    events: tuple[EpisodeEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class GuardOutput:
    """What a tick leads to.

    Args:
        commands: topic -> field path -> values, as the message carries them; empty: send nothing.
        stamp_ns: stamp for the commands: that of the observation answered, else the clock [ns].
        report: what to report.
        reason: why the guard is in this mode, in words.
    """

    commands: Mapping[str, Mapping[str, FloatArray]]
    stamp_ns: int
    report: GuardReport
    reason: str
