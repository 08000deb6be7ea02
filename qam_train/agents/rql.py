# SPDX-License-Identifier: Apache-2.0
"""RQL: reversal Q-learning (arXiv 2606.17551).

A value V(s, x, f) over the states of the flow, learnt where the reversed data pass, and a flow that
is improved by one Euler step at a time. The moving average of the flow is played at evaluation, the
flow itself while exploring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qam_train import critic, flow, reverse
from qam_train.agents.base import (
    Agent,
    Metrics,
    draw_critic,
    draw_flow,
    spread,
)
from qam_train.agents.common import draw_normal, draw_uniform
from qam_train.config import FlowConfig, require
from qam_train.data.dataset import ChunkBatch
from qam_train.data.sampling import Sampler
from qam_train.data.segments import SegmentBatch, SegmentChunks
from qam_train.deployment import Deployment, FlowPolicy, best_of
from qam_train.expectile import expectile_loss
from qam_train.networks import Params, net, velocity_field
from qam_train.optimizer import lagged_average


@dataclass(frozen=True)
class RQLConfig(FlowConfig):
    """Numbers of RQL.

    Args:
        alpha: weight of flow matching.
        kappa: expectile of the value.
        actor_ema: rate of the flow's moving average per update (that of the value is `ema`).
    """

    rho: float = 0.0
    alpha: float = 1.0
    kappa: float = 0.5
    actor_ema: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha >= 0.0, "alpha", "a number >= 0", self.alpha)
        require(0.0 < self.kappa < 1.0, "kappa", "a number in (0, 1)", self.kappa)


@dataclass(frozen=True)
class RQLNoise:
    """Random numbers of one update.

    Args:
        next_start: (B, D), normal; flow state at the next observation.
        distance: (B, 1), how far the flow is reversed: half the rows uniform on [0, 1), half on the
            grid 0, 1/K .. 1.
        flow_start: (B, D), normal; start of the behaviour path.
        flow_time: (B, 1), uniform on [0, 1); time on the behaviour path.
    """

    next_start: Tensor
    distance: Tensor
    flow_start: Tensor
    flow_time: Tensor


class RQLAgent(Agent[RQLConfig, RQLNoise]):
    """Value ensemble 'value' over (s, x, f) and flow 'actor', both with a moving average."""

    algorithm = "rql"
    settings = RQLConfig
    averages: ClassVar = {"target_value": "value", "target_actor": "actor"}
    policy_net = "actor"
    behaviour_nets = ("actor", "target_actor")

    @classmethod
    def draw_nets(
        cls,
        config: RQLConfig,
        observation_size: int,
        width: int,
        generator: torch.Generator,
    ) -> Params:
        """Value and flow."""
        params = draw_critic(config, observation_size + width + 1, generator, "value")
        return params | draw_flow(config, "actor", observation_size, width, generator)

    def loss(self, batch: ChunkBatch, noise: RQLNoise) -> tuple[Tensor, Metrics]:
        """Value at the reversed data, flow matching, value after one step of the flow."""
        s, a = self.inputs(batch)
        value_loss, metrics = self.value_loss(batch, s, a, noise)
        x = (1.0 - noise.flow_time) * noise.flow_start + noise.flow_time * a
        velocity = velocity_field(self.trained, "actor", s)(x, noise.flow_time)
        error = (velocity - (a - noise.flow_start)).square()
        flow_loss = (error * self.action_weights(batch)).mean()
        reached, time = reverse.one_euler_step(
            velocity, x, noise.flow_time, self.config.flow_steps
        )
        v = self.values_at(self.constant, "value", s, reached, time).mean(0)
        actor_loss = -(v * batch.valid).mean()
        loss = actor_loss + self.config.alpha * flow_loss + value_loss
        more = {
            "flow/loss": flow_loss.detach(),
            "actor/loss": actor_loss.detach(),
            **spread("actor/value", v.detach()),
        }
        return loss, {"loss": loss.detach(), **metrics, **more}

    def value_loss(
        self, batch: ChunkBatch, s: Tensor, a: Tensor, noise: RQLNoise
    ) -> tuple[Tensor, Metrics]:
        """Expectile of R_h + gamma^h m V(s', x_0, 0) at the reversed data."""
        with torch.no_grad():
            field = velocity_field(self.constant, "actor", s)
            steps = self.config.flow_steps
            x, f = reverse.reverse_flow(field, a, noise.distance, steps)
            y = self._target(batch, noise.next_start)
        v = self.values_at(self.trained, "value", s, x, f)
        loss = (expectile_loss(y - v, self.config.kappa) * batch.valid).mean()
        metrics = {"value/loss": loss.detach(), **spread("value/v", v.detach())}
        return loss, metrics

    def _target(self, batch: ChunkBatch, start: Tensor) -> Tensor:
        """Pessimistic averaged value of pure noise at the next observation, discounted."""
        s_next = self.normaliser(batch.next_observations)
        zero = start.new_zeros((len(start), 1))
        v = self.values_at(self.targets, "target_value", s_next, start, zero)
        return critic.td_target(
            v, batch.rewards, batch.masks, self.chunk_discount, self.config.rho
        )

    def values_at(
        self, params: Params, prefix: str, s: Tensor, x: Tensor, f: Tensor
    ) -> Tensor:
        """V(s, x, f), (E, B)."""
        return critic.ensemble(params, prefix, s, torch.cat([x, f], -1))

    def values(self, params: Params, prefix: str, s: Tensor, a: Tensor) -> Tensor:
        """Value of a finished action, f = 1."""
        return self.values_at(params, prefix, s, a, a.new_ones((len(a), 1)))

    def rank(self, s: Tensor, candidates: Tensor) -> Tensor:
        """Value of the finished actions (not in the official code, which takes one)."""
        count, rows, _ = candidates.shape
        repeated = s.expand(count, *s.shape).flatten(0, 1)
        v = self.values(self.constant, "value", repeated, candidates.flatten(0, 1))
        return v.mean(0).unflatten(-1, (count, rows))

    def sampler(self, *, pad_terminated: bool = False) -> Sampler:  # noqa: ARG002
        """Its own, which repeats the last row past an episode's end."""
        return SegmentChunks(self.config.return_steps, self.config.discount)

    def action_weights(self, batch: ChunkBatch) -> Tensor:
        """1 for each number of a chunk that was executed, (B, D) or (B, 1).

        A batch of RQL's own sampler knows it action by action; others chunk by chunk.
        """
        if isinstance(batch, SegmentBatch):
            size = batch.actions.shape[-1]
            return batch.inside[:, : self.config.chunk].repeat_interleave(size, 1)
        return batch.valid.unsqueeze(-1)

    def follow(self) -> None:
        """Value and flow at their own rates, before the step (official code)."""
        rates = {
            "target_value": self.config.ema,
            "target_actor": self.config.actor_ema,
        }
        for target, rate in rates.items():
            names = list(net(self.targets, target))
            online = [self.constant[self._online_name(name)] for name in names]
            lagged_average([self.targets[name] for name in names], online, rate)

    def policy(self, s: Tensor, noise: Tensor) -> Tensor:
        """Clipped steps of the averaged flow."""
        field = velocity_field(self.targets, "target_actor", s)
        return flow.sample(field, noise, self.config.flow_steps)

    def deployment(self) -> Deployment:
        """The averaged flow; candidates are ranked as finished actions."""
        flow = FlowPolicy("target_actor", self.config.flow_steps)
        return best_of(self.config, flow, "value", told=1.0)

    @torch.no_grad()
    def explore(self, observations: Tensor, noise: Tensor) -> Tensor:
        """As act(), with the flow itself; (B, D) noise."""
        field = velocity_field(self.constant, "actor", self.normaliser(observations))
        chunk = flow.sample(field, noise, self.config.flow_steps)
        return chunk.unflatten(-1, (self.config.chunk, -1))

    def draw_noise(self, batch_size: int, generator: torch.Generator) -> RQLNoise:
        """Draw the noise of one update on the generator's device."""
        width, steps, half = self.chunk_width, self.config.flow_steps, batch_size // 2
        grid = torch.randint(
            steps + 1,
            (batch_size - half, 1),
            generator=generator,
            device=generator.device,
        )
        uniform = draw_uniform(generator, half, 1)
        return RQLNoise(
            next_start=draw_normal(generator, batch_size, width),
            distance=torch.cat([uniform, grid / steps]),
            flow_start=draw_normal(generator, batch_size, width),
            flow_time=draw_uniform(generator, batch_size, 1),
        )
