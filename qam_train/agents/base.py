# SPDX-License-Identifier: Apache-2.0
"""What every method does alike: own parameters, moving averages and one joint Adam step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor

from qam_ros.contract.errors import ConfigError
from qam_train import critic
from qam_train.agents.common import (
    Normaliser,
    copy_net,
    draw_normal,
    load_named,
)
from qam_train.config import MethodConfig
from qam_train.data.dataset import ChunkBatch
from qam_train.data.sampling import Sampler, Source, UniformChunks
from qam_train.deployment import Deployment
from qam_train.networks import Params, depth, detached, init_mlp, net
from qam_train.optimizer import JointAdam, lagged_average

C = TypeVar("C", bound=MethodConfig)
N = TypeVar("N")
Metrics = dict[str, Tensor]


class Agent(ABC, Generic[C, N]):
    """Parameters, targets and optimiser of one method; C its settings, N its noise.

    A method says which nets it draws (draw_nets), what it minimises (loss), which random numbers
    that takes (draw_noise) and how it acts (policy). Time, noise and networks are arguments of pure
    functions; only update() changes anything.

    Attributes:
        algorithm: name of the method.
        settings: class of its numbers.
        averages: net that is a moving average -> net it follows.
        policy_net: the net whose output is an action chunk.
        behaviour_nets: nets that a cloned behaviour flow is copied into, averages included.
        cloned_net: the net that learns nothing but to clone the data; None where there is none.
    """

    algorithm: ClassVar[str]
    settings: ClassVar[type[MethodConfig]]
    averages: ClassVar[Mapping[str, str]] = {"target_critic": "critic"}
    policy_net: ClassVar[str]
    behaviour_nets: ClassVar[tuple[str, ...]] = ()
    cloned_net: ClassVar[str | None] = None

    def __init__(self, config: C, parameters: Params, normaliser: Normaliser) -> None:
        """Take over parameters; init() draws fresh ones.

        Args:
            config: the method's numbers.
            parameters: tensors of all nets, kept and updated in place.
            normaliser: frozen observation statistics.
        """
        self.config = config
        self.normaliser = normaliser
        self.targets = {
            name: value
            for name, value in parameters.items()
            if name.partition("/")[0] in self.averages
        }
        self.trained = {
            name: value.requires_grad_()
            for name, value in parameters.items()
            if name not in self.targets
        }
        self.parameters = {**self.trained, **self.targets}
        self.constant = {**detached(self.trained), **self.targets}
        self._followed = [self.constant[self._online_name(n)] for n in self.targets]
        self.optimizer = JointAdam(self.trained, config.clip_norm)

    @classmethod
    def init(
        cls,
        config: C,
        observation_size: int,
        action_size: int,
        generator: torch.Generator,
        normaliser: Normaliser | None = None,
    ) -> Self:
        """Draw all nets independently; targets start equal to their online nets.

        Args:
            config: the method's numbers.
            observation_size: O.
            action_size: A, of one action.
            generator: source of the draws; its device is the agent's device.
            normaliser: observation statistics; None: identity.
        """
        width = config.chunk * action_size
        parameters = cls.draw_nets(config, observation_size, width, generator)
        for target, online in cls.averages.items():
            parameters |= copy_net(parameters, online, target)
        return cls(
            config,
            parameters,
            normaliser or Normaliser.identity(observation_size, generator.device),
        )

    @classmethod
    @abstractmethod
    def draw_nets(
        cls, config: C, observation_size: int, width: int, generator: torch.Generator
    ) -> Params:
        """Fresh tensors of every trained net; width is D = H*A."""

    @abstractmethod
    def loss(self, batch: ChunkBatch, noise: N) -> tuple[Tensor, Metrics]:
        """Sum of all losses; each trains its own nets only."""

    @abstractmethod
    def draw_noise(self, batch_size: int, generator: torch.Generator) -> N:
        """Draw the noise of one update on the generator's device."""

    @abstractmethod
    def policy(self, s: Tensor, noise: Tensor) -> Tensor:
        """Flat action chunks (..., B, D) in [-1, 1] for normalised s (B, O)."""

    @abstractmethod
    def deployment(self) -> Deployment:
        """What act() computes, as the policy graph needs to know it."""

    def update(
        self,
        batch: ChunkBatch,
        noise: N,
        learning_rate: float | Tensor | None = None,
    ) -> Metrics:
        """One step of all nets together; returns metrics.

        What lasts from one update to the next is changed in place and nothing is read back to the
        host, so that updates can be recorded and replayed on a device (captured.py).

        Args:
            batch: B chunks.
            noise: draws of this update, see draw_noise.
            learning_rate: of this step; None: the configured one.
        """
        loss, metrics = self.loss(batch, noise)
        gradients = torch.autograd.grad(loss, list(self.trained.values()))
        self.follow()
        rate = self.config.lr if learning_rate is None else learning_rate
        return metrics | self.optimizer.step(gradients, rate) | self.adapt(metrics)

    def follow(self) -> None:
        """Move the targets, before the step: they lag by one update (official code)."""
        if self.targets:
            lagged_average(list(self.targets.values()), self._followed, self.config.ema)

    def adapt(self, metrics: Metrics) -> Metrics:  # noqa: ARG002
        """Change what is not learnt by gradient, after the step; returns more metrics."""
        return {}

    def sampler(self, *, pad_terminated: bool = False) -> Sampler:
        """How the method draws its chunks."""
        config = self.config
        return UniformChunks(config.return_steps, config.discount, pad_terminated)

    def draw_batch(
        self,
        source: Source,
        generator: torch.Generator,
        *,
        pad_terminated: bool = False,
    ) -> ChunkBatch:
        """Batch of one update.

        Args:
            source: dataset or replay.
            generator: source of the draws, on the rows' device.
            pad_terminated: keep chunks that cross a terminated end, see FlatDataset.sample.

        Raises:
            DatasetError: there are not enough rows.
        """
        sampler = self.sampler(pad_terminated=pad_terminated)
        return source.draw(sampler, self.config.batch_size, generator)

    @torch.no_grad()
    def warm_start(self, flow: Params) -> None:
        """Start from a cloned flow: copy it into behaviour_nets.

        The averages equal their nets again, and the optimiser's moments are forgotten.

        Args:
            flow: tensors of the net 'slow' of a FlowBCAgent.

        Raises:
            ConfigError: the method has no such nets, or nets of other sizes.
        """
        if not self.behaviour_nets:
            raise ConfigError(
                f"method '{self.algorithm}' has no behaviour flow; leave the behaviour stage out"
            )
        for name in self.behaviour_nets:
            load_named(net(self.constant, name), copy_net(flow, "slow", name))
        for target, online in zip(self.targets.values(), self._followed, strict=True):
            target.copy_(online)
        self.optimizer = JointAdam(self.trained, self.config.clip_norm)

    def aim_at(self, budget: float) -> None:
        """Give the trust region another budget [nats per control period].

        Raises:
            ConfigError: the method has no trust region, or the budget is not positive.
        """
        raise ConfigError(
            f"method '{self.algorithm}' has no trust region to give a budget of {budget}; leave "
            "budget out, or train trqam or sqam"
        )

    def explore(self, observations: Tensor, noise: Tensor) -> Tensor:
        """As act(), while rows are collected for training."""
        return self.act(observations, noise)

    @torch.no_grad()
    def act(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Action chunks in [-1, 1].

        Args:
            observations: (B, O), raw.
            noise: (B, W), see noise_width; with N candidates in front, (N, B, W), the best of N.

        Returns:
            (B, H, A).
        """
        chunk = self.choose(self.normaliser(observations), noise)
        return chunk.unflatten(-1, (self.config.chunk, -1))

    def choose(self, s: Tensor, noise: Tensor) -> Tensor:
        """Flat chunk (B, D) of the policy; of N > 1 candidates the one with the highest rank."""
        a = self.policy(s, noise)
        if a.dim() == 2:
            return a
        return a[0] if a.shape[0] == 1 else critic.best_of(self.rank(s, a), a)

    def rank(self, s: Tensor, candidates: Tensor) -> Tensor:
        """Values (N, B) by which candidates (N, B, D) are chosen."""
        count, rows, _ = candidates.shape
        repeated = s.expand(count, *s.shape).flatten(0, 1)
        values = self.values(
            self.constant, "critic", repeated, candidates.flatten(0, 1)
        )
        return self.score(values).unflatten(-1, (count, rows))

    def score(self, values: Tensor) -> Tensor:
        """What candidates are ranked by: the ensemble's mean, (E, B) -> (B,)."""
        return values.mean(0)

    def values(self, params: Params, prefix: str, s: Tensor, a: Tensor) -> Tensor:
        """Values (E, B) of chunks (B, D) by a critic of the method."""
        return critic.ensemble(params, prefix, s, a)

    @property
    def noise_width(self) -> int:
        """W, numbers of noise per action chunk."""
        return self.chunk_width

    def draw_action_noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Noise of act(): (rows, W), or (N, rows, W) for a method that takes the best of N."""
        candidates = getattr(self.config, "best_of", 1)
        lead = () if candidates == 1 else (candidates,)
        return draw_normal(generator, *lead, rows, self.noise_width)

    @property
    def chunk_width(self) -> int:
        """D = H*A, numbers in a chunk."""
        last = depth(self.parameters, self.policy_net) - 1
        return self.parameters[f"{self.policy_net}/{last}/bias"].shape[-1]

    def inputs(self, batch: ChunkBatch) -> tuple[Tensor, Tensor]:
        """Normalised observations (B, O) and the chunks the method acts with, flat (B, D)."""
        s = self.normaliser(batch.observations)
        return s, batch.actions[:, : self.config.chunk].flatten(1)

    @torch.no_grad()
    def bootstrap_target(self, batch: ChunkBatch, a_next: Tensor) -> Tensor:
        """Critic target (B,) at given actions (B, D) for the next observation."""
        s_next = self.normaliser(batch.next_observations)
        q_next = self.values(self.targets, "target_critic", s_next, a_next)
        return critic.td_target(
            q_next, batch.rewards, batch.masks, self.chunk_discount, self.config.rho
        )

    def critic_loss(
        self, batch: ChunkBatch, next_noise: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Loss of the ensemble with the method's own policy at the next observation."""
        a_next = self.next_action(batch, next_noise)
        s, a = self.inputs(batch)
        q = self.values(self.trained, "critic", s, a)
        return critic.td_loss(q, self.bootstrap_target(batch, a_next), batch.valid)

    @torch.no_grad()
    def next_action(self, batch: ChunkBatch, noise: Tensor) -> Tensor:
        """Flat chunk (B, D) of the policy at the next observation."""
        return self.choose(self.normaliser(batch.next_observations), noise)

    @property
    def chunk_discount(self) -> float:
        """gamma^h, the discount over the return's steps."""
        return self.config.discount**self.config.return_steps

    def actor_parameters(self) -> Params:
        """Tensors of the policy's net, named 'actor/layer/kind', copied."""
        return copy_net(self.constant, self.policy_net, "actor")

    def state_dict(self) -> Params:
        """Everything that training continues from: nets, targets, statistics, optimiser."""
        state = {f"parameters/{n}": v.detach() for n, v in self.parameters.items()}
        state |= {f"optimizer/{n}": v for n, v in self.optimizer.state().items()}
        return state | self.normaliser.state()

    def load_state_dict(self, state: Params) -> None:
        """Copy a state_dict() back in place.

        Raises:
            ConfigError: a tensor is missing or has another shape.
        """
        load_named(self.state_dict(), state)

    def _online_name(self, name: str) -> str:
        target, _, rest = name.partition("/")
        return f"{self.averages[target]}/{rest}"


def spread(name: str, values: Tensor) -> Metrics:
    """Mean, largest and smallest of some values, as metrics."""
    return {
        f"{name}_mean": values.mean(),
        f"{name}_max": values.amax(),
        f"{name}_min": values.amin(),
    }


def draw_critic(
    config: MethodConfig, inputs: int, generator: torch.Generator, name: str = "critic"
) -> Params:
    """Fresh critic ensemble over an input of the given width."""
    return init_mlp(
        name,
        (inputs, *config.critic.widths, 1),
        generator,
        members=config.critics,
        layer_norm=config.critic.layer_norm,
    )


def draw_value(
    config: MethodConfig, observation_size: int, generator: torch.Generator
) -> Params:
    """Fresh state value net 'value', no ensemble."""
    return init_mlp(
        "value",
        (observation_size, *config.critic.widths, 1),
        generator,
        layer_norm=config.critic.layer_norm,
    )


def draw_flow(
    config: MethodConfig,
    name: str,
    observation_size: int,
    width: int,
    generator: torch.Generator,
) -> Params:
    """Fresh velocity net f(s, a, t)."""
    return init_mlp(
        name,
        (observation_size + width + 1, *config.actor.widths, width),
        generator,
        layer_norm=config.actor.layer_norm,
    )
