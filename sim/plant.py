# SPDX-License-Identifier: Apache-2.0
"""The simulated robot without a transport: episodes, rewards and events of a world.

One control step k has the stamp t_k. Its sensors carry t_k, and so does the reward of the action
that is executed for it. START carries the stamp of the first observation, END that of the final
observation, which has no action.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qam_ros.contract.messages import EpisodeEvent, StepReward
from qam_ros.contract.transition import EpisodeKind
from sim.seeding import SeedStream, episode_seed
from sim.world import Commands, Sensors, Values, World

MIN_QUATERNION = 1e-6  # shorter than any driver's rounding of a unit quaternion


@dataclass(frozen=True)
class Advance:
    """Outcome of one control step.

    Attributes:
        reward: labels of the action that was executed.
        end: END when the episode is over, else None.
    """

    reward: StepReward
    end: EpisodeEvent | None


@dataclass(frozen=True)
class EpisodeRecord:
    """One line of `episodes.csv`; stamps in ns."""

    episode: int
    seed: int
    start_stamp_ns: int
    end_stamp_ns: int
    steps: int
    episode_return: float
    success: bool
    terminated: bool
    truncated: bool


class Plant:
    """A world cut into seeded episodes; knows stamps but no clock, and waits for nobody.

    Args:
        world: the simulated robot.
        seed: seed of the run; episode i starts from `episode_seed(seed, i, stream)`.
        max_episode_steps: truncate after so many steps; 0 takes the world's own limit.
        stream: purpose of the episodes.
        first_episode: index of the first episode.
    """

    def __init__(
        self,
        world: World,
        seed: int,
        *,
        max_episode_steps: int = 0,
        stream: SeedStream = SeedStream.PLANT,
        first_episode: int = 0,
    ) -> None:
        self._world = world
        self._seed = seed
        self._max_steps = max_episode_steps or world.max_episode_steps
        self._stream = stream
        self._episode = first_episode - 1
        self._start_stamp_ns = 0
        self._steps = 0
        self._return = 0.0
        self._running = False
        self.total_steps = 0
        self.refused_commands = 0
        self.last_record: EpisodeRecord | None = None

    @property
    def episode(self) -> int:
        """Index of the present (or last) episode."""
        return self._episode

    @property
    def period_ns(self) -> int:
        """Control period [ns]."""
        return round(self._world.control_period_s * 1e9)

    def start(self, stamp_ns: int) -> EpisodeEvent:
        """Reset the world and start the next episode.

        Args:
            stamp_ns: stamp of the first observation.
        """
        self._episode += 1
        self._world.reset(episode_seed(self._seed, self._episode, self._stream))
        self._start_stamp_ns = stamp_ns
        self._steps = 0
        self._return = 0.0
        self._running = True
        return self._event(EpisodeKind.START, stamp_ns)

    def sensors(self) -> Sensors:
        """Raw sensor values of the present state."""
        return self._world.sensors()

    def advance(
        self, stamp_ns: int, next_stamp_ns: int, commands: Commands | None
    ) -> Advance:
        """Apply commands, advance one control period, and label the step.

        Args:
            stamp_ns: stamp of the observation the commands answer.
            next_stamp_ns: stamp of the next observation.
            commands: new targets; None (nothing came in time) goes on with the last ones. Commands
                that are not finite, or whose orientation has no direction, are refused as a robot's
                driver would, and counted.
        """
        if not self._running:
            raise AssertionError("start an episode before advancing it")
        if commands is not None:
            self._apply(commands)
        result = self._world.step()
        self._steps += 1
        self.total_steps += 1
        self._return += result.reward
        truncated = not result.terminated and (
            result.truncated or self._steps >= self._max_steps
        )
        reward = StepReward(
            stamp_ns=stamp_ns,
            episode=self._episode,
            step=self._steps - 1,
            reward=result.reward,
            terminated=result.terminated,
            truncated=truncated,
        )
        if not (result.terminated or truncated):
            return Advance(reward, None)
        end = self._event(
            EpisodeKind.END,
            next_stamp_ns,
            terminated=result.terminated,
            truncated=truncated,
            success=result.success,
        )
        self._finish(end)
        return Advance(reward, end)

    def abort(self, stamp_ns: int) -> EpisodeEvent | None:
        """Abort the present episode; None between episodes.

        Args:
            stamp_ns: observations from this stamp on do not belong to the episode.
        """
        if not self._running:
            return None
        event = self._event(EpisodeKind.ABORT, stamp_ns)
        self._finish(event)
        return event

    def _apply(self, commands: Commands) -> None:
        usable = {}
        for topic, fields in commands.items():
            if all(_usable(field, values) for field, values in fields.items()):
                usable[topic] = fields
            else:
                self.refused_commands += 1
        self._world.apply(usable)

    def _event(
        self,
        kind: EpisodeKind,
        stamp_ns: int,
        *,
        terminated: bool = False,
        truncated: bool = False,
        success: bool = False,
    ) -> EpisodeEvent:
        return EpisodeEvent(
            stamp_ns=stamp_ns,
            episode=self._episode,
            kind=kind,
            terminated=terminated,
            truncated=truncated,
            success=success,
            steps=self._steps,
            episode_return=self._return,
        )

    def _finish(self, event: EpisodeEvent) -> None:
        self._running = False
        self.last_record = EpisodeRecord(
            episode=self._episode,
            seed=episode_seed(self._seed, self._episode, self._stream),
            start_stamp_ns=self._start_stamp_ns,
            end_stamp_ns=event.stamp_ns,
            steps=self._steps,
            episode_return=self._return,
            success=event.success,
            terminated=event.terminated,
            truncated=event.truncated,
        )


def _usable(field: str, values: Values) -> bool:
    """Finite, and not a quaternion of length zero, which nothing can normalise."""
    if not np.all(np.isfinite(values)):
        return False
    length = float(np.linalg.norm(values))
    return not field.endswith("orientation") or length >= MIN_QUATERNION
