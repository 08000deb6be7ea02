# SPDX-License-Identifier: Apache-2.0
"""ReBRAC: deterministic actor with a squared behaviour penalty (arXiv 2305.09836).

As released in the QAM code, by default: the actor learns in every update; only the moving averages
wait for every second one. Exploration noise is added whenever it acts, evaluation included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qam_train import critic
from qam_train.agents.base import Agent, Metrics, draw_critic
from qam_train.agents.common import Normaliser, draw_normal
from qam_train.config import MethodConfig, require, require_positive
from qam_train.data.dataset import ChunkBatch
from qam_train.deployment import DeterministicActor
from qam_train.networks import Params, init_mlp, mlp, net


@dataclass(frozen=True)
class ReBRACConfig(MethodConfig):
    """Numbers of ReBRAC.

    Args:
        alpha: weight of the behaviour penalty.
        noise: standard deviation of the smoothing and exploration noise.
        noise_clip: bound of that noise.
        evaluation_noise: standard deviation of the noise in evaluation and deployment, so also of a
            robot that plays the exported policy while it learns; None: that of exploration.
        averages_every: updates between two moves of the targets.
        actor_every: updates between two steps of the actor; the paper waits for every 2nd.
        last_layer: variance scale of the actor's last layer at initialisation.
    """

    alpha: float = 0.01
    noise: float = 0.0
    noise_clip: float = 0.5
    evaluation_noise: float | None = None
    averages_every: int = 2
    actor_every: int = 1
    last_layer: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha >= 0.0, "alpha", "a number >= 0", self.alpha)
        require(self.noise >= 0.0, "noise", "a number >= 0", self.noise)
        require(
            self.acting_noise >= 0.0,
            "evaluation_noise",
            "a number >= 0, or null",
            self.evaluation_noise,
        )
        require_positive(self, "averages_every")
        require_positive(self, "actor_every")

    @property
    def acting_noise(self) -> float:
        """Standard deviation of the noise in evaluation and deployment."""
        return self.noise if self.evaluation_noise is None else self.evaluation_noise


@dataclass(frozen=True)
class ReBRACNoise:
    """Random numbers of one update.

    Args:
        next_action: (B, D), normal; smoothing of the target actor's action.
    """

    next_action: Tensor


class ReBRACAgent(Agent[ReBRACConfig, ReBRACNoise]):
    """Critic and deterministic tanh actor, both with a moving average."""

    algorithm = "rebrac"
    settings = ReBRACConfig
    averages: ClassVar = {"target_critic": "critic", "target_actor": "actor"}
    policy_net = "actor"

    def __init__(
        self, config: ReBRACConfig, parameters: Params, normaliser: Normaliser
    ) -> None:
        """As Agent; counts updates from 0."""
        super().__init__(config, parameters, normaliser)
        device = normaliser.mean.device
        self.updates = torch.zeros((), dtype=torch.int64, device=device)

    @classmethod
    def draw_nets(
        cls,
        config: ReBRACConfig,
        observation_size: int,
        width: int,
        generator: torch.Generator,
    ) -> Params:
        """Critic and actor; the actor's last layer starts small."""
        actor = init_mlp(
            "actor",
            (observation_size, *config.actor.widths, width),
            generator,
            layer_norm=config.actor.layer_norm,
        )
        last = f"actor/{len(config.actor.widths)}/weight"
        actor[last] *= config.last_layer**0.5
        return draw_critic(config, observation_size + width, generator) | actor

    def loss(self, batch: ChunkBatch, noise: ReBRACNoise) -> tuple[Tensor, Metrics]:
        """Critic, and the actor where it is due."""
        critic_loss, metrics = self.critic_loss(batch, noise.next_action)
        s, data = self.inputs(batch)
        a = actor(self.trained, "actor", s)
        q = critic.pessimistic(
            critic.ensemble(self.constant, "critic", s, a), self.config.rho
        )
        q_loss = -(q / q.detach().abs().mean()).mean()
        distance = ((a - data).square().sum(-1) * batch.valid).mean()
        due = self._due(self.config.actor_every).to(q_loss.dtype)
        loss = critic_loss + due * q_loss + self.config.alpha * (due * distance)
        more = {"actor/q_loss": q_loss.detach(), "actor/distance": distance.detach()}
        return loss, {"loss": loss.detach(), **metrics, **more}

    def update(
        self,
        batch: ChunkBatch,
        noise: ReBRACNoise,
        learning_rate: float | Tensor | None = None,
    ) -> Metrics:
        """As Agent; where the actor is not due, it stays as it is.

        One Adam steps all nets and its moments would move the actor without a gradient. So the
        actor is put back with its moments: as if it had an Adam of its own.
        """
        if self.config.actor_every == 1:
            return super().update(batch, noise, learning_rate)
        due = self._due(self.config.actor_every)
        state = self._actor_state()
        before = [value.clone() for value in state]
        metrics = super().update(batch, noise, learning_rate)
        for value, old in zip(state, before, strict=True):
            value.copy_(torch.where(due, value, old))
        return metrics

    def _due(self, every: int) -> Tensor:
        """Whether this update is an every-th one, (); the device counts them."""
        return (self.updates + 1) % every == 0

    def _actor_state(self) -> list[Tensor]:
        """The actor's tensors, its moments and its count of steps."""
        adam = self.optimizer
        kinds = (self.constant, adam.first, adam.second, adam.steps)
        return [kind[name] for kind in kinds for name in net(self.trained, "actor")]

    def follow(self) -> None:
        """Move the targets in every averages_every-th update."""
        due = self._due(self.config.averages_every)
        self.updates += 1
        with torch.no_grad():
            for target, online in zip(
                self.targets.values(), self._followed, strict=True
            ):
                target.lerp_(online, due.to(target.dtype) * self.config.ema)

    @torch.no_grad()
    def next_action(self, batch: ChunkBatch, noise: Tensor) -> Tensor:
        """The target actor's action, smoothed."""
        s_next = self.normaliser(batch.next_observations)
        a = actor(self.targets, "target_actor", s_next)
        return self._smoothed(a, noise, self.config.noise)

    def policy(self, s: Tensor, noise: Tensor) -> Tensor:
        """The actor's action with the noise of evaluation."""
        a = actor(self.trained, "actor", s)
        return self._smoothed(a.expand(noise.shape), noise, self.config.acting_noise)

    @torch.no_grad()
    def explore(self, observations: Tensor, noise: Tensor) -> Tensor:
        """As act(), with the noise of exploration; (B, D) noise."""
        a = actor(self.constant, "actor", self.normaliser(observations))
        chunk = self._smoothed(a, noise, self.config.noise)
        return chunk.unflatten(-1, (self.config.chunk, -1))

    def deployment(self) -> DeterministicActor:
        """The actor with the noise of evaluation."""
        config = self.config
        return DeterministicActor("actor", config.acting_noise, config.noise_clip)

    def _smoothed(self, a: Tensor, noise: Tensor, std: float) -> Tensor:
        bound = self.config.noise_clip
        return (a + (std * noise).clamp(-bound, bound)).clamp(-1.0, 1.0)

    def draw_noise(self, batch_size: int, generator: torch.Generator) -> ReBRACNoise:
        """Draw the noise of one update on the generator's device."""
        return ReBRACNoise(draw_normal(generator, batch_size, self.chunk_width))

    def state_dict(self) -> Params:
        """As Agent, with the count of updates."""
        return super().state_dict() | {"updates": self.updates}


def actor(params: Params, prefix: str, s: Tensor) -> Tensor:
    """Deterministic action tanh(mlp(s)), (B, D)."""
    return torch.tanh(mlp(params, prefix, s))
