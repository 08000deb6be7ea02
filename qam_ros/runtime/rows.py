# SPDX-License-Identifier: Apache-2.0
"""Fills one transition from the three messages it is joined from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qam_ros.contract.messages import ActionProposal, Floats, GuardReport, StepReward
from qam_ros.contract.transition import Rows


@dataclass(frozen=True, slots=True)
class Successor:
    """What comes after a row.

    Args:
        observation: (O,) the next observation where it is stored with the row; None if the next
            row holds it.
        given_up: there is neither.
    """

    observation: Floats | None = None
    given_up: bool = False


def transition_row(
    dtype: np.dtype[np.void],
    report: GuardReport,
    proposal: ActionProposal,
    reward: StepReward | None,
    successor: Successor,
) -> Rows:
    """One row, masked where something that learning needs is missing.

    Without a next observation only a terminated row can be learned from, because nothing is
    bootstrapped behind it.

    Args:
        dtype: ``transition_dtype`` of the interface.
        report: what the guard did.
        proposal: what it answered; carries an observation.
        reward: reward of the action, None if it never came.
        successor: what comes after the row.

    Returns:
        (1,) structured array.
    """
    rows = np.zeros(1, dtype)
    row = rows[0]
    terminated = reward is not None and reward.terminated
    lacks = reward is None or (successor.given_up and not terminated)
    row["session"] = np.frombuffer(report.session, np.uint8)
    row["seq"] = report.seq
    row["observation_stamp_ns"] = report.observation_stamp_ns
    row["action_stamp_ns"] = report.stamp_ns
    row["episode"], row["step"] = report.episode, report.step
    row["observation"], row["ages_s"] = proposal.observation, proposal.ages_s
    row["proposed"] = proposal.action if proposal.action.size else 0.0
    row["executed"] = report.executed if report.executed.size else 0.0
    row["source"], row["policy_version"] = report.source, proposal.policy_version
    row["chunk_id"], row["chunk_index"] = proposal.chunk_id, proposal.chunk_index
    row["guard_mode"], row["limit_bits"] = report.mode, report.limit_bits
    row["masked"] = report.masked or not report.executed.size or lacks
    if reward is not None:
        row["reward"] = reward.reward
        row["terminated"], row["truncated"] = reward.terminated, reward.truncated
    if successor.observation is not None:
        row["has_next"], row["next_observation"] = True, successor.observation
    return rows
