# SPDX-License-Identifier: Apache-2.0
"""Trust region: the temperature lambda that holds the path KL at its budget.

Notation: epsilon budget, D estimated path KL per control period, D_bar its moving average, m the
multiplier that a rule moves, C adjoint cost per control period (adjoint.adjoint_cost): at the
regression's optimum D = C / (2 lambda^2). lambda is the temperature of the loss: QAM with
tau = 1 / lambda, weighted by lambda.

Three rules. Each is two pure functions: the lambda of this update's loss, and the state after it.
- additive: m <- clip(m + eta (D_bar - epsilon)), lambda = 3 m (TRQAM as published and as coded);
- log: log m <- log m + (gain / 2) log(D_bar / epsilon), the ratio within [1 / cap, cap]: a Newton
  step, because D falls as lambda^-2; the same settings serve every budget;
- predictive: lambda = m sqrt(C / (2 epsilon)) from this very batch, and m corrects what the
  prediction misses by the log rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qam_train.config import require


@dataclass(frozen=True)
class DualConfig:
    """Numbers of the trust region.

    Args:
        rule: which rule moves the multiplier.
        budget: epsilon, path KL per control period [nats].
        step: eta of the additive rule.
        gain: of the log and predictive rules.
        average: rate of the moving average D_bar (and of C's).
        cap: estimates above cap * budget count as cap * budget; in the log and predictive rules D_bar
            below budget / cap counts as budget / cap.
        scale: lambda = scale * m in the additive and log rules (official code).
        smallest, largest: bounds of the multiplier m.
    """

    rule: Literal["additive", "log", "predictive"] = "additive"
    budget: float = 0.5
    step: float = 0.01
    gain: float = 0.01
    average: float = 0.1
    cap: float = 2.0
    scale: float = 3.0
    smallest: float = 0.01
    largest: float = 100.0

    def __post_init__(self) -> None:
        require(self.budget > 0.0, "budget", "a positive number", self.budget)
        require(self.cap > 1.0, "cap", "a number above 1", self.cap)
        require(
            0.0 < self.smallest < self.largest,
            "smallest",
            "a number in (0, largest)",
            self.smallest,
        )
        require(0.0 < self.average <= 1.0, "average", "in (0, 1]", self.average)


@dataclass(frozen=True)
class DualState:
    """What the rule remembers; numbers () in the agent's dtype.

    Args:
        multiplier: m.
        kl: D_bar.
        cost: moving average of C; 0: none seen yet.
    """

    multiplier: Tensor
    kl: Tensor
    cost: Tensor


def initial_state(config: DualConfig, like: Tensor) -> DualState:
    """State before the first update: m = 1; D_bar = 0 for the additive rule (official code).

    The other two take the logarithm of D_bar, so they start on the budget: no pull.
    """
    one = torch.ones((), dtype=like.dtype, device=like.device)
    start = 0.0 if config.rule == "additive" else config.budget
    return DualState(one, one * start, one * 0.0)


def temperature(config: DualConfig, state: DualState, cost: Tensor) -> Tensor:
    """Lambda of this update's loss; no gradient flows into it.

    Args:
        config: the rule and its numbers.
        state: before this update.
        cost: C of this batch; only the predictive rule reads it.
    """
    if config.rule != "predictive":
        return config.scale * state.multiplier
    # the larger of average and batch: a jump of the critic is met at once
    expected = torch.maximum(cost, state.cost)
    return (state.multiplier * torch.sqrt(expected / (2.0 * config.budget))).clamp(
        config.scale * config.smallest, config.scale * config.largest
    )


def advance(
    config: DualConfig, state: DualState, kl: Tensor, cost: Tensor
) -> DualState:
    """State after an update whose loss saw the path KL and the cost.

    Args:
        config: the rule and its numbers.
        state: before the update.
        kl: D of the update.
        cost: C of the update.
    """
    rate, budget = config.average, config.budget
    capped = kl.clamp(max=config.cap * budget)
    average = (1.0 - rate) * state.kl + rate * capped
    if config.rule == "additive":
        moved = state.multiplier + config.step * (average - budget)
    else:
        # D of a policy that equals its base is 0. Lambda falls no faster than it can rise (estimates
        # are capped): faster than the actor follows, it would be past its end
        ratio = (average / budget).clamp(min=1.0 / config.cap)
        moved = state.multiplier * ratio.pow(0.5 * config.gain)
    seen = torch.where(state.cost > 0.0, state.cost, cost)
    return DualState(
        moved.clamp(config.smallest, config.largest),
        average,
        (1.0 - rate) * seen + rate * cost,
    )
