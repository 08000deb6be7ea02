# SPDX-License-Identifier: Apache-2.0
"""What leaves the guard: command fields per topic, the report of a tick, the reason in words."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from qam_ros.contract.messages import GuardReport
from qam_ros.contract.transition import ActionSource, GuardMode, LimitBit
from qam_ros.runtime.guard_checks import (
    STALE_OBSERVATION,
    STALE_PROPRIOCEPTION,
    Checked,
)
from qam_ros.runtime.guard_limits import wrap_angle
from qam_ros.runtime.guard_types import FloatArray, GuardConfig, GuardInputs, GuardState

Float32Array = npt.NDArray[np.float32]

NO_ACTION: Final[Float32Array] = np.zeros(0, dtype=np.float32)
NO_SESSION: Final = bytes(16)
MOTION: Final = (GuardMode.RAMP, GuardMode.ACTIVE)

_WORDS: Final = {
    LimitBit.NON_FINITE: "a number that is not finite",
    LimitBit.MISSING: "no action in time",
    LimitBit.STALE_OBSERVATION: "observation too old",
    LimitBit.STALE_PROPRIOCEPTION: "measured pose missing or too old",
    LimitBit.MALFORMED: "malformed, repeated or future proposal",
    LimitBit.OUTSIDE: "measured pose outside the limits: bring the robot back by its own means",
    LimitBit.FROZEN: "a sensor repeats its values while the robot moves",
}


def wanted_command(config: GuardConfig, checked: Checked) -> FloatArray:
    """The command that an action means, before any limit; (A,) [units of the blocks]."""
    physical = checked.action * config.scale + config.offset
    moved = np.where(config.delta, checked.measured + physical, physical)
    return wrap_angle(moved, config.limits.periodic)


def holds_position(config: GuardConfig, state: GuardState) -> bool:
    """A position target is sent without motion: held inside an episode, or braked after its end."""
    if state.mode in MOTION or not state.anchored:
        return False
    return state.in_episode or bool(state.rate[~config.velocity].any())


def executed_action(
    config: GuardConfig,
    state: GuardState,
    checked: Checked,
    command: FloatArray,
    limit_bits: int,
) -> Float32Array:
    """Normalised action that a command amounts to; bitwise the proposed one where no limit bound.

    Returns:
        (A,) float32 in [-1, 1]; empty when nothing is sent.
    """
    moving = state.mode in MOTION
    if config.dry_run or not (moving or holds_position(config, state)):
        return NO_ACTION
    if moving and limit_bits == 0:
        return checked.action
    if checked.faults & STALE_PROPRIOCEPTION:
        return np.zeros(len(config.scale), dtype=np.float32)
    moved = wrap_angle(command - checked.measured, config.limits.wrap)
    physical = np.where(config.delta, moved, command)
    executed = np.clip((physical - config.offset) / config.scale, -1.0, 1.0).astype(
        np.float32
    )
    if moving:
        executed = np.where(
            command == wanted_command(config, checked), checked.action, executed
        )
    return executed  # (A,)


def command_fields(
    config: GuardConfig, state: GuardState, command: FloatArray
) -> dict[str, dict[str, FloatArray]]:
    """Values of the command messages: topic -> field path -> components of the field.

    Between episodes positions are left to the robot's controller, which holds the last target (the
    robot may be placed elsewhere); a velocity always goes out.
    """
    commands: dict[str, dict[str, FloatArray]] = {}
    if config.dry_run:
        return commands
    positions = state.mode in MOTION or holds_position(config, state)
    for output in config.outputs:
        if not (positions or output.velocity):
            continue
        values = command[output.where]
        if output.transform is not None:
            values = output.transform(values)
        fields = commands.setdefault(output.topic, {})
        if output.field not in fields:
            fields[output.field] = np.zeros(output.size)
        fields[output.field][output.indices] = values
    return commands


def make_report(
    config: GuardConfig,
    state: GuardState,
    inputs: GuardInputs,
    checked: Checked,
    executed: Float32Array,
    bits: int,
    session: bytes,
) -> GuardReport:
    """Report of a tick. It is a row inside an episode, with a new and well-formed observation."""
    proposal = inputs.proposal
    stamp_ns = 0 if proposal is None else proposal.stamp_ns
    is_row = (
        checked.usable
        and state.in_episode
        and state.episode_start_ns <= stamp_ns
        and state.row_stamp_ns < stamp_ns
    )
    moving = state.mode in MOTION
    mode = GuardMode.DRY_RUN if config.dry_run and moving else state.mode
    return GuardReport(
        stamp_ns=inputs.now_ns,
        session=session,
        tick=state.tick,
        is_row=is_row,
        seq=state.seq,
        policy_session=NO_SESSION if proposal is None else proposal.policy_session,
        policy_tick=0 if proposal is None else proposal.tick,
        observation_stamp_ns=stamp_ns,
        episode=state.episode,
        step=0 if proposal is None else proposal.step,
        mode=int(mode),
        source=int(checked.source if moving else ActionSource.SAFE),
        limit_bits=bits,
        masked=mode not in MOTION or bool(bits & STALE_OBSERVATION),
        executed=executed,
        latency_ns=0,
    )


def reason(state: GuardState, faults: int) -> str:
    """Why the guard is in its mode, in words."""
    if state.mode in MOTION:
        return "moving"
    if state.mode == GuardMode.IDLE:
        return "no episode"
    if state.mode == GuardMode.ESTOP:
        return "emergency stop: release it, then reset"
    words = ", ".join(text for bit, text in _WORDS.items() if faults & bit)
    if state.mode == GuardMode.SAFE_STOP:
        return f"stopped until reset; last tick: {words or 'good'}"
    return words
