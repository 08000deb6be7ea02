# SPDX-License-Identifier: Apache-2.0
"""One episode of a simulated robot in one process: plant, policy and guard, step by step.

The same cores as in the ROS nodes, in the order of the topics: sensors t_k, proposal, guard's report
and commands, step, reward t_k. Evaluation and `qam finetune` run this; no torch is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qam_ros.contract.messages import (
    ActionProposal,
    EpisodeEvent,
    GuardReport,
    StepReward,
)
from qam_ros.runtime.guard_core import GuardCore
from qam_ros.runtime.policy import PolicyCore
from sim.plant import EpisodeRecord, Plant
from sim.world import Commands

Message = ActionProposal | GuardReport | StepReward | EpisodeEvent


def ignore(_message: Message) -> None:
    """Publish nothing."""


@dataclass(frozen=True)
class SimulatedRobot:
    """A plant, the policy that proposes and the guard that commands."""

    plant: Plant
    policy: PolicyCore
    guard: GuardCore

    def play(
        self, start_ns: int, publish: Callable[[Message], None] = ignore
    ) -> Iterator[StepReward]:
        """Play the plant's next episode; yields after every control step.

        Args:
            start_ns: stamp of the first observation [ns], later than all before.
            publish: gets every message that the stream would get.
        """
        stamp_ns = start_ns
        self._announce(self.plant.start(stamp_ns), publish)
        end: EpisodeEvent | None = None
        while end is None:
            commands = self._tick(stamp_ns, publish)
            advance = self.plant.advance(
                stamp_ns, stamp_ns + self.plant.period_ns, commands
            )
            publish(advance.reward)
            yield advance.reward
            stamp_ns += self.plant.period_ns
            end = advance.end
        self._announce(end, publish)
        self._tick(stamp_ns, publish)  # the final observation, which has no action

    def episode(
        self, start_ns: int, publish: Callable[[Message], None] = ignore
    ) -> EpisodeRecord:
        """Play a whole episode and say how it went; arguments as in play."""
        for _ in self.play(start_ns, publish):
            pass
        record = self.plant.last_record
        assert record is not None
        return record

    def _announce(
        self, event: EpisodeEvent, publish: Callable[[Message], None]
    ) -> None:
        publish(event)
        self.policy.on_event(event)
        self.guard.on_event(event)

    def _tick(self, stamp_ns: int, publish: Callable[[Message], None]) -> Commands:
        sensors = self.plant.sensors()
        self.policy.on_observation(stamp_ns, sensors)
        self.guard.on_measured(stamp_ns, sensors)
        proposal = self.policy.tick(stamp_ns)
        publish(proposal)
        output = self.guard.tick(stamp_ns, proposal)
        publish(output.report)
        return {topic: dict(fields) for topic, fields in output.commands.items()}
