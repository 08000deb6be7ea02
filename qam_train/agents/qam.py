# SPDX-License-Identifier: Apache-2.0
"""QAM: Q-learning with adjoint matching (arXiv 2601.14234).

Four nets: critic ensemble 'critic', behaviour flow 'slow' (f_beta), tuned flow 'fast' (f_theta), and
moving averages 'target_critic', 'target_slow'. One joint Adam step per update. Notation: s
observation, a action chunk (B, D) with D = H*A, g lean adjoint, tau inverse temperature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qam_train import adjoint, critic, flow
from qam_train.agents.common import (
    Normaliser,
    copy_net,
    draw_normal,
    draw_uniform,
    load_named,
)
from qam_train.config import AgentConfig
from qam_train.data.dataset import ChunkBatch
from qam_train.networks import Params, init_mlp, net, velocity_field, velocity_pullback
from qam_train.optimizer import JointAdam, lagged_average

TARGETS = {"target_critic": "critic", "target_slow": "slow"}


@dataclass(frozen=True)
class QAMNoise:
    """Every random number of one update; n flow steps, B rows, M rows for adjoint matching.

    Args:
        next_action: (B, D), normal; start of the policy's flow at the next observation.
        flow_start: (B, D), normal; start of the behaviour path.
        flow_time: (B, 1), uniform on [0, 1); time on the behaviour path.
        rollout_start: (M, D), normal; start of the memoryless rollout.
        rollout: (n-1, M, D), normal; its step noise.
    """

    next_action: Tensor
    flow_start: Tensor
    flow_time: Tensor
    rollout_start: Tensor
    rollout: Tensor


class QAMAgent:
    """Parameters, targets and optimiser of one QAM agent."""

    algorithm = "qam"

    def __init__(
        self, config: AgentConfig, parameters: Params, normaliser: Normaliser
    ) -> None:
        """Take over parameters; init() draws fresh ones.

        Args:
            config: the agent's numbers.
            parameters: tensors of all five nets, kept and updated in place.
            normaliser: frozen observation statistics.
        """
        self.config = config
        self.normaliser = normaliser
        self.targets = {
            name: value
            for name, value in parameters.items()
            if name.startswith("target_")
        }
        self.trained = {
            name: value.requires_grad_()
            for name, value in parameters.items()
            if name not in self.targets
        }
        self.parameters = {**self.trained, **self.targets}
        self._followed = [
            self.trained[_online_name(name)].detach() for name in self.targets
        ]
        self.optimizer = JointAdam(self.trained, config.clip_norm)

    @classmethod
    def init(
        cls,
        config: AgentConfig,
        observation_size: int,
        action_size: int,
        generator: torch.Generator,
        normaliser: Normaliser | None = None,
    ) -> QAMAgent:
        """Draw all nets independently; targets start equal to their online nets.

        Args:
            config: the agent's numbers.
            observation_size: O.
            action_size: A, of one action.
            generator: source of the draws; its device is the agent's device.
            normaliser: observation statistics; None: identity.
        """
        width = config.chunk * action_size
        actor_sizes = (observation_size + width + 1, *config.actor.widths, width)
        critic_sizes = (observation_size + width, *config.critic.widths, 1)
        norm = config.actor.layer_norm
        parameters = init_mlp(
            "critic",
            critic_sizes,
            generator,
            members=config.critics,
            layer_norm=config.critic.layer_norm,
        )
        parameters |= init_mlp("slow", actor_sizes, generator, layer_norm=norm)
        parameters |= init_mlp("fast", actor_sizes, generator, layer_norm=norm)
        for target, online in TARGETS.items():
            parameters |= copy_net(parameters, online, target)
        return cls(
            config,
            parameters,
            normaliser or Normaliser.identity(observation_size, generator.device),
        )

    def update(
        self, batch: ChunkBatch, noise: QAMNoise, learning_rate: float | None = None
    ) -> dict[str, Tensor]:
        """One step of critic, behaviour flow and tuned flow together; returns metrics.

        Args:
            batch: B chunks.
            noise: draws of this update, see draw_noise.
            learning_rate: of this step; None: the configured one.
        """
        loss, metrics = self.loss(batch, noise)
        gradients = torch.autograd.grad(loss, list(self.trained.values()))
        lagged_average(list(self.targets.values()), self._followed, self.config.ema)
        rate = self.config.lr if learning_rate is None else learning_rate
        return metrics | self.optimizer.step(gradients, rate)

    def loss(
        self, batch: ChunkBatch, noise: QAMNoise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of critic, behaviour-flow and adjoint-matching loss; each trains its own net only."""
        s = self.normaliser(batch.observations)
        a = batch.actions[:, : self.config.chunk].flatten(1)  # (B, D)

        q = critic.ensemble(self.trained, "critic", s, a)
        y = self.bootstrap_target(batch, noise.next_action)
        critic_loss, metrics = critic.td_loss(q, y, batch.valid)

        slow = velocity_field(self.trained, "slow", s)
        flow_loss, flow_metrics = flow.flow_matching_loss(
            slow, a, noise.flow_start, noise.flow_time, batch.valid
        )

        s = s[: noise.rollout_start.shape[0]]
        (states, g, v_beta), adjoint_metrics = self.adjoint_targets(s, noise)
        t = adjoint.step_times(self.config.flow_steps, states)
        v_theta = velocity_field(self.trained, "fast", s)(states, t)
        matching_loss, matching_metrics = adjoint.matching_loss(v_theta, v_beta, g)

        loss = critic_loss + flow_loss + matching_loss
        metrics = metrics | flow_metrics | adjoint_metrics | matching_metrics
        return loss, {"loss": loss.detach(), **metrics}

    @torch.no_grad()
    def bootstrap_target(self, batch: ChunkBatch, noise: Tensor) -> Tensor:
        """Critic target (B,) at the tuned flow's clipped action for the next observation."""
        config = self.config
        s_next = self.normaliser(batch.next_observations)
        a_next = self._sample("fast", s_next, noise)
        q_next = critic.ensemble(self.targets, "target_critic", s_next, a_next)
        discount = config.discount**config.return_steps
        return critic.td_target(
            q_next, batch.rewards, batch.masks, discount, config.rho
        )

    @torch.no_grad()
    def adjoint_targets(
        self, s: Tensor, noise: QAMNoise
    ) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Tensor]]:
        """Roll out the tuned flow and pull the critic's gradient back along it.

        Args:
            s: (M, O), normalised.
            noise: draws of this update.

        Returns:
            states a_k, lean adjoints g_k and behaviour velocities f_beta(a_k, t_k), each (n, M, D);
            and metrics.
        """
        config, n = self.config, self.config.flow_steps
        f_theta = velocity_field(self.trained, "fast", s)
        f_beta = velocity_field(self.targets, "target_slow", s)
        states, a_1 = adjoint.rollout(
            f_theta, f_beta, noise.rollout_start, noise.rollout
        )
        gradient = critic.action_gradient(
            lambda a: critic.ensemble(self.targets, "target_critic", s, a),
            a_1,
            config.action_clip,
        )
        g_1 = -config.tau * gradient
        t = adjoint.step_times(n, states)
        pullback = velocity_pullback(
            self.targets, "target_slow", s, states, t + 1.0 / n
        )
        g = adjoint.lean_adjoint(pullback, g_1, n)
        return (states, g, f_beta(states, t)), adjoint.terminal_metrics(g_1)

    def draw_noise(self, batch_size: int, generator: torch.Generator) -> QAMNoise:
        """Draw the noise of one update on the generator's device."""
        rows = min(batch_size, self.config.adjoint_rows)
        width, steps = self.chunk_width, self.config.flow_steps
        return QAMNoise(
            next_action=draw_normal(generator, batch_size, width),
            flow_start=draw_normal(generator, batch_size, width),
            flow_time=draw_uniform(generator, batch_size, 1),
            rollout_start=draw_normal(generator, rows, width),
            rollout=draw_normal(generator, steps - 1, rows, width),
        )

    @torch.no_grad()
    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Action chunks of the tuned flow, clipped to [-1, 1].

        Args:
            observations: (B, O), raw.
            noise: (B, D), standard normal.

        Returns:
            (B, H, A).
        """
        chunk = self._sample("fast", self.normaliser(observations), noise)
        return chunk.unflatten(-1, (self.config.chunk, -1))

    def _sample(self, prefix: str, s: Tensor, noise: Tensor) -> Tensor:
        a = flow.integrate(
            velocity_field(self.trained, prefix, s), noise, self.config.flow_steps
        )
        return a.clamp(-1.0, 1.0)

    @property
    def chunk_width(self) -> int:
        """D = H*A, numbers in a chunk."""
        return self.trained["fast/0/weight"].shape[0] - self.normaliser.size - 1

    @torch.no_grad()
    def warm_start(self, behaviour: Params) -> None:
        """Start adjoint matching from a cloned behaviour flow.

        Copies it to slow and fast, sets the targets equal to the online nets and forgets the
        optimiser's moments.

        Args:
            behaviour: tensors of the net 'slow'.
        """
        for name, value in net(behaviour, "slow").items():
            self.trained[name].copy_(value)
            self.trained[name.replace("slow", "fast", 1)].copy_(value)
        for target, online in zip(self.targets.values(), self._followed, strict=True):
            target.copy_(online)
        self.optimizer = JointAdam(self.trained, self.config.clip_norm)

    def actor_parameters(self) -> Params:
        """Tensors of the deployed velocity net, named 'actor/layer/kind' (detached, not copied)."""
        return {
            name: value.detach()
            for name, value in copy_net(self.trained, "fast", "actor").items()
        }

    def state_dict(self) -> Params:
        """Everything that training continues from: nets, targets, statistics, optimiser."""
        state = {
            f"parameters/{name}": value.detach()
            for name, value in self.parameters.items()
        }
        state |= {
            f"optimizer/{name}": value for name, value in self.optimizer.state().items()
        }
        return state | self.normaliser.state()

    def load_state_dict(self, state: Params) -> None:
        """Copy a state_dict() back in place.

        Raises:
            ConfigError: a tensor is missing or has another shape.
        """
        load_named(self.state_dict(), state)


def _online_name(name: str) -> str:
    target, _, rest = name.partition("/")
    return f"{TARGETS[target]}/{rest}"
