# SPDX-License-Identifier: Apache-2.0
"""A scripted robot: writes the messages of episodes and knows which rows must come of them."""

import uuid

import numpy as np
import pytest

from qam_ros.contract.interface import load_interface
from qam_ros.contract.messages import (
    ActionProposal,
    EpisodeEvent,
    EpisodeKind,
    GuardReport,
    StepReward,
)
from qam_ros.contract.transition import GuardMode, transition_dtype

NOBODY = bytes(16)


class Robot:
    """Messages in the order in which they are sent, and the rows they must become.

    Attributes:
        messages: everything sent.
        truth: (session, seq) -> expected row, (1,).
    """

    def __init__(self, interface, seed=0):
        self.interface = interface
        self.rng = np.random.default_rng(seed)
        self.period_ns = round(interface.control_period_s * 1e9)
        self.now_ns = 10**9
        self.messages, self.truth = [], {}
        self.episode_id = 0
        self.restart_guard()
        self.restart_policy()

    def restart_guard(self):
        self.session, self.tick, self.seq = self._uuid(), 0, 0

    def restart_policy(self):
        self.policy, self.policy_tick = self._uuid(), 0

    def _uuid(self):
        return uuid.UUID(bytes=self.rng.bytes(16)).bytes

    def event(self, kind, **flags):
        values = dict.fromkeys(("terminated", "truncated", "success"), False) | flags
        self.messages.append(
            EpisodeEvent(
                stamp_ns=self.now_ns,
                episode=self.episode_id,
                kind=kind,
                steps=0,
                episode_return=0.0,
                **values,
            )
        )

    def proposal(self, step, *, idle=False):
        floats = self.rng.uniform(-1, 1, 64).astype(np.float32)
        action = floats[:0] if idle else floats[: self.interface.action_size]
        message = ActionProposal(
            stamp_ns=self.now_ns,
            policy_session=self.policy,
            tick=self.policy_tick,
            episode=self.episode_id,
            step=step,
            observation=floats[-self.interface.observation_size :],
            ages_s=np.full(len(self.interface.observation), 0.002, np.float32),
            action=action,
            policy_version=3,
            chunk_id=self.policy_tick // 5,
            chunk_index=self.policy_tick % 5,
        )
        self.policy_tick += 1
        self.messages.append(message)
        return message

    def report(self, proposal, step, *, is_row=True, masked=False):
        message = GuardReport(
            stamp_ns=self.now_ns + 1_000_000,
            session=self.session,
            tick=self.tick,
            is_row=is_row,
            seq=self.seq if is_row else 0,
            policy_session=proposal.policy_session if proposal else NOBODY,
            policy_tick=proposal.tick if proposal else 0,
            observation_stamp_ns=proposal.stamp_ns if proposal else 0,
            episode=self.episode_id,
            step=step,
            mode=GuardMode.HOLD if masked or not proposal else GuardMode.ACTIVE,
            source=0,
            limit_bits=0 if proposal else 32,
            masked=masked or not is_row,
            executed=proposal.action if proposal else np.zeros(0, np.float32),
            latency_ns=0,
        )
        self.tick += 1
        self.seq += int(is_row)
        self.messages.append(message)
        return message

    def reward(self, step, *, terminated=False, truncated=False):
        message = StepReward(
            stamp_ns=self.now_ns,
            episode=self.episode_id,
            step=step,
            reward=float(np.float32(self.rng.normal())),
            terminated=terminated,
            truncated=truncated,
        )
        self.messages.append(message)
        return message

    def episode(self, steps, *, missing=(), masked=(), terminated=False, end="END"):
        """One episode; at the steps in ``missing`` the policy proposes nothing."""
        self.episode_id += 1
        self.event(EpisodeKind.START)
        before = None
        for step in range(steps):
            last = step == steps - 1
            proposal = None if step in missing else self.proposal(step)
            if before is not None:
                self._explicit(before, proposal)
            hold = step in masked
            report = self.report(
                proposal, step, is_row=proposal is not None, masked=hold
            )
            flags = {
                "terminated": terminated and last,
                "truncated": not terminated and last,
            }
            flags = flags if end == "END" else {}
            reward = self.reward(step, **flags)
            row = self._expect(proposal, report, reward) if proposal else None
            before = row if step + 1 in missing or last else None
            self.now_ns += self.period_ns
        self.event(EpisodeKind[end], **flags)
        final = self.proposal(steps, idle=True)
        if before is not None:
            self._explicit(before, final)
        self.report(final, steps, is_row=False)
        self.now_ns += 5 * self.period_ns

    def _explicit(self, row, proposal):
        if proposal is None:
            row["masked"] = 1
        else:
            row["has_next"], row["next_observation"] = 1, proposal.observation

    def _expect(self, proposal, report, reward):
        rows = np.zeros(1, transition_dtype(self.interface))
        row = rows[0]
        row["session"] = np.frombuffer(report.session, np.uint8)
        row["observation_stamp_ns"], row["action_stamp_ns"] = (
            proposal.stamp_ns,
            report.stamp_ns,
        )
        row["seq"], row["episode"], row["step"] = (
            report.seq,
            report.episode,
            report.step,
        )
        row["observation"], row["ages_s"] = proposal.observation, proposal.ages_s
        row["proposed"] = row["executed"] = proposal.action
        row["policy_version"], row["chunk_id"] = (
            proposal.policy_version,
            proposal.chunk_id,
        )
        row["chunk_index"], row["guard_mode"] = proposal.chunk_index, report.mode
        row["reward"], row["masked"] = reward.reward, report.masked
        row["terminated"], row["truncated"] = reward.terminated, reward.truncated
        self.truth[report.session, report.seq] = rows
        return row

    def rows(self):
        """All rows that must come, (N,), in the order of execution."""
        return np.concatenate(list(self.truth.values()))


def keys(rows):
    """Keys (session, seq) of rows."""
    return [(bytes(row["session"]), int(row["seq"])) for row in rows]


@pytest.fixture(scope="session")
def interface():
    return load_interface("mobile_base")


@pytest.fixture
def robot(interface):
    return Robot(interface)


@pytest.fixture(scope="session")
def make_robot(interface):
    return lambda seed=0: Robot(interface, seed)


@pytest.fixture(scope="session")
def keys_of():
    return keys
