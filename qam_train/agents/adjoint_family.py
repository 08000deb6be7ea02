# SPDX-License-Identifier: Apache-2.0
"""Adjoint matching as a family: critic, behaviour flow, tuned flow, and parts that say the rest.

Nets: critic ensemble 'critic', behaviour flow 'slow' (f_beta), tuned flow 'fast' (f_theta), moving
averages 'target_critic' and 'target_slow'; a head may add its own. One joint Adam step per update.
Notation: s observation, a action chunk (B, D), g adjoint, lambda temperature.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from qam_train import adjoint, critic, flow
from qam_train.agents.adjoint_parts import Parts, Path
from qam_train.agents.base import Agent, Metrics, draw_critic, draw_flow
from qam_train.agents.common import (
    Normaliser,
    draw_normal,
    draw_uniform,
)
from qam_train.agents.heads import HeadNets, row_weight
from qam_train.config import AdjointConfig
from qam_train.data.dataset import ChunkBatch
from qam_train.deployment import Deployment, FlowPolicy, best_of
from qam_train.networks import Field, Params, velocity_field, velocity_pullback

C = TypeVar("C", bound=AdjointConfig)


@dataclass(frozen=True)
class QAMNoise:
    """Every random number of one update; n flow steps, B rows, M rows for adjoint matching.

    Args:
        next_action: (B, W), normal; noise of the policy at the next observation, as for act().
        flow_start: (B, D), normal; start of the behaviour path.
        flow_time: (B, 1), uniform on [0, 1); time on the behaviour path.
        rollout_start: (M, D), normal; start of the rollout of the tuned flow.
        rollout: (K, M, D), normal; step noise (K = n-1) or bridge noise (K = bridges).
        head: (B, W), normal; noise of the head's loss; None where it takes none.
    """

    next_action: Tensor
    flow_start: Tensor
    flow_time: Tensor
    rollout_start: Tensor
    rollout: Tensor
    head: Tensor | None = None


class FlowPairAgent(Agent[C, QAMNoise]):
    """Critic, behaviour flow and a flow tuned against it; how it is tuned is left open.

    Attributes:
        tuned: 'direct': the net 'fast' is f_theta; 'residual': f_theta = fast + behaviour field.
        base: net that is the behaviour field of rollout, adjoint and regression.
    """

    tuned: ClassVar[Literal["direct", "residual"]] = "direct"
    base: ClassVar[Literal["target_slow", "slow"]] = "target_slow"

    averages: ClassVar = {"target_critic": "critic", "target_slow": "slow"}
    policy_net: ClassVar[str] = "fast"
    behaviour_nets = ("slow", "target_slow", "fast")
    cloned_net = "slow"

    @classmethod
    def draw_nets(
        cls, config: C, observation_size: int, width: int, generator: torch.Generator
    ) -> Params:
        """Critic and both flows, drawn independently."""
        params = draw_critic(config, observation_size + width, generator)
        params |= draw_flow(config, "slow", observation_size, width, generator)
        return params | draw_flow(config, "fast", observation_size, width, generator)

    def loss(self, batch: ChunkBatch, noise: QAMNoise) -> tuple[Tensor, Metrics]:
        """Sum of critic, behaviour-flow and improvement loss; each trains its own nets only."""
        s, a = self.inputs(batch)
        critic_loss, metrics = self.critic_loss(batch, noise.next_action)
        slow = velocity_field(self.trained, "slow", s)
        flow_loss, flow_metrics = flow.flow_matching_loss(
            slow, a, noise.flow_start, noise.flow_time, batch.valid
        )
        weight = row_weight(self.config, batch.valid)
        improvement, more = self.improvement(s, a, noise, weight)
        loss = critic_loss + flow_loss + improvement
        return loss, {"loss": loss.detach(), **metrics, **flow_metrics, **more}

    @abstractmethod
    def improvement(
        self, s: Tensor, a: Tensor, noise: QAMNoise, weight: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Loss of the tuned flow and of what stands on it.

        Args:
            s: (B, O), normalised.
            a: (B, D), of the data.
            noise: draws of this update.
            weight: (B,), of each row, see heads.row_weight.
        """

    def path_draws(self) -> int:
        """Noises (M, D) of a rollout beside its start."""
        return self.config.flow_steps - 1

    def draw_noise(self, batch_size: int, generator: torch.Generator) -> QAMNoise:
        """Draw the noise of one update on the generator's device."""
        rows, width = min(batch_size, self.config.adjoint_rows), self.chunk_width
        return QAMNoise(
            next_action=self.draw_action_noise(batch_size, generator),
            flow_start=draw_normal(generator, batch_size, width),
            flow_time=draw_uniform(generator, batch_size, 1),
            rollout_start=draw_normal(generator, rows, width),
            rollout=draw_normal(generator, self.path_draws(), rows, width),
        )

    def policy(self, s: Tensor, noise: Tensor) -> Tensor:
        """Clipped n Euler steps of the tuned flow."""
        return flow.sample(self.tuned_field(s), noise, self.config.flow_steps)

    def tuned_field(self, s: Tensor) -> Field:
        """f_theta bound to s: the net itself, or the net on top of the behaviour field."""
        fast = velocity_field(self.trained, "fast", s)
        return fast if self.tuned == "direct" else flow.added(fast, self.base_field(s))

    def deployment(self) -> Deployment:
        """The tuned flow."""
        return best_of(self.config, self._tuned_flow())

    def _tuned_flow(self) -> FlowPolicy:
        base = None if self.tuned == "direct" else self.base
        return FlowPolicy("fast", self.config.flow_steps, base)

    def base_field(self, s: Tensor) -> Field:
        """f_beta bound to s, constant."""
        return velocity_field(self.constant, self.base, s)


class AdjointAgent(FlowPairAgent[C]):
    """Adjoint matching of the tuned flow, put together from the class's parts.

    Attributes:
        parts: path, adjoint, temperature and head.
        judge: critic whose gradient is the terminal adjoint.
    """

    parts: ClassVar[Parts]
    judge: ClassVar[Literal["target_critic", "critic"]] = "target_critic"

    def __init__(self, config: C, parameters: Params, normaliser: Normaliser) -> None:
        """As Agent; the trust region, where there is one, starts at its first state."""
        super().__init__(config, parameters, normaliser)
        like = next(iter(parameters.values()))
        self.dual = self.parts.temperature.initial(config, like)

    @classmethod
    def draw_nets(
        cls, config: C, observation_size: int, width: int, generator: torch.Generator
    ) -> Params:
        """Critic, both flows and the head's nets."""
        params = super().draw_nets(config, observation_size, width, generator)
        head = cls.parts.head.draw_nets(config, observation_size, width, generator)
        return params | head

    def improvement(
        self, s: Tensor, a: Tensor, noise: QAMNoise, weight: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Adjoint matching and penalty on the first M rows, the head on all."""
        rows = noise.rollout_start.shape[0]
        path, g, v_beta, metrics = self.adjoint_targets(s[:rows], noise)
        v_theta = self.tuned_field(s[:rows])(path.states, path.times)
        loss, more = self._matching(path, v_theta, v_beta, g, weight[:rows])
        head_loss, head_metrics = self.parts.head.loss(
            self.config, self.head_nets(), s, noise.head, weight
        )
        penalty, penalty_metrics = self.parts.penalty(
            self.config, self.trained, s[:rows], a[:rows], path.end, weight[:rows]
        )
        metrics = metrics | more | head_metrics | penalty_metrics
        return loss + head_loss + penalty, metrics

    def _matching(
        self, path: Path, v_theta: Tensor, v_beta: Tensor, g: Tensor, rows: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Regression of f_theta on the adjoints, weighted by the trust region's lambda.

        Path KL and cost are measured on all M rows, also where rows (M,) weighs some with 0.
        """
        sigma = adjoint.memoryless_sigma(path.times, path.step)
        periods = self.config.chunk
        with torch.no_grad():
            shares = adjoint.path_kl_shares(v_theta, v_beta, sigma, path.step) / periods
        more = {"dual/kl_estimate": shares.sum(), "dual/kl_inner": shares[:-1].sum()}
        if self.dual is not None:
            with torch.no_grad():
                cost = adjoint.adjoint_cost(g, sigma, path.step) / periods
                weight = self.parts.temperature.weight(self.config, self.dual, cost)
            sigma = sigma / weight.sqrt()
            more |= {"dual/cost": cost, "dual/lambda_in_loss": weight}
        loss, metrics = adjoint.matching_loss(v_theta, v_beta, g, sigma, rows)
        return loss, metrics | more

    @torch.no_grad()
    def adjoint_targets(
        self, s: Tensor, noise: QAMNoise
    ) -> tuple[Path, Tensor, Tensor, Metrics]:
        """Roll out the tuned flow and carry the critic's gradient back along the path.

        Args:
            s: (M, O), normalised.
            noise: draws of this update.

        Returns:
            the path, adjoints g_k and behaviour velocities f_beta(a_k, t_k), each (K, M, D); and
            metrics.
        """
        parts, config = self.parts, self.config
        f_beta = self.base_field(s)
        path = parts.path.path(
            self.tuned_field(s),
            f_beta,
            noise.rollout_start,
            noise.rollout,
            config.flow_steps,
        )
        gradient = critic.action_gradient(
            lambda a: critic.ensemble(self.constant, self.judge, s, a),
            path.end,
            config.action_clip,
        )
        g_1 = -parts.temperature.pull(config) * gradient
        g = parts.adjoint(
            parts.path,
            lambda a, t: velocity_pullback(self.constant, self.base, s, a, t),
            path,
            g_1,
        )
        metrics = adjoint.terminal_metrics(g_1)
        return path, g, f_beta(path.states, path.times), metrics

    def adapt(self, metrics: Metrics) -> Metrics:
        """Move the trust region's multiplier after the step."""
        if self.dual is None:
            return {}
        temperature = self.parts.temperature
        kl, cost = metrics["dual/kl_estimate"], metrics["dual/cost"]
        moved = temperature.advance(self.config, self.dual, kl, cost)
        for name, value in vars(self.dual).items():
            value.copy_(getattr(moved, name))
        return {
            "dual/lambda": temperature.weight(self.config, self.dual, cost),
            "dual/multiplier": self.dual.multiplier.clone(),
            "dual/kl_average": self.dual.kl.clone(),
            "dual/budget": torch.full_like(kl, temperature.budget(self.config)),
        }

    def aim_at(self, budget: float) -> None:
        """Give the trust region another budget; its state goes on."""
        if self.dual is None:
            super().aim_at(budget)
        self.config = self.parts.temperature.aimed_at(self.config, budget)

    def path_draws(self) -> int:
        """As the path takes them."""
        return self.parts.path.draws(self.config)

    def draw_noise(self, batch_size: int, generator: torch.Generator) -> QAMNoise:
        """Draw the noise of one update, the head's included."""
        drawn = super().draw_noise(batch_size, generator)
        head = self.parts.head.draw_noise(batch_size, self.chunk_width, generator)
        return QAMNoise(**{**vars(drawn), "head": head})

    def policy(self, s: Tensor, noise: Tensor) -> Tensor:
        """The head's action."""
        return self.parts.head.act(self.config, self.head_nets(), s, noise)[0]

    def deployment(self) -> Deployment:
        """The head on top of the tuned flow."""
        head = self.parts.head.deployment(self.config, self._tuned_flow())
        return best_of(self.config, head)

    @property
    def noise_width(self) -> int:
        """As the head takes it."""
        return self.parts.head.noise_width(self.chunk_width)

    def head_nets(self) -> HeadNets:
        """What the head may read; the flow's action carries no gradient."""

        @torch.no_grad()
        def sample(s: Tensor, z: Tensor) -> Tensor:
            return flow.sample(self.tuned_field(s), z, self.config.flow_steps)

        return HeadNets(self.trained, self.constant, sample)

    def state_dict(self) -> Params:
        """As Agent, with the trust region's state."""
        return super().state_dict() | self._dual_state()

    def _dual_state(self) -> Params:
        if self.dual is None:
            return {}
        return {f"dual/{name}": value for name, value in vars(self.dual).items()}
