# SPDX-License-Identifier: Apache-2.0
"""The guard: whatever is proposed, what is commanded is finite and inside the limits.

    IDLE --START--> RAMP --ramp over--> ACTIVE --END, ABORT--> IDLE
    RAMP, ACTIVE --bad tick--> HOLD --good tick--> RAMP, ACTIVE
    HOLD --one bad tick more than hold_ticks--> SAFE_STOP --reset--> RAMP or IDLE
    any --emergency stop--> ESTOP --reset, stop released--> RAMP or IDLE
Holding repeats the last absolute target (a command that still moves is first braked inside the
limits); in a stop a velocity goes to zero. ``step`` is a pure function of time, state and inputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from qam_ros.contract.messages import ActionProposal, EpisodeKind, GuardReport
from qam_ros.contract.transition import ActionSource, GuardMode, LimitBit
from qam_ros.runtime.guard_checks import (
    FROZEN,
    MALFORMED,
    MOVING,
    OUTSIDE,
    STALE_PROPRIOCEPTION,
    Checked,
    check_inputs,
)
from qam_ros.runtime.guard_limits import bound_position, limit_command
from qam_ros.runtime.guard_outputs import (
    MOTION,
    NO_ACTION,
    NO_SESSION,
    command_fields,
    executed_action,
    make_report,
    reason,
    wanted_command,
)
from qam_ros.runtime.guard_types import (
    FloatArray,
    GuardConfig,
    GuardInputs,
    GuardOutput,
    GuardState,
)

SHORTEST_NS: Final = 1000
"""Ticks nearer to each other than this count as so far apart [ns]; nothing moves in that time."""
RETIRED: Final = 16
"""Sessions of policies that are remembered after another one took over."""


def step(
    config: GuardConfig,
    state: GuardState,
    inputs: GuardInputs,
    session: bytes = NO_SESSION,
) -> tuple[GuardState, GuardOutput]:
    """One tick: check the inputs, choose the mode, bound the command, report.

    Args:
        config: the guard's configuration.
        state: what it remembers.
        inputs: what is known now.
        session: uuid of the guard (16 bytes), for the report.

    Returns:
        New state, and what to send and report.
    """
    state = _follow_events(config, state, inputs)
    elapsed_ns = config.period_ns
    if state.last_tick_ns is not None:
        elapsed_ns = inputs.tick_ns - state.last_tick_ns
        if 2 * elapsed_ns < config.period_ns and state.mode != GuardMode.IDLE:
            return _refuse(config, state, inputs, session)
        if 2 * elapsed_ns > 3 * config.period_ns:
            state = _bridge_gap(config, state, elapsed_ns)
    checked = check_inputs(config, state, inputs)
    state = _choose_mode(config, state, checked, inputs.tick_ns)
    state = _anchor(config, state, checked)
    command, rate, limit_bits = _bounded_command(
        config, state, checked, inputs.tick_ns, elapsed_ns
    )
    executed = executed_action(config, state, checked, command, limit_bits)
    report = make_report(
        config, state, inputs, checked, executed, checked.bits | limit_bits, session
    )
    output = GuardOutput(
        commands=command_fields(config, state, command),
        stamp_ns=inputs.now_ns if inputs.proposal is None else inputs.proposal.stamp_ns,
        report=report,
        reason=reason(state, checked.faults),
    )
    return _remember(state, inputs, checked, command, rate, report), output


def _follow_events(
    config: GuardConfig, state: GuardState, inputs: GuardInputs
) -> GuardState:
    """Apply a restarted clock, episode events, emergency stop and reset, in this order."""
    back_ns = 10 * config.period_ns
    if (
        state.last_tick_ns is not None
        and inputs.now_ns < state.last_now_ns - back_ns
        and inputs.tick_ns < state.last_tick_ns - back_ns
    ):  # a new simulation; a stepped wall clock alone leaves tick_ns as it was
        state = replace(state, last_tick_ns=None, in_episode=False)
        state = replace(state, restart=True, anchored=False)
    for event in inputs.events:
        known = (state.episode, state.episode_start_ns)  # ids may begin at 0, or anew
        if event.kind == EpisodeKind.START and (event.episode, event.stamp_ns) != known:
            state = replace(
                state,
                episode=event.episode,
                in_episode=True,
                episode_start_ns=event.stamp_ns,
                row_stamp_ns=event.stamp_ns - 1,
                restart=True,
                anchored=False,
                bad_ticks=0,
                changed_ns=(),
            )
        elif event.kind != EpisodeKind.START and event.episode == state.episode:
            state = replace(state, in_episode=False)
    if inputs.estop:
        state = replace(state, latch=GuardMode.ESTOP)
    elif inputs.reset and state.latch is not None:
        state = replace(state, latch=None, restart=True, bad_ticks=0, changed_ns=())
    return replace(state, last_now_ns=inputs.now_ns)


def _refuse(
    config: GuardConfig, state: GuardState, inputs: GuardInputs, session: bytes
) -> tuple[GuardState, GuardOutput]:
    """A second tick in the same period: nothing is commanded, the proposal is not executed."""
    checked = Checked(
        bits=MALFORMED,
        faults=MALFORMED,
        action=NO_ACTION,
        source=ActionSource.SAFE,
        measured=state.command,
        usable=False,
        changed_ns=(),
    )
    report = make_report(config, state, inputs, checked, NO_ACTION, MALFORMED, session)
    output = GuardOutput(
        {}, inputs.now_ns, report, "second tick in one control period: refused"
    )
    return replace(state, tick=state.tick + 1), output


def _bridge_gap(config: GuardConfig, state: GuardState, elapsed_ns: int) -> GuardState:
    """No command went out for a while: the robot stands at the last target, or was stopped."""
    if elapsed_ns > (config.hold_ticks + 1) * config.period_ns:
        state = replace(state, restart=True)
    return replace(state, rate=np.zeros_like(state.rate))


def _choose_mode(
    config: GuardConfig, state: GuardState, checked: Checked, tick_ns: int
) -> GuardState:
    if state.latch is not None:
        return replace(state, mode=state.latch)
    if not state.in_episode:
        return replace(state, mode=GuardMode.IDLE, restart=True, bad_ticks=0)
    if not checked.faults:
        start_ns = tick_ns if state.restart else state.ramp_start_ns
        over = tick_ns - start_ns >= config.ramp_ns
        mode = GuardMode.ACTIVE if over else GuardMode.RAMP
        return replace(state, mode=mode, ramp_start_ns=start_ns, bad_ticks=0)
    if state.restart:  # nothing moves yet, so there is nothing to stop
        outside = state.bad_ticks + 1 if checked.faults & OUTSIDE else 0
        if outside <= config.hold_ticks:
            return replace(state, mode=GuardMode.HOLD, bad_ticks=outside)
        # Somebody will bring it back: it must not start in that person's hands.
        stop = GuardMode.SAFE_STOP
        return replace(state, mode=stop, latch=stop, bad_ticks=outside)
    bad_ticks = state.bad_ticks + 1
    if bad_ticks > config.hold_ticks:
        stop = GuardMode.SAFE_STOP
        return replace(state, mode=stop, latch=stop, bad_ticks=bad_ticks)
    return replace(state, mode=GuardMode.HOLD, bad_ticks=bad_ticks)


def _anchor(config: GuardConfig, state: GuardState, checked: Checked) -> GuardState:
    """Held before the first motion of an episode: the target to repeat is the pose of this tick."""
    waits = state.in_episode and not state.anchored and state.mode not in MOTION
    if not waits or checked.faults & (STALE_PROPRIOCEPTION | OUTSIDE):
        return state
    start = bound_position(config.limits, checked.measured)
    if (start != checked.measured)[~config.velocity].any():
        return state  # nothing is sent: the edge of the box would be a motion
    return replace(
        state,
        command=np.where(config.velocity, state.command, start),
        rate=np.where(config.velocity, state.rate, 0.0),
        anchored=True,
    )


def _bounded_command(
    config: GuardConfig,
    state: GuardState,
    checked: Checked,
    tick_ns: int,
    elapsed_ns: int,
) -> tuple[FloatArray, FloatArray, int]:
    """Command, its rate and the LimitBit flags that bound."""
    limits, last, rate = config.limits, state.command, state.rate
    passed_s = np.full(len(last), _passed_s(config, elapsed_ns))
    if state.mode not in MOTION:
        stops = config.velocity & (state.mode != GuardMode.HOLD or state.restart)
        target = np.where(stops, 0.0, last)
        return *limit_command(limits, last, rate, target, 1.0, passed_s)[:2], 0
    if state.restart:
        # A position starts at the measured pose, where it rested; a velocity where it was.
        start = bound_position(limits, checked.measured)
        last = np.where(config.velocity, last, start)
        rate = np.where(config.velocity, rate, 0.0)
        passed_s = np.where(config.velocity, passed_s, limits.period_s)
    wanted = wanted_command(config, checked)
    target = bound_position(limits, wanted)
    ramp = 1.0
    if state.mode == GuardMode.RAMP:
        ramp = (tick_ns - state.ramp_start_ns + config.period_ns) / config.ramp_ns
    ramp = min(1.0, ramp)
    command, rate, bits = limit_command(limits, last, rate, target, ramp, passed_s)
    if (target != wanted).any():
        bits |= int(LimitBit.POSITION)
    return command, rate, bits


def _passed_s(config: GuardConfig, elapsed_ns: int) -> float:
    """Time that the limits may count since the last tick [s]: a late tick counts as one in time.

    Between episodes, and with their START, a tick may come right after another.
    """
    if elapsed_ns >= config.period_ns:
        return config.limits.period_s
    return max(elapsed_ns, SHORTEST_NS) * 1e-9


def _remember(
    state: GuardState,
    inputs: GuardInputs,
    checked: Checked,
    command: FloatArray,
    rate: FloatArray,
    report: GuardReport,
) -> GuardState:
    moving = state.mode in MOTION
    proposal = inputs.proposal
    changed_ns = checked.changed_ns
    rests = not moving or float(np.abs(checked.action).max()) < MOVING
    if proposal is not None and rests and not checked.faults & FROZEN:
        changed_ns = (proposal.stamp_ns,) * len(changed_ns)
    policy, retired = _follow_policy(state, proposal, usable=checked.usable)
    return replace(
        state,
        tick=state.tick + 1,
        seq=state.seq + report.is_row,
        last_tick_ns=inputs.tick_ns,
        command=command,
        rate=rate,
        restart=state.restart and not moving,
        anchored=state.anchored or moving,
        row_stamp_ns=report.observation_stamp_ns
        if report.is_row
        else state.row_stamp_ns,
        policy=policy,
        retired=retired,
        watched=proposal.observation if proposal and checked.usable else state.watched,
        changed_ns=changed_ns,
    )


def _follow_policy(
    state: GuardState, proposal: ActionProposal | None, *, usable: bool
) -> tuple[tuple[bytes, int], tuple[bytes, ...]]:
    """Which policy is answered from now on, and which never again.

    A policy that was restarted takes over with its first usable proposal. One that comes back after
    that was believed dead: two at once must not take turns.
    """
    session, last_tick = state.policy
    if proposal is None:
        return state.policy, state.retired
    if not usable:
        return state.policy, state.retired
    if proposal.policy_session == session:
        return (session, max(last_tick, proposal.tick)), state.retired
    retired = (session, *state.retired)[:RETIRED] if session else state.retired
    return (proposal.policy_session, proposal.tick), retired
