# SPDX-License-Identifier: Apache-2.0
"""Proposal + guard report + reward → transition, whatever order the three arrive in.

A row begins with a guard report that says ``is_row``. It needs the proposal the report names, the
reward with the same observation stamp, and to know what comes after it: the next tick of the same
guard (then its next observation is the next row's), or the end of the episode or a gap (then the
next observation is looked up among the proposals and stored with the row).

Time-outs run only once the world has moved on past a row (a later guard report, an end of
episode): a simulation that pauses for the learner makes nothing late. What is still missing then
is given up: a row without reward or without next observation is kept and masked, a row without
proposal cannot be a row and is counted. Rows pass each other: a late label holds back only its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from qam_ros.contract.errors import TransitionError
from qam_ros.contract.interface import RobotInterface
from qam_ros.contract.messages import (
    ActionProposal,
    EpisodeEvent,
    GuardReport,
    StepReward,
)
from qam_ros.contract.transition import Rows, transition_dtype, validate_transitions
from qam_ros.runtime.matching import Episodes, Proposals, Recent, Sequence, Tick
from qam_ros.runtime.rows import Successor, transition_row

Key = tuple[bytes, int]
_SCAN_NS = 250_000_000  # thousands of late labels may wait; looking at all of them costs 10 us each
Message = ActionProposal | GuardReport | StepReward | EpisodeEvent


@dataclass(frozen=True, slots=True)
class JoinerConfig:
    """Time-outs and bounds of a joiner.

    Args:
        label_timeout_s: how long a row waits for its reward after the world moved on [s].
        successor_timeout_s: the same for a missing proposal or next observation [s].
        patience_s: the same while nothing later has come on the topic that is waited for [s]: after
            a restart the history of one topic may come many seconds behind that of another.
        capacity: messages of each kind that are kept; above the history depth of the topics.
    """

    label_timeout_s: float = 10.0
    successor_timeout_s: float = 2.0
    patience_s: float = 30.0
    capacity: int = 16384


@dataclass(slots=True)
class JoinerCounters:
    """What a joiner did since it was made; ``late_labels`` to ``lost_reports`` mean trouble."""

    rows: int = 0
    masked: int = 0
    explicit_next: int = 0
    outside_episode: int = 0
    late_labels: int = 0
    without_next: int = 0
    without_proposal: int = 0
    malformed: int = 0
    lost_reports: int = 0


@dataclass(slots=True)
class _Pending:
    """A row on its way; ``passed_ns`` is when the world was seen to have moved on."""

    report: GuardReport
    passed_ns: int | None = None


@dataclass(slots=True)
class _Indices:
    """Which pending rows wait for which message."""

    by_proposal: dict[Key, Key] = field(default_factory=dict)
    by_stamp: dict[int, set[Key]] = field(default_factory=dict)
    closing: set[Key] = field(default_factory=set)


class Joiner:
    """Joins the messages of one robot into rows.

    Args:
        interface: sizes, control period and layout of the rows.
        config: time-outs and bounds.
        known: keys that were emitted before, for example those of the spool after a restart.
    """

    def __init__(
        self,
        interface: RobotInterface,
        config: JoinerConfig | None = None,
        known: Iterable[Key] = (),
    ) -> None:
        self.interface = interface
        self.config = config or JoinerConfig()
        self.dtype = transition_dtype(interface)
        self.counters = JoinerCounters()
        self._none = np.empty(0, self.dtype)
        self.last_problem = ""
        self._ages = len(interface.observation)
        self._period_ns = round(interface.control_period_s * 1e9)
        capacity = self.config.capacity
        self._proposals = Proposals(capacity)
        self._rewards: Recent[int, StepReward] = Recent(capacity)
        self._ticks: Recent[Key, Tick] = Recent(capacity)
        self._done: Recent[Key, None] = Recent(2 * capacity)
        self._episodes = Episodes(capacity)
        self._scanned_ns = -_SCAN_NS
        self._pending: OrderedDict[Key, _Pending] = OrderedDict()
        self._unpassed: set[Key] = set()
        self._waiting = _Indices()
        self._newest_action_ns = self._newest_proposal_ns = self._newest_reward_ns = -1
        self._sequences: dict[bytes, Sequence] = {}
        for session, seq in known:
            self._done.put((session, seq), None)
            self._sequences[session] = Sequence(first=seq + 1, last=seq)

    @property
    def pending(self) -> int:
        """Rows that still miss something."""
        return len(self._pending)

    def add(self, message: Message, now_ns: int) -> Rows:
        """Take a message; it may be late, early or a repetition.

        Args:
            message: one of the four kinds.
            now_ns: monotonic time [ns], for the time-outs.

        Returns:
            The rows that this message completed, (N,), N >= 0.
        """
        if isinstance(message, GuardReport):
            affected = self._add_report(message, now_ns)
        elif isinstance(message, ActionProposal):
            affected = self._add_proposal(message)
        elif isinstance(message, StepReward):
            affected = self._add_reward(message)
        else:
            self._episodes.add(message)
            affected = list(self._unpassed | self._waiting.closing)
        return self._settle(affected, now_ns)

    def poll(self, now_ns: int) -> Rows:
        """Rows whose time-outs have passed; call some times a second."""
        if now_ns - self._scanned_ns < _SCAN_NS:
            return self._none
        self._scanned_ns = now_ns
        late = [key for key, row in self._pending.items() if row.passed_ns is not None]
        return self._settle(late, now_ns)

    def flush(self) -> Rows:
        """Give up waiting: every row that has a proposal, masked where something is missing.

        For a clean stop, so that nothing that was executed is forgotten.
        """
        for row in self._pending.values():
            row.passed_ns = 0
        return self._settle(list(self._pending), 1 << 62)

    # Arrivals: each returns the keys of the pending rows that it may have completed.

    def _add_proposal(self, proposal: ActionProposal) -> list[Key]:
        sizes = (proposal.observation.size, proposal.ages_s.size, proposal.action.size)
        expected = (
            self.interface.observation_size,
            self._ages,
            self.interface.action_size,
        )
        if (sizes[0] and sizes[:2] != expected[:2]) or sizes[2] not in (0, expected[2]):
            return self._malformed("action proposal", sizes)
        if not self._proposals.add(proposal):
            return []
        self._newest_proposal_ns = max(self._newest_proposal_ns, proposal.stamp_ns)
        waiting = self._waiting.by_proposal.get(
            (proposal.policy_session, proposal.tick)
        )
        affected = list(self._waiting.closing)
        return (
            affected
            if waiting is None
            else [*affected, waiting, *self._before(waiting)]
        )

    def _add_reward(self, reward: StepReward) -> list[Key]:
        if not np.isfinite(reward.reward):
            return self._malformed("step reward", reward.reward)
        self._rewards.put(reward.stamp_ns, reward)
        self._newest_reward_ns = max(self._newest_reward_ns, reward.stamp_ns)
        return list(self._waiting.by_stamp.get(reward.stamp_ns, ()))

    def _add_report(self, report: GuardReport, now_ns: int) -> list[Key]:
        if report.executed.size not in (0, self.interface.action_size):
            return self._malformed("guard report", report.executed.size)
        at = (report.session, report.tick)
        if at in self._ticks:
            return []
        proposal = (report.policy_session, report.policy_tick)
        tick = Tick(
            report.is_row, report.observation_stamp_ns, report.episode, proposal
        )
        self._ticks.put(at, tick)
        affected = [*self._pass(report, now_ns)]
        if not report.is_row:
            return affected
        key = (report.session, report.seq)
        sequence = self._sequences.setdefault(
            report.session, Sequence(report.seq, report.seq - 1)
        )
        self.counters.lost_reports += sequence.add(report.seq)
        if key in self._pending or key in self._done:
            return affected
        late = report.stamp_ns < self._newest_action_ns
        self._pending[key] = _Pending(report, now_ns if late else None)
        self._waiting.by_proposal[proposal] = key
        self._waiting.by_stamp.setdefault(report.observation_stamp_ns, set()).add(key)
        if not late:
            self._unpassed.add(key)
        return [*affected, key, *self._before(key)]

    def _pass(self, report: GuardReport, now_ns: int) -> list[Key]:
        """Rows that lie behind this report: from now on they can be late."""
        if report.stamp_ns <= self._newest_action_ns:
            return []
        self._newest_action_ns = report.stamp_ns
        passed = [
            key
            for key in self._unpassed
            if self._pending[key].report.stamp_ns < report.stamp_ns
        ]
        for key in passed:
            self._pending[key].passed_ns = now_ns
            self._unpassed.discard(key)
        return passed

    def _before(self, key: Key) -> list[Key]:
        previous = (key[0], key[1] - 1)
        return [previous] if previous in self._pending else []

    def _malformed(self, what: str, found: object) -> list[Key]:
        self.counters.malformed += 1
        self.last_problem = (
            f"{what} with {found}; expected {self.interface.observation_size} "
            f"observations, {self._ages} ages, {self.interface.action_size} actions"
        )
        return []

    # Completion.

    def _settle(self, keys: Iterable[Key], now_ns: int) -> Rows:
        rows: list[Rows] = []
        for key in dict.fromkeys(keys):
            if key in self._pending:
                row = self._try(key, now_ns)
                if row is not None:
                    rows.append(row)
        while len(self._pending) > self.config.capacity:
            key = next(iter(self._pending))
            self._pending[key].passed_ns = 0
            row = self._try(key, 1 << 62)
            if row is not None:
                rows.append(row)
        if len(rows) == 1:
            return rows[0]
        return np.concatenate(rows) if rows else self._none

    def _try(self, key: Key, now_ns: int) -> Rows | None:
        """Finish a row if all is there, or if it has waited long enough."""
        pending = self._pending[key]
        report = pending.report
        stamp_ns = report.observation_stamp_ns
        if not self._episodes.holds(report.episode, stamp_ns):
            self.counters.outside_episode += 1
            self._forget(key)
            return None
        reward = self._rewards.get(stamp_ns)
        cut = reward is not None and (reward.terminated or reward.truncated)
        ends = cut or self._episodes.ends_after(
            report.episode, stamp_ns, self._period_ns
        )
        following = self._ticks.get((report.session, report.tick + 1))
        if pending.passed_ns is None and (ends or following is not None):
            pending.passed_ns = now_ns
            self._unpassed.discard(key)
        waited_s = (
            0.0 if pending.passed_ns is None else (now_ns - pending.passed_ns) * 1e-9
        )
        patience_s = self.config.successor_timeout_s
        proposal = self._proposals.get((report.policy_session, report.policy_tick))
        if proposal is None or not proposal.observation.size:
            later = self._newest_proposal_ns > stamp_ns
            if self._overdue(waited_s, patience_s, later_came=later):
                self.counters.without_proposal += 1
                self._forget(key)
            return None
        if not cut and following is not None and self._continues(report, following):
            successor: Successor | None = Successor()
        elif following is None and not ends and waited_s < patience_s:
            return None  # nothing says yet what comes next
        else:
            successor = self._closing_observation(key, waited_s)
        if successor is None:
            return None
        self._waiting.closing.discard(key)
        later = self._newest_reward_ns > stamp_ns
        if reward is None and not self._overdue(
            waited_s, self.config.label_timeout_s, later_came=later
        ):
            return None
        self._forget(key)
        return self._row(report, proposal, reward, successor)

    def _overdue(self, waited_s: float, timeout_s: float, *, later_came: bool) -> bool:
        """Whether something is given up; a topic on which nothing later came may only be slow."""
        limit_s = timeout_s if later_came else max(timeout_s, self.config.patience_s)
        return waited_s >= limit_s

    def _closing_observation(self, key: Key, waited_s: float) -> Successor | None:
        """The next observation of a row that no row continues; None while it may still come."""
        stamp_ns = self._pending[key].report.observation_stamp_ns
        found = self._proposals.one_period_after(
            stamp_ns, self._period_ns, self._episodes.next_start(stamp_ns)
        )
        if found is not None:
            return Successor(found.observation)
        later = self._newest_proposal_ns >= stamp_ns + self._period_ns * 3 // 2
        if self._overdue(waited_s, self.config.successor_timeout_s, later_came=later):
            return Successor(given_up=True)
        self._waiting.closing.add(key)
        return None

    def _continues(self, report: GuardReport, following: Tick) -> bool:
        """Whether the next tick is the row that holds this row's next observation."""
        distance_ns = following.stamp_ns - report.observation_stamp_ns
        return (
            following.is_row
            and following.episode == report.episode
            and self._period_ns // 2 < distance_ns < self._period_ns * 3 // 2
            and self._episodes.holds(following.episode, following.stamp_ns)
            and self._proposals.observed(following.proposal)
        )

    def _forget(self, key: Key) -> None:
        """The row is settled, one way or the other."""
        report = self._pending.pop(key).report
        self._done.put(key, None)
        self._unpassed.discard(key)
        self._waiting.closing.discard(key)
        self._waiting.by_proposal.pop((report.policy_session, report.policy_tick), None)
        same = self._waiting.by_stamp.get(report.observation_stamp_ns, set())
        same.discard(key)
        if not same:
            self._waiting.by_stamp.pop(report.observation_stamp_ns, None)

    def _row(
        self,
        report: GuardReport,
        proposal: ActionProposal,
        reward: StepReward | None,
        successor: Successor,
    ) -> Rows | None:
        """Fill, check and count a row, (1,); None if it may not be stored."""
        rows = transition_row(self.dtype, report, proposal, reward, successor)
        try:
            validate_transitions(rows, self.interface)
        except TransitionError as error:
            self.counters.malformed += 1
            self.last_problem = str(error)
            return None
        self.counters.rows += 1
        self.counters.masked += int(rows["masked"][0])
        self.counters.explicit_next += int(rows["has_next"][0])
        self.counters.late_labels += int(reward is None)
        self.counters.without_next += int(successor.given_up)
        return rows
