# SPDX-License-Identifier: Apache-2.0
"""ReBRAC: deterministic actor with a squared behaviour penalty (arXiv 2305.09836).

As released in the QAM code: the actor learns in every update; only the moving averages wait for
every second one. Exploration noise is added whenever it acts, evaluation included.
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
from qam_train.networks import Params, init_mlp, mlp


@dataclass(frozen=True)
class ReBRACConfig(MethodConfig):
    """Numbers of ReBRAC.

    Args:
        alpha: weight of the behaviour penalty.
        noise: standard deviation of the smoothing and exploration noise.
        noise_clip: bound of that noise.
        averages_every: updates between two moves of the targets.
        last_layer: variance scale of the actor's last layer at initialisation.
    """

    alpha: float = 0.01
    noise: float = 0.0
    noise_clip: float = 0.5
    averages_every: int = 2
    last_layer: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha >= 0.0, "alpha", "a number >= 0", self.alpha)
        require(self.noise >= 0.0, "noise", "a number >= 0", self.noise)
        require_positive(self, "averages_every")


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
        """Critic and actor."""
        critic_loss, metrics = self.critic_loss(batch, noise.next_action)
        s, data = self.inputs(batch)
        a = actor(self.trained, "actor", s)
        q = critic.pessimistic(
            critic.ensemble(self.constant, "critic", s, a), self.config.rho
        )
        q_loss = -(q / q.detach().abs().mean()).mean()
        distance = ((a - data).square().sum(-1) * batch.valid).mean()
        loss = critic_loss + q_loss + self.config.alpha * distance
        more = {"actor/q_loss": q_loss.detach(), "actor/distance": distance.detach()}
        return loss, {"loss": loss.detach(), **metrics, **more}

    def follow(self) -> None:
        """Move the targets in every averages_every-th update; which one, the device counts."""
        self.updates += 1
        due = self.updates % self.config.averages_every == 0
        with torch.no_grad():
            for target, online in zip(
                self.targets.values(), self._followed, strict=True
            ):
                target.lerp_(online, due.to(target.dtype) * self.config.ema)

    @torch.no_grad()
    def next_action(self, batch: ChunkBatch, noise: Tensor) -> Tensor:
        """The target actor's action, smoothed."""
        s_next = self.normaliser(batch.next_observations)
        return self._smoothed(actor(self.targets, "target_actor", s_next), noise)

    def policy(self, s: Tensor, noise: Tensor) -> Tensor:
        """The actor's action with exploration noise."""
        a = actor(self.trained, "actor", s)
        return self._smoothed(a.expand(noise.shape), noise)

    def deployment(self) -> DeterministicActor:
        """The actor with its exploration noise."""
        return DeterministicActor("actor", self.config.noise, self.config.noise_clip)

    def _smoothed(self, a: Tensor, noise: Tensor) -> Tensor:
        bound = self.config.noise_clip
        return (a + (self.config.noise * noise).clamp(-bound, bound)).clamp(-1.0, 1.0)

    def draw_noise(self, batch_size: int, generator: torch.Generator) -> ReBRACNoise:
        """Draw the noise of one update on the generator's device."""
        return ReBRACNoise(draw_normal(generator, batch_size, self.chunk_width))

    def state_dict(self) -> Params:
        """As Agent, with the count of updates."""
        return super().state_dict() | {"updates": self.updates}


def actor(params: Params, prefix: str, s: Tensor) -> Tensor:
    """Deterministic action tanh(mlp(s)), (B, D)."""
    return torch.tanh(mlp(params, prefix, s))
