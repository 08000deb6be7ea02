# SPDX-License-Identifier: Apache-2.0
"""Train the walking expert of the ant mazes: soft actor-critic on the folded state.

Half of the ants walk on a plane in random directions that change now and then, half find their way
through the maze `large` to random cells. Reward: speed along the wanted direction; lying on the side or
the back ends the episode. The same seed gives the same expert on the same machine and versions; about
17 minutes of one core:

    python tools/train_ant_expert.py sim/data/ant_expert.safetensors --seed 0

The output is replaced at every measurement that is the best so far; the log goes to standard output.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from qam_train import critic, gaussian
from qam_train.networks import Params, detached, init_head, init_mlp, net
from qam_train.optimizer import JointAdam, lagged_average
from sim.ant_expert import AntExpert, write_expert
from sim.ant_frame import ACTIONS, FEATURES, features, motor_action
from sim.ant_herd import Herd, measure

VERSIONS: Final = ("torch", "mujoco", "ogbench", "numpy")  # that the weights depend on


@dataclass(frozen=True)
class Settings:
    """Numbers of the training.

    Args:
        seed: of networks, noise and episodes.
        updates: updates of the networks.
        decay_updates: updates over which the learning rate would fall to a tenth.
        ants: how many walk at a time; half of them in the maze.
        random_steps: steps of uniformly random actions at the start, all ants together.
        steps_per_update: environment steps per update, all ants together.
        replay: transitions that are kept.
        batch: transitions per update.
        discount: per step of 0.1 s.
        reward_scale: reward per speed [s/m].
        learning_rate: at the start; falls linearly.
        target_rate: of the target critic.
        target_entropy: the entropy is driven to this, per number of the action.
        actor_widths: hidden widths of the actor.
        critic_widths: hidden widths of the critics.
        measure_every: updates between two measurements.
    """

    seed: int = 0
    updates: int = 100_000
    decay_updates: int = 160_000
    ants: int = 16
    random_steps: int = 5000
    steps_per_update: float = 3.0
    replay: int = 1_000_000
    batch: int = 256
    discount: float = 0.98
    reward_scale: float = 0.5
    learning_rate: float = 5e-4
    target_rate: float = 0.005
    target_entropy: float = -0.35
    actor_widths: tuple[int, ...] = (128, 128)
    critic_widths: tuple[int, ...] = (128, 128)
    measure_every: int = 10_000


class Replay:
    """Ring of transitions (features, slot actions, rewards, masks, next features), float32.

    Args:
        size: transitions that are kept.
    """

    def __init__(self, size: int) -> None:
        self.columns = [
            torch.empty(size, width) for width in (FEATURES, ACTIONS, 1, 1, FEATURES)
        ]
        self.size = size
        self.count = 0

    def add(self, *rows: np.ndarray) -> None:
        """Append rows (N, width), one array per column."""
        where = torch.arange(self.count, self.count + len(rows[0])) % self.size
        for column, row in zip(self.columns, rows, strict=True):
            column[where] = torch.as_tensor(row, dtype=torch.float32)
        self.count += len(rows[0])

    def draw(self, batch: int, generator: torch.Generator) -> list[Tensor]:
        """A batch, uniformly with replacement."""
        rows = torch.randint(min(self.count, self.size), (batch,), generator=generator)
        return [column[rows] for column in self.columns]


class Learner:
    """Actor, two critics and the entropy temperature.

    Args:
        settings: numbers of the training.
        generator: source of every draw.
    """

    def __init__(self, settings: Settings, generator: torch.Generator) -> None:
        self._settings = settings
        self._generator = generator
        params = init_head(
            "actor",
            FEATURES,
            settings.actor_widths,
            {"mean": ACTIONS, "log_std": ACTIONS},
            generator,
        )
        sizes = (FEATURES + ACTIONS, *settings.critic_widths, 1)
        params |= init_mlp("critic", sizes, generator, members=2, layer_norm=True)
        params["alpha/log"] = torch.tensor(0.1).log()
        self.params: Params = {
            name: value.requires_grad_() for name, value in params.items()
        }
        self.targets = {
            name: value.detach().clone()
            for name, value in net(self.params, "critic").items()
        }
        self._optimizer = JointAdam(self.params, float("inf"))

    def act(self, state: np.ndarray) -> np.ndarray:
        """Drawn slot actions (N, 8) of features (N, 29)."""
        with torch.no_grad():
            mean, log_std = gaussian.head(
                self.params, "actor", torch.as_tensor(state, dtype=torch.float32)
            )
            noise = torch.randn(mean.shape, generator=self._generator)
            return np.asarray(gaussian.draw(mean, log_std, noise)[0].double())

    def update(self, batch: list[Tensor], learning_rate: float) -> Tensor:
        """One step of all three; returns (critic loss, mean value, entropy, alpha)."""
        s, a, reward, mask, s_next = batch
        log_alpha = self.params["alpha/log"]
        with torch.no_grad():
            a_next, _ = self._draw(s_next)
            q_next = critic.ensemble(self.targets, "critic", s_next, a_next)
            y = critic.td_target(
                q_next, reward[:, 0], mask[:, 0], self._settings.discount, 1.0
            )
        q = critic.ensemble(self.params, "critic", s, a)
        critic_loss, _ = critic.td_loss(q, y, torch.ones_like(y))
        drawn, log_p = self._draw(s)
        constant = detached(net(self.params, "critic"))
        value = critic.pessimistic(critic.ensemble(constant, "critic", s, drawn), 1.0)
        actor_loss = (log_alpha.detach().exp() * log_p - value).mean()
        target = self._settings.target_entropy * ACTIONS
        alpha_loss = gaussian.temperature_loss(log_alpha, log_p, target)
        gradients = torch.autograd.grad(
            critic_loss + actor_loss + alpha_loss, list(self.params.values())
        )
        lagged_average(
            list(self.targets.values()),
            list(detached(net(self.params, "critic")).values()),
            self._settings.target_rate,
        )
        self._optimizer.step(list(gradients), learning_rate)
        return torch.stack(
            [critic_loss, value.mean(), -log_p.mean(), log_alpha.exp()]
        ).detach()

    def _draw(self, s: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = gaussian.head(self.params, "actor", s)
        noise = torch.randn(mean.shape, generator=self._generator)
        return gaussian.draw(mean, log_std, noise)

    def expert(self) -> dict[str, np.ndarray]:
        """Weights of the mean action, by the names of `AntExpert`."""
        layers = len(self._settings.actor_widths)
        names = [f"actor/trunk/{layer}" for layer in range(layers)] + ["actor/mean/0"]
        return {
            f"{layer}/{kind}": self.params[f"{name}/{kind}"].detach().numpy().copy()
            for layer, name in enumerate(names)
            for kind in ("weight", "bias")
        }


class Training:
    """Collects and learns in turn.

    Args:
        settings: numbers of the training.
        output: file of the best expert.
    """

    def __init__(self, settings: Settings, output: Path) -> None:
        self._settings = settings
        self._output = output
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._rng = np.random.default_rng(settings.seed)
        self._learner = Learner(settings, self._generator)
        self._replay = Replay(settings.replay)
        self._herd = Herd(settings.ants, self._rng)
        self._state, self._k = features(*self._herd.state())
        self._best = -np.inf

    def run(self) -> None:
        """Train."""
        settings, updates = self._settings, 0
        while updates < settings.updates:
            self._collect()
            past_start = self._replay.count - settings.random_steps
            due = min(past_start / settings.steps_per_update, settings.updates)
            while updates < due:
                decay = 0.9 * min(updates / settings.decay_updates, 1.0)
                rate = settings.learning_rate * (1.0 - decay)
                batch = self._replay.draw(settings.batch, self._generator)
                info = self._learner.update(batch, rate)
                updates += 1
                if updates % settings.measure_every == 0 or updates == settings.updates:
                    self._measure(updates, info)

    def _collect(self) -> None:
        """One step of every ant."""
        if self._replay.count < self._settings.random_steps:
            slots = self._rng.uniform(-1.0, 1.0, (self._settings.ants, ACTIONS))
        else:
            slots = self._learner.act(self._state)
        before, direction = self._state, self._herd.direction.copy()
        speed, fallen = self._herd.step(motor_action(slots, self._k))
        qpos, qvel, _ = self._herd.state()
        after, _ = features(qpos, qvel, direction)
        reward = speed[:, None] * self._settings.reward_scale
        self._replay.add(before, slots, reward, 1.0 - fallen[:, None], after)
        self._herd.go_on(fallen)
        self._state, self._k = features(*self._herd.state())

    def _measure(self, updates: int, info: Tensor) -> None:
        """Walk with the mean action plus noise; keep the expert if it is the best so far."""
        weights = self._learner.expert()
        result = measure(AntExpert(weights), seed=12345)
        score = result.speed_m_s - 2.0 * result.falls_per_1000
        if score > self._best:
            self._best = score
            how: dict[str, Any] = asdict(self._settings) | {"kept_at": updates}
            how["versions"] = {name: version(name) for name in VERSIONS}
            write_expert(self._output, weights, how)
        loss, value, entropy, alpha = (float(number) for number in info)
        print(
            f"{time.process_time() / 60.0:5.1f} min {updates:7d} updates {self._replay.count:8d} steps "
            f"loss {loss:.3f} value {value:.1f} entropy {entropy:.2f} alpha {alpha:.4f} | "
            f"speed {result.speed_m_s:.2f} m/s, falls per 1000 steps {result.falls_per_1000:.2f}, "
            f"goals per 1000 steps {result.goals_per_1000:.2f}",
            flush=True,
        )


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--updates", type=int, default=Settings.updates)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(seed=arguments.seed, updates=arguments.updates)
    Training(settings, arguments.output).run()


if __name__ == "__main__":
    main()
