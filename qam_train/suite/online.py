# SPDX-License-Identifier: Apache-2.0
"""Online phase of a cell, as published: one world, rows behind the dataset, one update per step.

The first steps are played by the offline policy without training (`start_steps`), or at random
(`random_steps`); from then on every environment step pays for `utd` updates. A chunk is executed
whole and open loop, what is left of it is dropped when the episode ends. A segment ends where the
episode terminated or was truncated; only `terminated` stops the bootstrap. The optimiser goes on.

A physics engine's contacts cannot be stored. A checkpoint in the middle of an episode holds its
actions instead, which are rows of the replay, and they are played again: on one machine the episode
goes on bit for bit.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qam_train.agents.base import Metrics
from qam_train.checkpoint import Checkpoint, go_on_drawing
from qam_train.data.replay import Replay
from qam_train.offline_trainer import check_finite
from qam_train.restore import Agent, agent_metadata, agent_tensors
from qam_train.suite.cell_config import CellConfig
from qam_train.suite.data import CellData
from qam_train.suite.row_log import RowLog
from qam_train.suite.world import reward_of
from sim.seeding import SeedStream, episode_seed
from sim.world import World
from sim.worlds import make_world

TRAINING = "generator/online"
ACTING = "generator/acting"
QUEUE = "queue"
_WORDS = 2  # seeds of the two generators, apart from those of the offline phase


class OnlinePhase:
    """Agent, replay, world and the order of steps and updates.

    Args:
        config: the cell.
        agent: after offline training; changed in place.
        data: the dataset, whose files go on being replaced.
        directory: where the rows are written.
    """

    def __init__(
        self,
        config: CellConfig,
        agent: Agent,
        data: CellData,
        directory: Path,
    ) -> None:
        self.config = config
        self.agent = agent
        self.steps = 0
        self.updates = 0
        if config.online_budget is not None:
            agent.aim_at(config.online_budget)
        self._data = data
        self._replay = Replay(data.at(config.offline_updates), config.online_fraction)
        self._rows = RowLog(directory)
        self._device = agent.normaliser.mean.device
        words = np.random.SeedSequence([config.seed, _WORDS]).generate_state(2)
        self._training, self._acting = (
            torch.Generator(self._device).manual_seed(int(word)) for word in words
        )
        self._world: World = make_world(config.world, config.task)
        self._queue = torch.zeros((0, self._replay.offline.action_size))
        self._observation: NDArray[np.float32]
        self._start(0)

    @property
    def complete(self) -> bool:
        """Whether all environment steps are done."""
        return self.steps >= self.config.online_steps

    def step(self) -> Metrics | None:
        """One environment step and the updates it pays for; metrics of the last update.

        Raises:
            NonFiniteError: loss or gradient is not finite; the agent is not to be used any more.
        """
        action = self._next_action()
        self._world.act(action)
        result = self._world.step()
        following = self._observe()
        self.steps += 1
        self._episode_step += 1
        limit = self.config.max_episode_steps or self._world.max_episode_steps
        ended = result.terminated or result.truncated or self._episode_step >= limit
        reward = reward_of(result.reward, sparse=self.config.data.sparse)
        self._rows.add(
            self._observation,
            action,
            reward,
            terminated=result.terminated,
            following=following if ended else None,
        )
        self._replay.append(self._rows.newest(self._device))
        self._observation = following
        if ended:
            self._start(self._episode + 1)
        return self._train()

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Write the rows; tensors and metadata of everything else."""
        self._rows.write()
        tensors = {
            **agent_tensors(self.agent),
            TRAINING: self._training.get_state(),
            ACTING: self._acting.get_state(),
            QUEUE: self._queue,
        }
        metadata = {
            **agent_metadata(self.agent),
            "online_steps": self.steps,
            "online_updates": self.updates,
            "episode": self._episode,
            "episode_step": self._episode_step,
        }
        return tensors, metadata

    def restore(self, held: Checkpoint) -> None:
        """Go on where a checkpoint() was made; call it on a new phase with the agent of that time.

        Raises:
            QamError: rows are missing or damaged.
        """
        metadata = held.metadata
        go_on_drawing(self._training, held.tensors[TRAINING])
        go_on_drawing(self._acting, held.tensors[ACTING])
        self.steps = int(metadata["online_steps"])
        self.updates = int(metadata["online_updates"])
        actions = np.zeros((0, self._replay.offline.action_size), np.float32)
        for rows in self._rows.read(self.steps):
            self._replay.append(rows.to(self._device))
            actions = np.concatenate([actions, rows.actions.numpy()])
        self._start(int(metadata["episode"]))
        self._play_again(actions[len(actions) - int(metadata["episode_step"]) :])
        self._queue = held.tensors[QUEUE]

    def _train(self) -> Metrics | None:
        metrics: Metrics | None = None
        config = self.config
        exact = Fraction(config.utd).limit_denominator(1_000_000)
        due = math.floor(exact * max(0, self.steps - config.start_steps))
        if self.updates < due:
            self._replay.offline = self._data.at(config.offline_updates + self.steps)
        while self.updates < due:
            batch = self.agent.draw_batch(
                self._replay,
                self._training,
                pad_terminated=config.online_pad_terminated,
            )
            noise = self.agent.draw_noise(self.agent.config.batch_size, self._training)
            metrics = self.agent.update(batch, noise, config.offline_lr_end)
            self.updates += 1
            check_finite(metrics, "online", self.updates)
        return metrics

    def _next_action(self) -> NDArray[np.float32]:
        """Next action of the chunk; a new chunk when the last one is used up."""
        if self.steps < self.config.random_steps:
            size = self._replay.offline.action_size
            share = torch.rand(size, generator=self._acting, device=self._device)
            return (2.0 * share - 1.0).cpu().numpy()
        if len(self._queue) == 0:
            s = torch.as_tensor(self._observation, device=self._device)
            noise = self.agent.draw_action_noise(1, self._acting)
            self._queue = self.agent.explore(s[None], noise)[0].cpu()  # (H, A)
        action, self._queue = self._queue[0].numpy(), self._queue[1:]
        return action

    def _start(self, episode: int) -> None:
        self._episode = episode
        self._episode_step = 0
        self._queue = self._queue[:0]
        self._world.reset(episode_seed(self.config.seed, episode, SeedStream.PLANT))
        self._observation = self._observe()

    def _play_again(self, actions: NDArray[np.float32]) -> None:
        """Bring a new episode to where it stood."""
        for action in actions:
            self._world.act(action)
            self._world.step()
        self._episode_step = len(actions)
        self._observation = self._observe()

    def _observe(self) -> NDArray[np.float32]:
        return self._world.observation().astype(np.float32)
