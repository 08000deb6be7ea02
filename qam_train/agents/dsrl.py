# SPDX-License-Identifier: Apache-2.0
"""DSRL: a policy over the noise of a behaviour-cloned flow (arXiv 2506.15799).

A second critic 'z_critic' values noise z; it copies the critic at the flow's actions. A
tanh-Gaussian policy 'actor' picks z = scale * e in the box. Acting: averaged flow from z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qam_train import critic, flow, gaussian
from qam_train.agents.base import Metrics, draw_critic
from qam_train.agents.behaviour_flow import BehaviourFlowAgent, FlowActorNoise
from qam_train.agents.common import draw_normal, draw_uniform
from qam_train.config import FlowConfig, require
from qam_train.data.dataset import ChunkBatch
from qam_train.deployment import (
    Deployment,
    FlowPolicy,
    NoisePolicyFlow,
    best_of,
)
from qam_train.networks import Params, init_head, velocity_field


@dataclass(frozen=True)
class DSRLConfig(FlowConfig):
    """Numbers of DSRL.

    Args:
        noise_scale: half width of the box of z.
        target_entropy: the entropy is driven to minus this per number of the chunk.
    """

    noise_scale: float = 1.0
    target_entropy: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.noise_scale > 0.0, "noise_scale", "a positive number", self.noise_scale
        )


@dataclass(frozen=True)
class DSRLNoise(FlowActorNoise):
    """Random numbers of one update; as FlowActorNoise, and one more.

    Args:
        latent: (B, D), normal; where the z-critic learns. It is asked in the box (official code).
    """

    latent: Tensor


class DSRLAgent(BehaviourFlowAgent[DSRLConfig]):
    """Critic, z-critic, behaviour flow with its average, noise policy, temperature.

    Attributes:
        played: the flow that turns z into an action.
    """

    played: ClassVar[Literal["target_flow", "flow"]] = "target_flow"

    algorithm = "dsrl"
    settings = DSRLConfig
    averages: ClassVar = {"target_critic": "critic", "target_flow": "flow"}
    behaviour_nets = ("flow", "target_flow")

    @classmethod
    def draw_nets(
        cls,
        config: DSRLConfig,
        observation_size: int,
        width: int,
        generator: torch.Generator,
    ) -> Params:
        """All nets, drawn independently."""
        params = super().draw_nets(config, observation_size, width, generator)
        inputs = observation_size + width
        params |= draw_critic(config, inputs, generator, "z_critic")
        params |= init_head(
            "actor",
            observation_size,
            config.actor.widths,
            {"mean": width, "log_std": width},
            generator,
        )
        return params | {"alpha/log": torch.zeros((), device=generator.device)}

    def loss(self, batch: ChunkBatch, noise: FlowActorNoise) -> tuple[Tensor, Metrics]:
        """Critic, z-critic, flow matching, noise policy and temperature."""
        assert isinstance(noise, DSRLNoise)
        critic_loss, metrics = self.critic_loss(batch, noise.next_action)
        s, _ = self.inputs(batch)
        latent_loss = self.latent_loss(s, noise.latent)
        flow_loss, flow_metrics = self.behaviour_loss(batch, noise)
        actor_loss, actor_metrics = self.actor_loss(s, noise.actor)
        loss = critic_loss + latent_loss + flow_loss + actor_loss
        metrics |= {"critic/latent_loss": latent_loss.detach()}
        metrics = metrics | flow_metrics | actor_metrics
        return loss, {"loss": loss.detach(), **metrics}

    def latent_loss(self, s: Tensor, z: Tensor) -> Tensor:
        """Member by member (Q^z_k(s, z) - Q_k(s, flow(s, z)))^2; online critic, no valid."""
        with torch.no_grad():
            q = critic.ensemble(self.constant, "critic", s, self.flow_action(s, z))
        return (critic.ensemble(self.trained, "z_critic", s, z) - q).square().mean()

    def actor_loss(self, s: Tensor, noise: Tensor) -> tuple[Tensor, Metrics]:
        """Alpha log p(e) - mean_k Q^z_k(s, scale e), and the temperature's own loss."""
        mean, log_std = gaussian.head(self.trained, "actor", s)
        e, log_p = gaussian.draw(mean, log_std, noise)
        z = self.config.noise_scale * e
        q = critic.ensemble(self.constant, "z_critic", s, z).mean()
        log_alpha = self.trained["alpha/log"]
        actor_loss = (log_alpha.detach().exp() * log_p).mean() - q
        target = -self.config.target_entropy * self.chunk_width
        alpha_loss = gaussian.temperature_loss(log_alpha, log_p, target)
        metrics = {
            "actor/loss": actor_loss.detach(),
            "actor/q": q.detach(),
            "actor/entropy": -log_p.detach().mean(),
            "actor/std": log_std.detach().exp().mean(),
            "actor/alpha": log_alpha.detach().exp(),
            "actor/alpha_loss": alpha_loss.detach(),
        }
        return actor_loss + alpha_loss, metrics

    def flow_action(self, s: Tensor, z: Tensor) -> Tensor:
        """Clipped action of the (averaged) flow from z, (..., B, D)."""
        field = velocity_field(self.constant, self.played, s)
        return flow.sample(field, z, self.config.flow_steps)

    def policy(self, s: Tensor, noise: Tensor) -> Tensor:
        """Averaged flow from the drawn z."""
        mean, log_std = gaussian.head(self.trained, "actor", s)
        e, _ = gaussian.draw(mean, log_std, noise)
        return self.flow_action(s, self.config.noise_scale * e.clamp(-1.0, 1.0))

    def deployment(self) -> Deployment:
        """Noise policy and averaged flow."""
        flow = FlowPolicy(self.played, self.config.flow_steps)
        policy = NoisePolicyFlow(flow, "actor", self.config.noise_scale)
        return best_of(self.config, policy)

    def draw_noise(self, batch_size: int, generator: torch.Generator) -> DSRLNoise:
        """Draw the noise of one update on the generator's device."""
        width = self.chunk_width
        return DSRLNoise(
            next_action=self.draw_action_noise(batch_size, generator),
            flow_start=draw_normal(generator, batch_size, width),
            flow_time=draw_uniform(generator, batch_size, 1),
            actor=draw_normal(generator, batch_size, width),
            latent=draw_normal(generator, batch_size, width),
        )
