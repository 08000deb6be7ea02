# SPDX-License-Identifier: Apache-2.0
"""RLPD: soft actor-critic on chunks with a critic ensemble (arXiv 2302.02948).

No entropy in the bootstrap; the actor maximises the pessimistic value; optional likelihood of the
data (the released scripts leave its tuned weights unused, so it is 0 by default).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qam_train import critic, gaussian
from qam_train.agents.base import Agent, Metrics, draw_critic
from qam_train.agents.common import draw_normal
from qam_train.config import MethodConfig, require
from qam_train.data.dataset import ChunkBatch
from qam_train.deployment import GaussianActor
from qam_train.networks import Params, init_head


@dataclass(frozen=True)
class RLPDConfig(MethodConfig):
    """Numbers of RLPD.

    Args:
        behaviour: weight of the data's negative log-likelihood.
        target_entropy: the entropy is driven to minus this per number of the chunk.
        alpha_start: entropy temperature at initialisation.
    """

    behaviour: float = 0.0
    target_entropy: float = 0.5
    alpha_start: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.behaviour >= 0.0, "behaviour", "a number >= 0", self.behaviour)
        require(
            self.alpha_start > 0.0, "alpha_start", "a positive number", self.alpha_start
        )


@dataclass(frozen=True)
class GaussianNoise:
    """Random numbers of one update.

    Args:
        next_action: (B, D), normal; of the policy at the next observation.
        actor: (B, D), normal; of the actor's loss.
    """

    next_action: Tensor
    actor: Tensor


class RLPDAgent(Agent[RLPDConfig, GaussianNoise]):
    """Critic, tanh-Gaussian actor, entropy temperature."""

    algorithm = "rlpd"
    settings = RLPDConfig
    policy_net = "actor/mean"

    @classmethod
    def draw_nets(
        cls,
        config: RLPDConfig,
        observation_size: int,
        width: int,
        generator: torch.Generator,
    ) -> Params:
        """Critic, actor and the logarithm of the temperature."""
        params = draw_critic(config, observation_size + width, generator)
        params |= init_head(
            "actor",
            observation_size,
            config.actor.widths,
            {"mean": width, "log_std": width},
            generator,
        )
        start = torch.tensor(config.alpha_start, device=generator.device)
        return params | {"alpha/log": start.log()}

    def loss(self, batch: ChunkBatch, noise: GaussianNoise) -> tuple[Tensor, Metrics]:
        """Critic, actor, temperature and likelihood of the data."""
        critic_loss, metrics = self.critic_loss(batch, noise.next_action)
        s, data = self.inputs(batch)
        mean, log_std = gaussian.head(self.trained, "actor", s)
        a, log_p = gaussian.draw(mean, log_std, noise.actor)
        q = critic.pessimistic(
            critic.ensemble(self.constant, "critic", s, a), self.config.rho
        ).mean(-1)
        log_alpha = self.trained["alpha/log"]
        actor_loss = (log_alpha.detach().exp() * log_p).mean() - q
        target = -self.config.target_entropy * self.chunk_width
        alpha_loss = gaussian.temperature_loss(log_alpha, log_p, target)
        likelihood = gaussian.log_likelihood(mean, log_std, data)
        behaviour_loss = -self.config.behaviour * (likelihood * batch.valid).mean()
        loss = critic_loss + actor_loss + alpha_loss + behaviour_loss
        more = {
            "actor/loss": actor_loss.detach(),
            "actor/q": q.detach(),
            "actor/entropy": -log_p.detach().mean(),
            "actor/alpha": log_alpha.detach().exp(),
            "actor/alpha_loss": alpha_loss.detach(),
            "actor/behaviour_loss": behaviour_loss.detach(),
        }
        return loss, {"loss": loss.detach(), **metrics, **more}

    def policy(self, s: Tensor, noise: Tensor) -> Tensor:
        """Drawn action."""
        mean, log_std = gaussian.head(self.trained, "actor", s)
        return gaussian.draw(mean, log_std, noise)[0]

    def deployment(self) -> GaussianActor:
        """The actor."""
        return GaussianActor("actor")

    def draw_noise(self, batch_size: int, generator: torch.Generator) -> GaussianNoise:
        """Draw the noise of one update on the generator's device."""
        width = self.chunk_width
        return GaussianNoise(
            next_action=draw_normal(generator, batch_size, width),
            actor=draw_normal(generator, batch_size, width),
        )
