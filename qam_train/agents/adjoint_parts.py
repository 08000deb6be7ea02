# SPDX-License-Identifier: Apache-2.0
"""The parts an adjoint-matching method is put together from.

path x adjoint x temperature x head x penalty: each part is a small stateless object, chosen by the
method's class (`parts`). Notation as in qam_train/adjoint.py; s observation (M, O), a_1 end point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from qam_train import adjoint, critic, dual, flow
from qam_train.agents.heads import Head, NoHead
from qam_train.networks import Field, Params, Pullback

Metrics = dict[str, Tensor]
Linearise = Callable[[Tensor, Tensor], Pullback]  # states (K, M, D), times -> pullback


@dataclass(frozen=True)
class Path:
    """Where the tuned flow is regressed, K states per row.

    Args:
        states: (K, M, D).
        times: (K, 1, 1).
        end: (M, D), unclipped end point a_1.
        step: time between two states, 1 / K.
    """

    states: Tensor
    times: Tensor
    end: Tensor
    step: float


class PathPart(Protocol):
    """Draws the path and knows the lean adjoint along it."""

    def draws(self, config: Any) -> int:
        """Noises (M, D) it takes beside the start."""

    def path(
        self, f_theta: Field, f_beta: Field, start: Tensor, noise: Tensor, n: int
    ) -> Path:
        """States, times and end point, without gradient."""

    def lean(self, linearise: Linearise, path: Path, g_1: Tensor) -> Tensor:
        """Lean adjoint (K, M, D) at the path's states."""


class MemorylessPath:
    """Memoryless SDE rollout of the tuned flow (QAM, TRQAM); times 0 .. 1 - h."""

    def draws(self, config: Any) -> int:
        """One per step but the last, which is deterministic."""
        return int(config.flow_steps) - 1

    def path(
        self,
        f_theta: Field,
        f_beta: Field,
        start: Tensor,
        noise: Tensor,
        n: int,
    ) -> Path:
        """adjoint.rollout."""
        states, end = adjoint.rollout(f_theta, f_beta, start, noise)
        return Path(states, adjoint.step_times(n, states), end, 1.0 / n)

    def lean(self, linearise: Linearise, path: Path, g_1: Tensor) -> Tensor:
        """State of step k, time t_k + h (official code)."""
        pullback = linearise(path.states, path.times + path.step)
        return adjoint.lean_adjoint(pullback, g_1, path.states.shape[0])


class BridgePath:
    """Bridge states to the end of one ODE rollout of the tuned flow (SQAM); times h .. 1."""

    def draws(self, config: Any) -> int:
        """One per bridge state."""
        return int(config.bridges)

    def path(
        self,
        f_theta: Field,
        f_beta: Field,  # noqa: ARG002
        start: Tensor,
        noise: Tensor,
        n: int,
    ) -> Path:
        """adjoint.bridge to the unclipped end of flow.integrate."""
        end = flow.integrate(f_theta, start, n)
        states, times = adjoint.bridge(end, noise)
        return Path(states, times, end, 1.0 / noise.shape[0])

    def lean(self, linearise: Linearise, path: Path, g_1: Tensor) -> Tensor:
        """The recursion of the rollout, its Jacobians taken at the bridge states.

        g at t = 1 is the terminal adjoint; the Jacobian of step k is at state t_k, time t_k + h.
        """
        count = path.states.shape[0]
        pullback = linearise(path.states[:-1], path.times[:-1] + path.step)
        shifted = adjoint.lean_adjoint(
            lambda k, g: pullback(k - 1, g), g_1, count, first=1
        )
        return torch.cat([shifted, g_1.unsqueeze(0)])


class AdjointPart(Protocol):
    """How the terminal adjoint is carried back to the path's states."""

    def __call__(
        self, part: PathPart, linearise: Linearise, path: Path, g_1: Tensor
    ) -> Tensor:
        """Adjoints (K, M, D)."""


def lean(part: PathPart, linearise: Linearise, path: Path, g_1: Tensor) -> Tensor:
    """Vector-Jacobian products of the behaviour field, step by step."""
    return part.lean(linearise, path, g_1)


def scalar(
    part: PathPart,  # noqa: ARG001
    linearise: Linearise,  # noqa: ARG001
    path: Path,
    g_1: Tensor,
) -> Tensor:
    """T g_1, no Jacobian (SQAM)."""
    return adjoint.scalar_adjoint(g_1, path.times)


class TemperaturePart(Protocol):
    """How hard the critic pulls; state None where nothing moves."""

    def initial(self, config: Any, like: Tensor) -> dual.DualState | None:
        """State before the first update."""

    def pull(self, config: Any) -> float:
        """Factor of the terminal adjoint."""

    def budget(self, config: Any) -> float:
        """Path KL per control period that is aimed at; inf where none is."""

    def aimed_at(self, config: Any, budget: float) -> Any:
        """The settings with another budget."""

    def weight(self, config: Any, state: dual.DualState, cost: Tensor) -> Tensor:
        """Lambda of a loss whose adjoints cost C."""

    def advance(
        self, config: Any, state: dual.DualState, kl: Tensor, cost: Tensor
    ) -> dual.DualState:
        """State after the step."""


class FixedTemperature:
    """Inverse temperature config.tau; the loss is not weighted."""

    def initial(self, config: Any, like: Tensor) -> None:
        """No state."""

    def pull(self, config: Any) -> float:
        """The inverse temperature tau."""
        return float(config.tau)

    def budget(self, config: Any) -> float:  # noqa: ARG002
        """None is aimed at."""
        return float("inf")

    def aimed_at(self, config: Any, budget: float) -> Any:  # noqa: ARG002
        """There is no budget to change."""
        return config

    def weight(
        self,
        config: Any,  # noqa: ARG002
        state: dual.DualState,  # noqa: ARG002
        cost: Tensor,
    ) -> Tensor:
        """1."""
        return torch.ones_like(cost)

    def advance(
        self,
        config: Any,  # noqa: ARG002
        state: dual.DualState,
        kl: Tensor,  # noqa: ARG002
        cost: Tensor,  # noqa: ARG002
    ) -> dual.DualState:
        """Nothing moves."""
        return state


class DualTemperature:
    """lambda held by a trust region on the path KL (config.dual)."""

    def initial(self, config: Any, like: Tensor) -> dual.DualState:
        """dual.initial_state."""
        return dual.initial_state(config.dual, like)

    def pull(self, config: Any) -> float:  # noqa: ARG002
        """Unit temperature: lambda enters through the loss."""
        return 1.0

    def budget(self, config: Any) -> float:
        """The trust region's."""
        return float(config.dual.budget)

    def aimed_at(self, config: Any, budget: float) -> Any:
        """Another budget of the trust region."""
        return dataclasses.replace(
            config, dual=dataclasses.replace(config.dual, budget=budget)
        )

    def weight(self, config: Any, state: dual.DualState, cost: Tensor) -> Tensor:
        """dual.temperature."""
        return dual.temperature(config.dual, state, cost)

    def advance(
        self, config: Any, state: dual.DualState, kl: Tensor, cost: Tensor
    ) -> dual.DualState:
        """dual.advance."""
        return dual.advance(config.dual, state, kl, cost)


PenaltyPart = Callable[
    [Any, Params, Tensor, Tensor, Tensor, Tensor], tuple[Tensor | float, Metrics]
]


def no_penalty(
    config: Any,  # noqa: ARG001
    trained: Params,  # noqa: ARG001
    s: Tensor,  # noqa: ARG001
    a: Tensor,  # noqa: ARG001
    end: Tensor,  # noqa: ARG001
    weight: Tensor,  # noqa: ARG001
) -> tuple[float, Metrics]:
    """The critic learns from its targets alone."""
    return 0.0, {}


def value_penalty(
    config: Any, trained: Params, s: Tensor, a: Tensor, end: Tensor, weight: Tensor
) -> tuple[Tensor, Metrics]:
    """config.penalty * (mean Q(s, clip a_1) - mean Q(s, a)): end points' values are held down.

    Online critic, actions constant; weight (M,) of each row, see heads.row_weight.
    """
    gap = critic.value_gap(trained, "critic", s, end.clamp(-1.0, 1.0), a, weight)
    return config.penalty * gap, {"critic/value_gap": gap.detach()}


@dataclass(frozen=True)
class Parts:
    """One method of the family.

    Args:
        path: where the tuned flow is regressed.
        adjoint: lean or scalar.
        temperature: fixed or dual.
        head: what acts on top of the flow.
        penalty: on the critic's values of the flow's end points.
    """

    path: PathPart
    adjoint: AdjointPart
    temperature: TemperaturePart
    head: Head = NoHead()  # noqa: RUF009
    penalty: PenaltyPart = no_penalty
