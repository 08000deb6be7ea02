# SPDX-License-Identifier: Apache-2.0
"""What agents act with, as data: which nets, how many steps, which numbers; nothing learnt.

An agent's deployment() says it in one of these classes, and qam_train.graphs writes the graph of each.
Nets are named by the first part of their tensors' names ('fast' for 'fast/0/weight'). D = H*A numbers
in a chunk. Every graph takes standard normal noise of a fixed width, so that a robot draws the same
way whatever it runs: a deterministic policy takes D numbers that enter with weight 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

Score = Literal["mean", "min"]


class _Drawn:
    """Draws one number of noise per number of the chunk."""

    def noise_width(self, width: int) -> int:
        """Numbers of noise per chunk of D numbers."""
        return width


class _OneNet(_Drawn):
    """Reads one net."""

    net: str

    @property
    def nets(self) -> tuple[str, ...]:
        """Nets it reads."""
        return (self.net,)


@dataclass(frozen=True)
class FlowPolicy(_Drawn):
    """clip(n Euler steps from noise).

    Args:
        net: velocity net f(s, a, t).
        steps: n.
        base: velocity net that is added to it; None: none.
    """

    head: ClassVar[str] = "flow"
    net: str
    steps: int
    base: str | None = None

    @property
    def nets(self) -> tuple[str, ...]:
        """Nets it reads."""
        return (self.net,) if self.base is None else (self.net, self.base)


@dataclass(frozen=True)
class OneStep(_OneNet):
    """clip(pi(s, z)).

    Args:
        net: actor pi(s, z).
    """

    head: ClassVar[str] = "one_step"
    steps: ClassVar[int] = 1
    net: str


@dataclass(frozen=True)
class GaussianActor(_OneNet):
    """e = tanh(mean(s) + std(s) z).

    Args:
        net: trunk, mean and log_std of u = atanh(e).
    """

    head: ClassVar[str] = "gaussian"
    steps: ClassVar[int] = 1
    net: str


@dataclass(frozen=True)
class DeterministicActor(_OneNet):
    """clip(tanh(mlp(s)) + clip(noise z, -noise_clip, noise_clip)).

    Args:
        net: actor of s.
        noise: standard deviation of what is added; 0: nothing, z is read and multiplied by 0.
        noise_clip: bound of what is added.
    """

    head: ClassVar[str] = "deterministic"
    steps: ClassVar[int] = 1
    net: str
    noise: float
    noise_clip: float


@dataclass(frozen=True)
class EditedFlow:
    """clip(a + scale e) with a the flow's action and e a Gaussian actor of (s, a).

    Args:
        flow: the flow.
        edit: trunk, mean and log_std of the edit.
        scale: c.
    """

    head: ClassVar[str] = "edited_flow"
    flow: FlowPolicy
    edit: str
    scale: float

    @property
    def steps(self) -> int:
        """Steps of the flow."""
        return self.flow.steps

    @property
    def nets(self) -> tuple[str, ...]:
        """Nets it reads."""
        return (*self.flow.nets, self.edit)

    def noise_width(self, width: int) -> int:
        """Start of the flow, then the normal of the edit, 2 D."""
        return 2 * width


@dataclass(frozen=True)
class NoisePolicyFlow(_Drawn):
    """A flow started from scale e, e a Gaussian actor of s.

    Args:
        flow: the flow.
        actor: trunk, mean and log_std of the start.
        scale: half width of the box of starts.
    """

    head: ClassVar[str] = "noise_policy_flow"
    flow: FlowPolicy
    actor: str
    scale: float

    @property
    def steps(self) -> int:
        """Steps of the flow."""
        return self.flow.steps

    @property
    def nets(self) -> tuple[str, ...]:
        """Nets it reads."""
        return (*self.flow.nets, self.actor)


@dataclass(frozen=True)
class GuidedFlow(_Drawn):
    """clip(n steps of v + theta [tau (1 - t) grad_a mean_k Q_k(s, a, t') + a] / t); the first of v alone.

    Args:
        flow: v.
        critic: ensemble Q_k(s, a, t'), with time.
        weight: theta.
        tau: inverse temperature.
        told: t' at each of the n steps.
    """

    head: ClassVar[str] = "guided_flow"
    flow: FlowPolicy
    critic: str
    weight: float
    tau: float
    told: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Steps of the flow."""
        return self.flow.steps

    @property
    def nets(self) -> tuple[str, ...]:
        """Nets it reads."""
        return (*self.flow.nets, self.critic)


@dataclass(frozen=True)
class ReverseDiffusion(_OneNet):
    """K reverse steps from noise, as qam_train.diffusion.

    Args:
        net: noise predictor with its nets fourier, time and noise.
        sampler: 'posterior' (posterior_sample) or 'jump' (jump_sample).
        betas, alphas, alpha_hats: the schedule, entries 0 .. K.
    """

    head: ClassVar[str] = "diffusion"
    net: str
    sampler: Literal["posterior", "jump"]
    betas: tuple[float, ...]
    alphas: tuple[float, ...]
    alpha_hats: tuple[float, ...]

    @property
    def steps(self) -> int:
        """K."""
        return len(self.betas) - 1

    def noise_width(self, width: int) -> int:
        """Start, then the steps' noises, (K+1) D."""
        return (self.steps + 1) * width


Single = (
    FlowPolicy
    | OneStep
    | GaussianActor
    | DeterministicActor
    | EditedFlow
    | NoisePolicyFlow
    | GuidedFlow
    | ReverseDiffusion
)


@dataclass(frozen=True)
class BestOf:
    """Of N draws of a policy the one with the highest score of a critic ensemble.

    Args:
        policy: what draws.
        candidates: N.
        critic: ensemble Q_k(s, a).
        score: over the ensemble.
        told: time the critic is told, for one that takes time; None: it takes none.
    """

    policy: Single
    candidates: int
    critic: str
    score: Score = "mean"
    told: float | None = None

    @property
    def head(self) -> str:
        """That of the policy, marked."""
        return f"best_of_{self.policy.head}"

    @property
    def steps(self) -> int:
        """Steps of the policy."""
        return self.policy.steps

    @property
    def nets(self) -> tuple[str, ...]:
        """Nets it reads."""
        return tuple(dict.fromkeys((*self.policy.nets, self.critic)))

    def noise_width(self, width: int) -> int:
        """Noise of every candidate, one behind the other."""
        return self.candidates * self.policy.noise_width(width)


Deployment = Single | BestOf


def best_of(
    config: Any,
    policy: Single,
    critic: str = "critic",
    score: Score = "mean",
    told: float | None = None,
) -> Deployment:
    """The policy, or the best of as many of it as the settings' `best_of` says; see BestOf."""
    if config.best_of == 1:
        return policy
    return BestOf(policy, config.best_of, critic, score, told)
