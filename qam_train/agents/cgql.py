# SPDX-License-Identifier: Apache-2.0
"""CGQL: a behaviour flow guided at sampling time by the critic's action gradient.

The critic takes time as its last input; the data stand at t = 1. Guided is the averaged flow, by the
online critic (official code).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from qam_train import critic, guidance
from qam_train.agents.base import Metrics, draw_critic, draw_flow
from qam_train.agents.behaviour_flow import BehaviourFlowAgent, FlowActorNoise
from qam_train.agents.common import draw_normal, draw_uniform
from qam_train.config import FlowConfig, require
from qam_train.data.dataset import ChunkBatch
from qam_train.deployment import Deployment, FlowPolicy, GuidedFlow, best_of
from qam_train.networks import Params, velocity_field


@dataclass(frozen=True)
class CGQLConfig(FlowConfig):
    """Numbers of CGQL.

    Args:
        guidance: theta, weight of the guidance.
        tau: inverse temperature.
    """

    guidance: float = 0.1
    tau: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.guidance >= 0.0, "guidance", "a number >= 0", self.guidance)
        require(self.tau > 0.0, "tau", "a positive number", self.tau)


@dataclass(frozen=True)
class NoisyCGQLConfig(CGQLConfig):
    """Numbers of CGQL-M and CGQL-L.

    Args:
        noisy: nu, weight of the critic's loss on noised actions.
    """

    noisy: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.noisy >= 0.0, "noisy", "a number >= 0", self.noisy)


@dataclass(frozen=True)
class CGQLNoise(FlowActorNoise):
    """Random numbers of one update; actor is not read.

    Args:
        noisy_start: (B, D), normal; noise of the noised data actions; not read by CGQL.
        noisy_time: (B, 1), uniform on [0, 1); their time.
    """

    noisy_start: Tensor
    noisy_time: Tensor


C = TypeVar("C", bound=CGQLConfig)


class GuidedAgent(BehaviourFlowAgent[C]):
    """Critic with time, flow, averages of both.

    Attributes:
        guided: the flow that is guided and played.
    """

    guided: ClassVar[Literal["target_flow", "flow"]] = "target_flow"

    averages: ClassVar = {"target_critic": "critic", "target_flow": "flow"}
    behaviour_nets = ("flow", "target_flow")

    @classmethod
    def draw_nets(
        cls, config: C, observation_size: int, width: int, generator: torch.Generator
    ) -> Params:
        """Critic of (s, a, t) and flow."""
        params = draw_critic(config, observation_size + width + 1, generator)
        return params | draw_flow(config, "flow", observation_size, width, generator)

    def loss(self, batch: ChunkBatch, noise: FlowActorNoise) -> tuple[Tensor, Metrics]:
        """Critic at t = 1, critic on noised actions, flow matching."""
        assert isinstance(noise, CGQLNoise)
        critic_loss, metrics = self.critic_loss(batch, noise.next_action)
        noisy_loss, noisy_metrics = self.noisy_loss(batch, noise)
        flow_loss, flow_metrics = self.behaviour_loss(batch, noise)
        loss = critic_loss + noisy_loss + flow_loss
        metrics = metrics | noisy_metrics | flow_metrics
        return loss, {"loss": loss.detach(), **metrics}

    def noisy_loss(
        self,
        batch: ChunkBatch,  # noqa: ARG002
        noise: CGQLNoise,  # noqa: ARG002
    ) -> tuple[Tensor | float, Metrics]:
        """None: the critic is asked at t = 1 alone."""
        return 0.0, {}

    def noisy_values(
        self, batch: ChunkBatch, noise: CGQLNoise
    ) -> tuple[Tensor, Tensor]:
        """Q_t at noised data actions (trained) and the target critic's Q_1 at the data, (E, B)."""
        s, a = self.inputs(batch)
        t = noise.noisy_time
        a_t = (1.0 - t) * noise.noisy_start + t * a
        with torch.no_grad():
            q_1 = self.values(self.targets, "target_critic", s, a)
        return self.values_at(self.trained, "critic", s, a_t, t), q_1

    def values(self, params: Params, prefix: str, s: Tensor, a: Tensor) -> Tensor:
        """At t = 1."""
        return self.values_at(params, prefix, s, a, a.new_ones((len(a), 1)))

    def values_at(
        self, params: Params, prefix: str, s: Tensor, a: Tensor, t: Tensor
    ) -> Tensor:
        """Values (E, B) of noised chunks at times t (B, 1)."""
        return critic.ensemble(params, prefix, s, torch.cat([a, t], -1))

    def guidance_time(self, t: float) -> float:  # noqa: ARG002
        """Time the critic is told at step t: the action's."""
        return 1.0

    @torch.no_grad()
    def policy(self, s: Tensor, noise: Tensor) -> Tensor:
        """Guided n Euler steps, clipped."""
        if noise.dim() == 3:
            repeated = s.expand(len(noise), *s.shape).flatten(0, 1)
            return self.policy(repeated, noise.flatten(0, 1)).view_as(noise)

        def gradient(a: Tensor, t: float) -> Tensor:
            told = a.new_full((len(a), 1), self.guidance_time(t))
            return critic.action_gradient(
                lambda x: self.values_at(self.constant, "critic", s, x, told),
                a,
                float("inf"),
            )

        config = self.config
        field = velocity_field(self.constant, self.guided, s)
        return guidance.guided_sample(
            field, gradient, noise, config.flow_steps, config.guidance, config.tau
        )

    def deployment(self) -> Deployment:
        """The guided flow; candidates are ranked at t = 1."""
        config, n = self.config, self.config.flow_steps
        told = tuple(self.guidance_time(k / n) for k in range(n))
        flow = FlowPolicy(self.guided, n)
        guided = GuidedFlow(flow, "critic", config.guidance, config.tau, told)
        return best_of(config, guided, told=1.0)

    def draw_noise(self, batch_size: int, generator: torch.Generator) -> CGQLNoise:
        """Draw the noise of one update on the generator's device."""
        width = self.chunk_width
        flow_start = draw_normal(generator, batch_size, width)
        return CGQLNoise(
            next_action=self.draw_action_noise(batch_size, generator),
            flow_start=flow_start,
            flow_time=draw_uniform(generator, batch_size, 1),
            actor=flow_start[:, :0],
            noisy_start=draw_normal(generator, batch_size, width),
            noisy_time=draw_uniform(generator, batch_size, 1),
        )


class CGQLAgent(GuidedAgent[CGQLConfig]):
    """Gradient of the critic at t = 1, whatever the step."""

    algorithm = "cgql"
    settings = CGQLConfig
