# SPDX-License-Identifier: Apache-2.0
"""Protocol evaluation: seeded episodes in several bare OGBench worlds at once, one process.

All worlds that need a new chunk get it from one call of the policy, so a GPU is asked ten times less
often. A chunk is executed whole and open loop. The policy is stochastic, as deployed. An episode's
start and noise depend on the seed and its index alone. OGBench reports success one control step late
(`success_timing='pre'`): an action is always taken in the goal state before the episode ends; an
episode counts as solved by its last step's report.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from qam_ros.contract.errors import ConfigError
from qam_train.intervals import wilson_interval
from qam_train.restore import Agent
from qam_train.suite.folder import Row
from sim.seeding import SeedStream, episode_seed
from sim.world import World
from sim.worlds import make_world

Floats = NDArray[np.float32]
_NOISE = 7  # last word of the seed of an episode's noise, apart from that of its start


@dataclass(frozen=True)
class Played:
    """Outcome of one episode."""

    success: bool
    episode_return: float
    length: int


@dataclass
class _Slot:
    """A world in the middle of an episode."""

    world: World
    index: int
    noise: torch.Generator
    queue: list[Floats] = field(default_factory=list)
    episode_return: float = 0.0
    length: int = 0


class Rollouts:
    """Worlds of one task that are kept between evaluations.

    Args:
        world: key of sim.worlds.WORLDS.
        task: 1 to 5.
        seed: of the cell.
        count: worlds; each takes about 100 MB and a second to build, so they are built when first
            needed.
        sparse: rewards other than 0 count as -1.
        max_episode_steps: length of an episode; 0: the world's own.
    """

    def __init__(
        self,
        world: str,
        task: int,
        seed: int,
        *,
        count: int = 10,
        sparse: bool = False,
        max_episode_steps: int = 0,
    ) -> None:
        if count < 1:
            raise ConfigError(f"environments: expected a positive number, got {count}")
        self._name = world
        self._task = task
        self._seed = seed
        self._count = count
        self._sparse = sparse
        self._limit = max_episode_steps
        self._worlds: list[World] = []

    @property
    def observation_size(self) -> int:
        """O of the world."""
        world = self._built(1)[0]
        world.reset(0)
        return len(world.observation())

    def play(self, agent: Agent, first: int, episodes: int) -> tuple[Played, ...]:
        """Play episodes first .. first+episodes-1; returned in this order.

        Args:
            agent: plays as at evaluation.
            first: index of the first episode.
            episodes: how many.
        """
        device = agent.normaliser.mean.device
        waiting = iter(range(first, first + episodes))
        active: list[_Slot] = []
        outcome: dict[int, Played] = {}
        for world, index in zip(
            self._built(min(self._count, episodes)), waiting, strict=False
        ):
            active.append(self._start(world, index, device))
        while active:
            _refill(agent, [slot for slot in active if not slot.queue])
            going: list[_Slot] = []
            for slot in active:
                played = self._advance(slot)
                if played is None:
                    going.append(slot)
                    continue
                outcome[slot.index] = played
                following = next(waiting, None)
                if following is not None:
                    going.append(self._start(slot.world, following, device))
            active = going
        return tuple(outcome[index] for index in sorted(outcome))

    def evaluate(self, agent: Agent, block: int, episodes: int) -> Row:
        """Success with its 95 % interval over the episodes of one evaluation.

        Args:
            agent: plays as at evaluation.
            block: which evaluation of the cell, from 0; each has episodes of its own.
            episodes: per evaluation.

        Returns:
            the columns success, low, high, episodes, return, length and seconds (of this
            evaluation).
        """
        started = time.perf_counter()
        played = self.play(agent, block * episodes, episodes)
        solved = sum(episode.success for episode in played)
        low, high = wilson_interval(solved, episodes)
        return {
            "success": solved / episodes,
            "low": low,
            "high": high,
            "episodes": episodes,
            "return": float(np.mean([e.episode_return for e in played])),
            "length": float(np.mean([e.length for e in played])),
            "seconds": time.perf_counter() - started,
        }

    def _built(self, count: int) -> Sequence[World]:
        while len(self._worlds) < count:
            self._worlds.append(make_world(self._name, self._task))
        return self._worlds[:count]

    def _start(self, world: World, index: int, device: torch.device) -> _Slot:
        world.reset(episode_seed(self._seed, index, SeedStream.EVALUATION))
        words = np.random.SeedSequence([self._seed, index, _NOISE]).generate_state(1)
        noise = torch.Generator(device).manual_seed(int(words[0]))
        return _Slot(world, index, noise)

    def _advance(self, slot: _Slot) -> Played | None:
        """One control step; the outcome where it ended the episode."""
        slot.world.act(slot.queue.pop(0))
        result = slot.world.step()
        slot.length += 1
        slot.episode_return += reward_of(result.reward, sparse=self._sparse)
        limit = self._limit or slot.world.max_episode_steps
        ended = result.terminated or result.truncated or slot.length >= limit
        if not ended:
            return None
        return Played(result.success, slot.episode_return, slot.length)


def reward_of(reward: float, *, sparse: bool) -> float:
    """The reward, or -1 in place of every reward that is not 0."""
    return -1.0 if sparse and reward != 0.0 else reward


def _refill(agent: Agent, hungry: Sequence[_Slot]) -> None:
    """Give every slot a chunk, from one call of the policy."""
    if not hungry:
        return
    device = agent.normaliser.mean.device
    observations = np.stack([slot.world.observation() for slot in hungry])
    noise = torch.cat(
        [agent.draw_action_noise(1, slot.noise) for slot in hungry], dim=-2
    )  # (B, W) or (N, B, W)
    s = torch.as_tensor(observations, dtype=torch.float32, device=device)
    chunks = agent.act(s, noise).cpu().numpy()  # (B, H, A)
    for slot, chunk in zip(hungry, chunks, strict=True):
        slot.queue = list(chunk)
