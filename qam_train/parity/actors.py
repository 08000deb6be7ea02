# SPDX-License-Identifier: Apache-2.0
"""Bindings of ReBRAC, RLPD and DSRL."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qam_train.agents.dsrl import DSRLAgent, DSRLConfig, DSRLNoise
from qam_train.agents.rebrac import ReBRACAgent, ReBRACConfig, ReBRACNoise
from qam_train.agents.rlpd import GaussianNoise, RLPDAgent, RLPDConfig
from qam_train.parity.binding import (
    CRITIC,
    CRITIC_INFO,
    Binding,
    Metrics,
    Settings,
    candidates,
    common,
    flow_numbers,
    gaussian_nets,
    mean_actor_nets,
    next_actions,
)
from qam_train.parity.family import acts, with_fields

ACTOR_INFO = {
    "actor/actor_loss": "actor/loss",
    "actor/q": "actor/q",
    "actor/entropy": "actor/entropy",
    "actor/alpha": "actor/alpha",
    "actor/alpha_loss": "actor/alpha_loss",
}


def bind_rebrac(settings: Settings) -> Binding:
    """ReBRAC; update 2 is the one that moves the targets."""

    def config(s: Settings) -> ReBRACConfig:
        return ReBRACConfig(
            **common(s),
            alpha=s["alpha_actor"],
            noise=s["actor_noise"],
            noise_clip=s["actor_noise_clip"],
            averages_every=s["actor_freq"],
            last_layer=s["actor_fc_scale"],
        )

    def penalty(m: Metrics) -> float:
        return float(settings["alpha_actor"]) * float(m["actor/distance"])

    return Binding(
        agent=ReBRACAgent,
        config=config,
        nets=CRITIC
        | mean_actor_nets("actor", settings)
        | mean_actor_nets("target_actor", settings),
        noise=lambda draw: ReBRACNoise(draw("next_action_noise")),
        info=CRITIC_INFO
        | {
            "actor/actor_loss": "actor/q_loss",
            "actor/bc_loss": penalty,
            "actor/total_loss": lambda m: float(m["actor/q_loss"]) + penalty(m),
            "actor/mse": "actor/distance",
            "actor/action_std": lambda _: 1.0,
        },
        mids={"next_actions": next_actions},
        acts=acts(),
    )


def bind_rlpd(settings: Settings) -> Binding:  # noqa: ARG001
    """RLPD."""

    def config(s: Settings) -> RLPDConfig:
        return RLPDConfig(
            **common(s),
            behaviour=s["bc_alpha"],
            target_entropy=s["target_entropy_multiplier"],
            alpha_start=s["init_temp"],
        )

    parts = ("actor/loss", "actor/alpha_loss", "actor/behaviour_loss")
    return Binding(
        agent=RLPDAgent,
        config=config,
        nets=CRITIC
        | gaussian_nets("actor", "modules_actor")
        | {"alpha": "modules_alpha"},
        noise=lambda draw: GaussianNoise(draw("next_actor_noise"), draw("actor_noise")),
        info=CRITIC_INFO
        | ACTOR_INFO
        | {
            "actor/bc_loss": "actor/behaviour_loss",
            "actor/total_loss": lambda m: sum(float(m[part]) for part in parts),
        },
        mids={"next_actions": next_actions},
        acts=acts("actor_noise"),
    )


def bind_dsrl(settings: Settings) -> Binding:
    """DSRL."""
    averaged = settings.get("use_target_latent", True)
    fields = {"played": "target_flow" if averaged else "flow"}

    def config(s: Settings) -> DSRLConfig:
        return DSRLConfig(
            **flow_numbers(s),
            noise_scale=s["noise_scale"],
            target_entropy=s["target_entropy_multiplier"],
        )

    def latent_actions(agent: Any, batch: Any, noise: Any) -> Tensor:
        found: Tensor = agent.flow_action(agent.inputs(batch)[0], noise.latent)
        return found

    parts = ("actor/loss", "actor/alpha_loss", "flow/loss")
    critics = ("critic/td_loss", "critic/latent_loss")
    return Binding(
        agent=with_fields(DSRLAgent, fields),
        config=config,
        nets=CRITIC
        | {
            "z_critic": "modules_z_critic/value_net",
            "flow": "modules_actor_bc_flow/mlp",
            "target_flow": "modules_target_actor_bc_flow/mlp",
            "alpha": "modules_alpha",
        }
        | gaussian_nets("actor", "modules_actor"),
        noise=lambda draw: DSRLNoise(
            next_action=candidates(draw("next_actor_noise")),
            flow_start=draw("bc_x0"),
            flow_time=draw("bc_t"),
            actor=draw("actor_noise"),
            latent=draw("latent_noise"),
        ),
        info=CRITIC_INFO
        | ACTOR_INFO
        | {
            "actor/flow_loss": "flow/loss",
            "actor/action_std": "actor/std",
            "actor/total_loss": lambda m: sum(float(m[part]) for part in parts),
            "critic/distill_loss": "critic/latent_loss",
            "critic/total_loss": lambda m: sum(float(m[part]) for part in critics),
        },
        mids={"next_actions": next_actions, "latent_flow_actions": latent_actions},
        acts=acts("actor_noise"),
    )
