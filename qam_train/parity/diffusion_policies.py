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

# the sampler goes with the loss: clip of the predicted action before, clip of the state after
SWITCHES = {
    "dac": {"clip_sampler_before": True, "clip_sampler_after": False},
    "qsm": {"clip_sampler_before": False, "clip_sampler_after": True},
}
ALWAYS = {"beta_schedule": "vp", "best_of_n": 1}


def _flat(start: Tensor, steps: Tensor) -> Tensor:
    """x_K (B, D) and step noises (K, B, D) as act() takes them."""
    return torch.cat([start, *steps], -1)


def bind_dcgql(settings: Settings) -> Binding:
    """The two losses, each with the sampler it was released with.

    Raises:
        UnsupportedRecordingError: another combination.
    """
    kind = settings["actor_loss_type"]
    for name, value in (ALWAYS | SWITCHES[kind]).items():
        if settings.get(name, value) != value:
            raise UnsupportedRecordingError(
                f"switch {name} = {settings[name]} is not implemented, only {value}"
            )

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
        acts={"n1": lambda draw: _flat(draw("ddpm_xT"), draw("ddpm_noise"))},
        # the jump sampler divides by a small number at every step
        intermediates_factor=10.0 if kind == "qsm" else 1.0,
    )


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
