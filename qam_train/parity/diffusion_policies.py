# SPDX-License-Identifier: Apache-2.0
"""Bindings of QSM and DAC (officially one agent, dcgql), and their schedule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from qam_train import diffusion
from qam_train.agents.dac import DACAgent
from qam_train.agents.diffusion_policy import DiffusionConfig, DiffusionNoise
from qam_train.agents.qsm import QSMAgent, QSMConfig
from qam_train.parity.binding import CRITIC, Binding, Settings, common, next_actions
from qam_train.parity.family import with_fields
from qam_train.parity.recording import (
    PRECISIONS,
    Comparison,
    Recording,
    UnsupportedRecordingError,
    largest,
    scaled,
)

# released with the loss: (clip of the predicted action before, clip of the state after) the noise
CLIPS = {"dac": (True, False), "qsm": (False, True)}


def _flat(start: Tensor, steps: Tensor) -> Tensor:
    """x_K (B, D) and step noises (K, B, D) as act() takes them."""
    return torch.cat([start, *steps], -1)


def bind_dcgql(settings: Settings) -> Binding:
    """The two losses with any sampler; best_of_n is there and never read (official code).

    Raises:
        UnsupportedRecordingError: another loss or schedule.
    """
    kind = settings["actor_loss_type"]
    for name, valid in (("actor_loss_type", tuple(CLIPS)), ("beta_schedule", ("vp",))):
        if settings[name] not in valid:
            raise UnsupportedRecordingError(
                f"switch {name} = {settings[name]} is not implemented, only {', '.join(valid)}"
            )
    clips = (settings["clip_sampler_before"], settings["clip_sampler_after"])

    def config(s: Settings) -> DiffusionConfig:
        numbers = common(s) | {
            "clip_norm": s["clip_grad_norm"],
            "diffusion_steps": s["diffusion_steps"],
            "time_code": s["time_dim"],
            "alpha": s["alpha"],
        }
        if kind == "qsm":
            return QSMConfig(**numbers, tau=s["inv_temp"])
        return DiffusionConfig(**numbers)

    averaged = settings.get("use_target_critic_grad", True)
    fields = {"judge": "target_critic" if averaged else "critic"}
    agent: Any = with_fields(QSMAgent if kind == "qsm" else DACAgent, fields)
    if clips != CLIPS[kind]:
        agent = sampling(agent, before=clips[0], after=clips[1])
    return Binding(
        agent=agent,
        config=config,
        nets=CRITIC
        | {
            "actor/fourier": "modules_actor/FourierFeatures_0",
            "actor/time": "modules_actor/MLP_0",
            "actor/noise": "modules_actor/MLP_1",
        },
        noise=lambda draw: DiffusionNoise(
            next_action=_flat(draw("next_ddpm_xT"), draw("next_ddpm_noise")),
            time=draw("ddpm_t"),
            noise=draw("ddpm_eps"),
        ),
        info={
            "critic/critic_loss": "critic/td_loss",
            "critic/q": "critic/q_mean",
            "actor/actor_loss": "actor/loss",
        },
        mids={"next_actions": next_actions},
        acts={"n": lambda draw: _flat(draw("ddpm_xT"), draw("ddpm_noise"))},
        # the jump sampler divides by a small number at every step
        intermediates_factor=1.0 if clips[0] else 10.0,
    )


def sampling(kind: type[Any], *, before: bool, after: bool) -> type[Any]:
    """The method with a sampler of other clips than it was released with.

    Args:
        kind: our class.
        before: the predicted action is clipped, and a step is that of the posterior; else it jumps to
            the predicted action.
        after: the state is clipped after the noise of each step. With neither nothing is clipped, in
            the critic's target neither (official code).
    """

    class Swapped(kind):
        def policy(self, s: Tensor, noise: Tensor) -> Tensor:
            x, *steps = noise.split(self.chunk_width, -1)
            plan = self.plan
            for z, k in zip(steps, range(plan.steps, 0, -1), strict=True):
                time = x.new_full((*x.shape[:-1], 1), float(k))
                eps = diffusion.predicted_noise(self.trained, "actor", s, x, time)
                left, level = plan.alpha_hats[k - 1], plan.alpha_hats[k]
                x0 = (x - (1.0 - level).sqrt() * eps) / level.sqrt()
                if before:
                    shares = (
                        left.sqrt() * plan.betas[k],
                        plan.alphas[k].sqrt() * (1.0 - left),
                    )
                    x = (shares[0] * x0.clamp(-1.0, 1.0) + shares[1] * x) / (
                        1.0 - level
                    )
                else:
                    x = x0
                x = x + float(k > 1) * plan.betas[k].sqrt() * z
                x = x.clamp(-1.0, 1.0) if after else x
            return x

    return Swapped


def compare_schedule(recording: Recording) -> Iterator[Comparison]:
    """betas, alphas and their product."""
    steps = recording.settings()["diffusion_steps"]
    like = torch.zeros((), dtype=PRECISIONS[recording.precision])
    plan = diffusion.schedule(steps, like)
    errors = [
        scaled(getattr(plan, name), recording.array(f"f64/{name}"))
        for name in ("betas", "alphas", "alpha_hats")
    ]
    yield recording.row("intermediates: schedule", largest(errors))
