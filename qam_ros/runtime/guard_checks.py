# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the inputs of a tick: missing, malformed, not finite, stale or frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from qam_ros.contract.messages import ActionProposal
from qam_ros.contract.transition import ActionSource, LimitBit
from qam_ros.runtime.guard_limits import bound_position
from qam_ros.runtime.guard_types import (
    FloatArray,
    GuardConfig,
    GuardInputs,
    GuardState,
    MeasuredInput,
    Watch,
)

NON_FINITE: Final = int(LimitBit.NON_FINITE)
BOX: Final = int(LimitBit.BOX)
MISSING: Final = int(LimitBit.MISSING)
STALE_OBSERVATION: Final = int(LimitBit.STALE_OBSERVATION)
STALE_PROPRIOCEPTION: Final = int(LimitBit.STALE_PROPRIOCEPTION)
MALFORMED: Final = int(LimitBit.MALFORMED)
FROZEN: Final = int(LimitBit.FROZEN)
OUTSIDE: Final = int(LimitBit.OUTSIDE)

FAULTS: Final = (
    NON_FINITE
    | MISSING
    | STALE_OBSERVATION
    | STALE_PROPRIOCEPTION
    | MALFORMED
    | FROZEN
    | OUTSIDE
)
"""Any of these: the tick is bad, no new motion."""
OF_POLICY: Final = NON_FINITE | MISSING | STALE_OBSERVATION | MALFORMED
"""Faults of proposal or observation: these do not stop a person who drives."""
MOVING: Final = 0.02
"""Normalised action from which a watched sensor must change."""
CLOCK_ERROR_NS: Final = 10_000_000
"""Clocks of synchronised machines differ by less [ns]; what is further in the future is refused."""


@dataclass(frozen=True, slots=True)
class Checked:
    """Inputs of a tick after all checks.

    Args:
        bits: LimitBit flags found.
        faults: those of them that forbid new motion.
        action: (A,) float32 in the box; zeros if there are faults.
        source: whose action it is.
        measured: (A,) float64 measured command vector, 0 where a block has none; of no meaning
            with STALE_PROPRIOCEPTION.
        usable: the proposal is well-formed and new, so that its observation can become a row.
        changed_ns: new ``GuardState.changed_ns``.
    """

    bits: int
    faults: int
    action: npt.NDArray[np.float32]
    source: ActionSource
    measured: FloatArray
    usable: bool
    changed_ns: tuple[int, ...]


def check_inputs(
    config: GuardConfig, state: GuardState, inputs: GuardInputs
) -> Checked:
    """Find out whether a tick may move the robot, and with which action.

    Args:
        config: the guard's configuration.
        state: its state, episode events of this tick already applied.
        inputs: what is known now.
    """
    measured, measured_bits = read_measured(config, inputs)
    if state.in_episode and state.restart and not measured_bits:
        measured_bits = check_start(config, measured)
    proposal_bits, usable = check_proposal(config, state, inputs)
    changed, frozen_bits = state.changed_ns, 0
    if usable and inputs.proposal is not None:
        changed, frozen_bits = check_frozen(config.watches, state, inputs.proposal)
    sensor_bits = measured_bits | frozen_bits
    faults = sensor_bits | proposal_bits & FAULTS
    bits = sensor_bits | proposal_bits
    source = ActionSource.POLICY
    action = np.zeros(len(config.scale), dtype=np.float32)
    if inputs.human is not None and inputs.human[1].takeover:
        source = ActionSource.HUMAN
        action, human_bits = _human_action(config, inputs)
        faults = sensor_bits | human_bits & FAULTS
        bits = sensor_bits | human_bits | proposal_bits & ~BOX
    elif inputs.proposal is not None and not proposal_bits & OF_POLICY:
        action = _in_box(inputs.proposal.action)
    return Checked(bits, faults, action, source, measured, usable, changed)


def read_measured(config: GuardConfig, inputs: GuardInputs) -> tuple[FloatArray, int]:
    """Measured command vector (A,) [units of the blocks], and bits if it is unusable."""
    measured = np.zeros(len(config.scale))
    bits = 0
    for item in config.inputs:
        values, fault = _measure(item, inputs, config.period_ns)
        bits |= fault
        if values is not None:
            measured[item.where] = values
    if bits == 0 and not np.isfinite(measured).all():
        bits = STALE_PROPRIOCEPTION | NON_FINITE
    return measured, bits


def _measure(
    item: MeasuredInput, inputs: GuardInputs, period_ns: int
) -> tuple[FloatArray | None, int]:
    stamp_ns, fields = inputs.measured.get(item.topic, (0, {}))
    age_ns = inputs.now_ns - stamp_ns
    # In lockstep the sensors of the next step may overtake its clock.
    if item.field not in fields or not -period_ns <= age_ns <= item.max_age_ns:
        return None, STALE_PROPRIOCEPTION
    raw = np.asarray(fields[item.field], dtype=np.float64)
    if raw.shape != (item.raw_size,):
        return None, STALE_PROPRIOCEPTION | MALFORMED
    if item.transform is None:
        return raw[item.indices], 0
    if not np.isfinite(raw).all():
        return None, STALE_PROPRIOCEPTION | NON_FINITE
    return item.transform(raw), 0


def check_start(config: GuardConfig, measured: FloatArray) -> int:
    """OUTSIDE where motion would start at a pose that may not be commanded, else 0.

    The first target is the measured pose, brought into the box. Where that is further than the
    robot may go in one period from rest, a sensor is wrong or somebody has to bring the robot back.

    Args:
        config: the guard's configuration.
        measured: (A,) measured command vector, finite.
    """
    limits = config.limits
    beyond = np.abs(measured - bound_position(limits, measured))
    period_s = limits.period_s
    far = beyond > np.minimum(
        limits.max_rate * period_s, limits.max_acceleration * period_s**2
    )
    return OUTSIDE if (far & ~config.velocity & ~limits.periodic).any() else 0


def check_proposal(
    config: GuardConfig, state: GuardState, inputs: GuardInputs
) -> tuple[int, bool]:
    """LimitBit flags of the proposal, and whether its observation is fit to be a row."""
    proposal = inputs.proposal
    missing = MISSING if state.in_episode else 0  # between episodes none is expected
    if proposal is None:
        return missing, False
    interface = config.interface
    session, last_tick = state.policy
    if (
        proposal.observation.shape != (interface.observation_size,)
        or proposal.ages_s.shape != (len(interface.observation),)
        or proposal.action.shape not in ((interface.action_size,), (0,))
        or (proposal.policy_session == session and proposal.tick <= last_tick)
        or proposal.policy_session in state.retired
        or proposal.stamp_ns > inputs.now_ns + CLOCK_ERROR_NS
        or (proposal.ages_s < -1e-9 * CLOCK_ERROR_NS).any()
    ):
        return MALFORMED, False
    if not (
        np.isfinite(proposal.observation).all() and np.isfinite(proposal.ages_s).all()
    ):
        return NON_FINITE, False
    bits = 0
    if proposal.action.size == 0 or proposal.episode != state.episode:
        bits |= missing
    else:
        bits |= _action_bits(proposal.action)
    late_s = max(0, inputs.now_ns - proposal.stamp_ns) * 1e-9
    if (np.maximum(proposal.ages_s, 0.0) + late_s > config.max_ages_s).any():
        bits |= STALE_OBSERVATION
    return bits, proposal.episode == state.episode


def check_frozen(
    watches: tuple[Watch, ...], state: GuardState, proposal: ActionProposal
) -> tuple[tuple[int, ...], int]:
    """Look for sensors whose stamps go on but whose values do not, while the robot is told to move.

    Returns:
        New ``changed_ns`` (stamp of the last change of each watch) and LimitBit flags.
    """
    stamp_ns, old = proposal.stamp_ns, state.watched
    if old is None or len(state.changed_ns) != len(watches):
        return (stamp_ns,) * len(watches), 0
    changed = tuple(
        since
        if (proposal.observation[watch.indices] == old[watch.indices]).all()
        else stamp_ns
        for watch, since in zip(watches, state.changed_ns, strict=True)
    )
    frozen = any(
        stamp_ns - since > watch.max_age_ns
        for watch, since in zip(watches, changed, strict=True)
    )
    return changed, FROZEN if frozen else 0


def _action_bits(action: npt.NDArray[np.float32]) -> int:
    if not np.isfinite(action).all():
        return NON_FINITE
    return BOX if (np.abs(action) > 1.0).any() else 0


def _in_box(action: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.minimum(np.maximum(action, np.float32(-1.0)), np.float32(1.0))  # (A,)


def _human_action(
    config: GuardConfig, inputs: GuardInputs
) -> tuple[npt.NDArray[np.float32], int]:
    assert inputs.human is not None
    arrival_ns, message = inputs.human
    none = np.zeros(config.interface.action_size, dtype=np.float32)
    if abs(inputs.now_ns - arrival_ns) > config.human_timeout_ns:
        return none, MISSING
    if message.action.shape != none.shape:
        return none, MALFORMED
    bits = _action_bits(message.action)
    return (none if bits & NON_FINITE else _in_box(message.action)), bits
