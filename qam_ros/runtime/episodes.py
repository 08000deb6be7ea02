# SPDX-License-Identifier: Apache-2.0
"""Episodes and rewards on a robot that has no simulator to give them: an operator says when.

Every row the guard reports gets the same reward, and the last one what the operator's verdict is
worth. A row's reward waits for the row after it, because only then is it known not to be the last.
Stamps keep to the contract: START lies before the next observation, END behind the last row.
"""

from __future__ import annotations

from dataclasses import dataclass

from qam_ros.contract.errors import StreamError
from qam_ros.contract.messages import (
    ActionProposal,
    EpisodeEvent,
    EpisodeKind,
    GuardReport,
    StepReward,
)

Label = StepReward | EpisodeEvent
SILENT_NS = 1_000_000_000  # without an observation for so long, no episode can start


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """What rows are worth.

    Args:
        period_ns: control period [ns].
        step_reward: reward of a row.
        success_reward: reward of the last row of a success, which also terminates.
        max_steps: truncate after so many control periods; 0 for no limit.
        lockstep: stamps are exact multiples of the period, and observations may pause.
    """

    period_ns: int
    step_reward: float = -1.0
    success_reward: float = 0.0
    max_steps: int = 0
    lockstep: bool = False


class EpisodeLabels:
    """Labels the rows of one robot between an operator's start and end.

    Args:
        config: what rows are worth.
    """

    def __init__(self, config: LabelConfig) -> None:
        self.config = config
        self.running = False
        self.episode = 0
        self.steps = 0
        self._return = 0.0
        self._start_ns = 0
        self._newest_ns: int | None = None
        self._held: GuardReport | None = None
        self._foreign: GuardReport | None = None
        self._ended: int | None = None

    def on_proposal(self, proposal: ActionProposal) -> None:
        """Note when observations come, and which episode ids are taken."""
        if proposal.observation.size:
            self._newest_ns = proposal.stamp_ns
        if not self.running:
            self.episode = max(self.episode, proposal.episode)

    def on_report(self, report: GuardReport) -> list[Label]:
        """Take a guard report; returns what is to be published, in this order."""
        stamp_ns = report.observation_stamp_ns
        if not report.is_row:
            return []
        if not (self.running and report.episode == self.episode):
            if report.episode != self._ended:
                self._foreign = report
            return []
        if stamp_ns < self._start_ns or (
            self._held is not None and stamp_ns <= self._held.observation_stamp_ns
        ):
            return []
        labels: list[Label] = self._release(self.config.step_reward)
        self._held = report
        if 0 < self.config.max_steps <= report.step + 1:
            labels += self._end(EpisodeKind.END, truncated=True)
        return labels

    def start(self, now_ns: int) -> list[Label]:
        """Start an episode with the next observation.

        Args:
            now_ns: time in the domain of the stamps [ns].

        Raises:
            StreamError: an episode runs, or no observation comes.
        """
        if self.running:
            raise StreamError(
                f"episode {self.episode} runs; end it with success, failure or abort"
            )
        silent = self._newest_ns is None or now_ns - self._newest_ns > SILENT_NS
        if self._newest_ns is None or (silent and not self.config.lockstep):
            raise StreamError(
                "no observation on action_proposal within the last second; is the policy node "
                "active, and do all sensors publish?"
            )
        period_ns = self.config.period_ns
        passed = max(0, (now_ns - self._newest_ns) // period_ns)
        # A quarter period before the next observation, so that jitter leaves it step 0.
        self._start_ns = self._newest_ns + passed * period_ns + period_ns * 3 // 4
        self.episode += 1
        self.running, self.steps, self._return, self._held = True, 0, 0.0, None
        return [self._event(EpisodeKind.START, self._start_ns)]

    def success(self) -> list[Label]:
        """End the episode: the task is done, which terminates.

        Raises:
            StreamError: no episode runs, or none of its rows has come yet.
        """
        self._require_rows("success")
        return self._end(EpisodeKind.END, terminated=True)

    def failure(self) -> list[Label]:
        """End the episode without success: truncated, for the task could have gone on.

        Raises:
            StreamError: no episode runs, or none of its rows has come yet.
        """
        self._require_rows("failure")
        return self._end(EpisodeKind.END, truncated=True)

    def abort(self) -> list[Label]:
        """Break the episode off, also one that another process started.

        Raises:
            StreamError: no episode runs.
        """
        if self.running:
            return self._end(EpisodeKind.ABORT)
        if self._foreign is None:
            raise StreamError("no episode runs; start one first")
        row, self._foreign = self._foreign, None
        self.episode = self._ended = row.episode
        self.steps, self._return = 0, 0.0
        stamp_ns = row.observation_stamp_ns + self._beyond_ns
        return [self._event(EpisodeKind.ABORT, stamp_ns)]

    @property
    def _beyond_ns(self) -> int:
        """From the last row to END: the final observation must not lie before it."""
        period_ns = self.config.period_ns
        return period_ns if self.config.lockstep else period_ns * 3 // 4

    def _require_rows(self, verdict: str) -> None:
        if not self.running:
            raise StreamError("no episode runs; start one first")
        if self._held is None:
            raise StreamError(
                f"episode {self.episode} has no row yet that a {verdict} could be the end of; "
                "does the guard move? abort the episode instead"
            )

    def _release(
        self, reward: float, *, terminated: bool = False, truncated: bool = False
    ) -> list[Label]:
        """Label the row that was held back, if there is one."""
        row = self._held
        if row is None:
            return []
        self.steps += 1
        self._return += reward
        stamp_ns = row.observation_stamp_ns
        return [
            StepReward(stamp_ns, row.episode, row.step, reward, terminated, truncated)
        ]

    def _end(
        self, kind: EpisodeKind, *, terminated: bool = False, truncated: bool = False
    ) -> list[Label]:
        reward = self.config.success_reward if terminated else self.config.step_reward
        last_ns = (
            self._start_ns if self._held is None else self._held.observation_stamp_ns
        )
        labels = self._release(reward, terminated=terminated, truncated=truncated)
        self.running, self._held, self._ended = False, None, self.episode
        end_ns = last_ns + self._beyond_ns
        event = self._event(kind, end_ns, terminated=terminated, truncated=truncated)
        return [*labels, event]

    def _event(
        self,
        kind: EpisodeKind,
        stamp_ns: int,
        *,
        terminated: bool = False,
        truncated: bool = False,
    ) -> EpisodeEvent:
        return EpisodeEvent(
            stamp_ns=stamp_ns,
            episode=self.episode,
            kind=kind,
            terminated=terminated,
            truncated=truncated,
            success=terminated,
            steps=self.steps,
            episode_return=self._return,
        )
