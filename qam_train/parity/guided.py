# SPDX-License-Identifier: Apache-2.0
"""Bindings of CGQL, CGQL-M and CGQL-L."""

from __future__ import annotations

from typing import Any

from qam_train.agents.cgql import CGQLAgent, CGQLConfig, CGQLNoise, NoisyCGQLConfig
from qam_train.agents.cgql_linex import CGQLLAgent, CGQLLConfig
from qam_train.agents.cgql_mse import CGQLMAgent
from qam_train.parity.binding import (
    CRITIC_INFO,
    Binding,
    Draw,
    Settings,
    candidates,
    flow_numbers,
    next_actions,
)
from qam_train.parity.family import acts, with_fields
from qam_train.parity.recording import UnsupportedRecordingError

AGENTS: dict[str, Any] = {"simple": CGQLAgent, "mse": CGQLMAgent, "linex": CGQLLAgent}


def bind_cgql(settings: Settings) -> Binding:
    """The three modes.

    Raises:
        UnsupportedRecordingError: the separate guidance critic, which the official code never
            trains.
    """
    if settings.get("separate", False):
        raise UnsupportedRecordingError("switch separate = True is not implemented")
    averaged = settings.get("target_guidance", True)
    fields = {"guided": "target_flow" if averaged else "flow"}
    mode = settings["mode"]

    def config(s: Settings) -> CGQLConfig:
        numbers = flow_numbers(s) | {
            # no guidance at all at temperature 0 (official code)
            "guidance": s["guidance_coef"] if s["inv_temp"] > 0.0 else 0.0,
            "tau": s["inv_temp"],
        }
        if mode == "simple":
            return CGQLConfig(**numbers)
        if mode == "mse":
            return NoisyCGQLConfig(**numbers, noisy=s["noisy_coef"])
        return CGQLLConfig(**numbers, noisy=s["noisy_coef"], linear_from=s["isd_clip"])

    def noise(draw: Draw) -> CGQLNoise:
        nothing = draw("bc_x0")[:, :0]
        return CGQLNoise(
            next_action=candidates(draw("next_action_noise")),
            flow_start=draw("bc_x0"),
            flow_time=draw("bc_t"),
            actor=nothing,
            noisy_start=nothing if mode == "simple" else draw("noisy_x0"),
            noisy_time=nothing if mode == "simple" else draw("noisy_t"),
        )

    return Binding(
        agent=with_fields(AGENTS[mode], fields),
        config=config,
        nets={
            "critic": "modules_critic/mlp",
            "target_critic": "modules_target_critic/mlp",
            "flow": "modules_actor/mlp",
            "target_flow": "modules_target_actor/mlp",
        },
        noise=noise,
        info=CRITIC_INFO
        | {
            "actor/flow_loss": "flow/loss",
            "critic/noisy_critic_loss": "critic/noisy_loss",
            "critic/exp_bias": "critic/exp_bias",
        },
        mids={"next_actions": next_actions},
        acts=acts(),
        info_float32={"critic/exp_bias": 1e-3},  # a sum of huge exponentials
    )
