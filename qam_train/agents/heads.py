# SPDX-License-Identifier: Apache-2.0
"""What may stand between a tuned flow and the action: nothing, an edit, or a one-step copy.

Each head is a set of small functions over its own nets. Notation: s observation (B, O), z noise of
the flow (B, D), e edit in (-1, 1), c edit scale, alpha weight of the distillation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from qam_train import critic, gaussian
from qam_train.agents.common import draw_normal
from qam_train.config import MaskedConfig, MethodConfig
from qam_train.deployment import EditedFlow, FlowPolicy, OneStep, Single
from qam_train.networks import Params, init_head, init_mlp, mlp

FlowSampler = Callable[[Tensor, Tensor], Tensor]
Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class HeadNets:
    """What a head may read.

    Args:
        trained: all trained tensors.
        constant: every tensor without gradient.
        flow: (s, z) -> clipped flow action.
    """

    trained: Params
    constant: Params
    flow: FlowSampler


class Head(Protocol):
    """Nets, loss and action of one kind of head."""

    policy_net: str

    def draw_nets(
        self,
        config: Any,
        observation_size: int,
        width: int,
        generator: torch.Generator,
    ) -> Params:
        """Fresh tensors of the head's nets."""

    def noise_width(self, width: int) -> int:
        """Numbers of noise per action chunk of D numbers."""

    def act(
        self, config: Any, nets: HeadNets, s: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Flat action (..., B, D) and, for a stochastic head, its log-likelihood."""

    def deployment(self, config: Any, flow: FlowPolicy) -> Single:
        """What act() computes on top of a flow."""

    def loss(
        self,
        config: Any,
        nets: HeadNets,
        s: Tensor,
        noise: Tensor | None,
        weight: Tensor,
    ) -> tuple[Tensor, Metrics]:
        """Loss of the head alone, a mean over all rows.

        Args:
            config: the method's numbers.
            nets: what the head may read.
            s: (B, O), normalised.
            noise: (B, W), as noise_width says; None where draw_noise gives none.
            weight: (B,), of each row, see row_weight.
        """

    def draw_noise(
        self, rows: int, width: int, generator: torch.Generator
    ) -> Tensor | None:
        """Noise of loss(); None where it takes none."""


class NoHead:
    """The flow's action as it is."""

    policy_net = "fast"

    def draw_nets(
        self,
        config: MethodConfig,  # noqa: ARG002
        observation_size: int,  # noqa: ARG002
        width: int,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> Params:
        """No nets."""
        return {}

    def noise_width(self, width: int) -> int:
        """Flow noise z alone."""
        return width

    def act(
        self,
        config: MethodConfig,  # noqa: ARG002
        nets: HeadNets,
        s: Tensor,
        noise: Tensor,
    ) -> tuple[Tensor, None]:
        """Clipped flow action from z."""
        return nets.flow(s, noise), None

    def deployment(self, config: MethodConfig, flow: FlowPolicy) -> FlowPolicy:  # noqa: ARG002
        """The flow."""
        return flow

    def loss(
        self,
        config: MethodConfig,  # noqa: ARG002
        nets: HeadNets,  # noqa: ARG002
        s: Tensor,
        noise: Tensor | None,  # noqa: ARG002
        weight: Tensor,  # noqa: ARG002
    ) -> tuple[Tensor, Metrics]:
        """Nothing to learn."""
        return s.new_zeros(()), {}

    def draw_noise(self, rows: int, width: int, generator: torch.Generator) -> None:
        """No noise."""


class EditHead:
    """Tanh-Gaussian edit of the flow's action: a = clip(flow(s, z) + c e), e from (s, flow).

    Settings: `edit` (EditConfig). Noise: z and the edit's normal, one behind the other.
    """

    policy_net = "edit/mean"

    def draw_nets(
        self,
        config: Any,
        observation_size: int,
        width: int,
        generator: torch.Generator,
    ) -> Params:
        """Edit net and the logarithm of its entropy temperature, which starts at 1."""
        return init_head(
            "edit",
            observation_size + width,
            config.actor.widths,
            {"mean": width, "log_std": width},
            generator,
        ) | {"edit_alpha/log": torch.zeros((), device=generator.device)}

    def noise_width(self, width: int) -> int:
        """Flow noise z, then the normal of the edit."""
        return 2 * width

    def act(
        self, config: Any, nets: HeadNets, s: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Edited action and log p(e); the gradient reaches the edit net alone."""
        z, normal = noise.chunk(2, -1)
        base = nets.flow(s, z)
        x = torch.cat([s.expand(*base.shape[:-1], -1), base], -1)
        e, log_p = gaussian.draw(*gaussian.head(nets.trained, "edit", x), normal)
        return (base + config.edit.scale * e).clamp(-1.0, 1.0), log_p

    def deployment(self, config: Any, flow: FlowPolicy) -> EditedFlow:
        """The flow and its edit."""
        return EditedFlow(flow, "edit", config.edit.scale)

    def loss(
        self,
        config: Any,
        nets: HeadNets,
        s: Tensor,
        noise: Tensor | None,
        weight: Tensor,
    ) -> tuple[Tensor, Metrics]:
        """Mean of -mean_k Q_k(s, a) + alpha log p(e), and alpha's own loss; online critic."""
        assert noise is not None
        a, log_p = self.act(config, nets, s, noise)
        q_loss = -(critic.ensemble(nets.constant, "critic", s, a) * weight).mean()
        log_alpha = nets.trained["edit_alpha/log"]
        entropy_loss = (log_alpha.detach().exp() * log_p * weight).mean()
        target = -config.edit.target_entropy * a.shape[-1]
        # a row at the target does not move alpha: rows of weight 0 are put there
        counted = torch.where(weight > 0.0, log_p, -target)
        alpha_loss = gaussian.temperature_loss(log_alpha, counted, target)
        metrics = {
            "edit/q_loss": q_loss.detach(),
            "edit/entropy_loss": entropy_loss.detach(),
            "edit/entropy": -log_p.detach().mean(),
            "edit/alpha_loss": alpha_loss.detach(),
            "edit/alpha": log_alpha.detach().exp(),
        }
        return q_loss + entropy_loss + alpha_loss, metrics

    def draw_noise(self, rows: int, width: int, generator: torch.Generator) -> Tensor:
        """Two normals per number of the chunk."""
        return draw_normal(generator, rows, 2 * width)


class OneStepHead:
    """One-step actor pi(s, z), distilled from the flow and pushed up the critic.

    Settings: `distill`, alpha.
    """

    policy_net = "one_step"

    def draw_nets(
        self,
        config: Any,
        observation_size: int,
        width: int,
        generator: torch.Generator,
    ) -> Params:
        """Net of [s, z], without time."""
        sizes = (observation_size + width, *config.actor.widths, width)
        return init_mlp(
            "one_step", sizes, generator, layer_norm=config.actor.layer_norm
        )

    def noise_width(self, width: int) -> int:
        """Flow noise z alone."""
        return width

    def act(
        self,
        config: Any,  # noqa: ARG002
        nets: HeadNets,
        s: Tensor,
        noise: Tensor,
    ) -> tuple[Tensor, None]:
        """Clipped pi(s, z); the flow is not asked."""
        return one_step(nets.trained, s, noise).clamp(-1.0, 1.0), None

    def deployment(self, config: Any, flow: FlowPolicy) -> OneStep:  # noqa: ARG002
        """The one-step actor alone."""
        return OneStep("one_step")

    def loss(
        self,
        config: Any,
        nets: HeadNets,
        s: Tensor,
        noise: Tensor | None,
        weight: Tensor,
    ) -> tuple[Tensor, Metrics]:
        """Alpha mean (pi(s, z) - flow(s, z))^2 - mean Q(s, clip pi(s, z)); online critic."""
        assert noise is not None
        a = one_step(nets.trained, s, noise)
        distance = (a - nets.flow(s, noise)).square().mean(-1)  # (B,)
        distill = (distance * weight).mean(-1)
        q = critic.ensemble(nets.constant, "critic", s, a.clamp(-1.0, 1.0))
        q_loss = -(q * weight).mean()
        metrics = {
            "one_step/distill_loss": distill.detach(),
            "one_step/q_loss": q_loss.detach(),
        }
        return config.distill * distill + q_loss, metrics

    def draw_noise(self, rows: int, width: int, generator: torch.Generator) -> Tensor:
        """One z per row."""
        return draw_normal(generator, rows, width)


def row_weight(config: MaskedConfig, valid: Tensor) -> Tensor:
    """Weight of each row (B,) in the policy's improvement: 1 (official code), or valid."""
    return valid if config.masked else torch.ones_like(valid)


def one_step(params: Params, s: Tensor, z: Tensor) -> Tensor:
    """pi(s, z), unclipped (..., B, D)."""
    return mlp(params, "one_step", torch.cat([s.expand(*z.shape[:-1], -1), z], -1))
