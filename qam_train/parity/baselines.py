# SPDX-License-Identifier: Apache-2.0
"""Bindings of the methods on a behaviour flow: FQL, FEdit, FBRAC, FAWAC, IFQL."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qam_train.agents.behaviour_flow import FlowActorNoise
from qam_train.agents.fawac import FAWACAgent, FAWACConfig
from qam_train.agents.fbrac import FBRACAgent, FBRACConfig
from qam_train.agents.fedit import FEditAgent, FEditConfig
from qam_train.agents.fql import FQLAgent, FQLConfig
from qam_train.agents.ifql import IFQLAgent, IFQLConfig
from qam_train.agents.qam_edit import EditConfig
from qam_train.parity.binding import (
    CRITIC,
    CRITIC_INFO,
    Binding,
    Draw,
    Metrics,
    Settings,
    candidates,
    common,
    flow_numbers,
    gaussian_nets,
    next_actions,
)
from qam_train.parity.family import acts, edit_candidates, edit_noise


def _flow_of_head(agent: Any, batch: Any, noise: Any) -> Tensor:
    s, _ = agent.inputs(batch)
    found: Tensor = agent.head_nets().flow(s, noise.actor[:, : agent.chunk_width])
    return found


def _noise(draw: Draw, actor: str | None = None) -> FlowActorNoise:
    return FlowActorNoise(
        next_action=candidates(draw("next_action_noise")),
        flow_start=draw("bc_x0"),
        flow_time=draw("bc_t"),
        actor=draw(actor) if actor else draw("bc_x0")[:, :0],
    )


def bind_fql(settings: Settings) -> Binding:
    """FQL."""

    def actor_loss(m: Metrics) -> float:
        distill = settings["alpha"] * float(m["one_step/distill_loss"])
        return float(m["flow/loss"]) + distill + float(m["one_step/q_loss"])

    return Binding(
        agent=FQLAgent,
        config=lambda s: FQLConfig(**flow_numbers(s), distill=s["alpha"]),
        nets=CRITIC
        | {
            "flow": "modules_actor_bc_flow/mlp",
            "one_step": "modules_actor_onestep_flow/mlp",
        },
        noise=lambda draw: _noise(draw, "fql_noise"),
        info=CRITIC_INFO
        | {
            "actor/actor_loss": actor_loss,
            "actor/bc_flow_loss": "flow/loss",
            "actor/distill_loss": "one_step/distill_loss",
        },
        mids={"next_actions": next_actions, "actor_flow_actions": _flow_of_head},
        acts=acts(),
    )


def bind_fedit(settings: Settings) -> Binding:  # noqa: ARG001
    """FEdit."""

    def config(s: Settings) -> FEditConfig:
        edit = EditConfig(s["edit_scale"], s["edit_target_entropy_multiplier"])
        return FEditConfig(**flow_numbers(s), edit=edit)

    def noise(draw: Draw) -> FlowActorNoise:
        return FlowActorNoise(
            next_action=edit_candidates(draw, "next_"),
            flow_start=draw("bc_x0"),
            flow_time=draw("bc_t"),
            actor=edit_noise(draw),
        )

    parts = ("flow/loss", "edit/q_loss", "edit/entropy_loss", "edit/alpha_loss")
    return Binding(
        agent=FEditAgent,
        config=config,
        nets=CRITIC
        | {"flow": "modules_actor_bc_flow/mlp", "edit_alpha": "modules_alpha"}
        | gaussian_nets("edit", "modules_edit_actor"),
        noise=noise,
        info=CRITIC_INFO
        | {
            "actor/actor_loss": lambda m: sum(float(m[part]) for part in parts),
            "actor/bc_flow_loss": "flow/loss",
            "actor/edit_q_loss": "edit/q_loss",
            "actor/edit_entropy_loss": "edit/entropy_loss",
            "actor/edit_entropy": "edit/entropy",
            "actor/edit_alpha_loss": "edit/alpha_loss",
            "actor/edit_alpha": "edit/alpha",
        },
        mids={"next_actions": next_actions, "actor_flow_actions": _flow_of_head},
        acts={"n": edit_candidates},
    )


def bind_fbrac(settings: Settings) -> Binding:
    """FBRAC."""

    def flow_action(agent: Any, batch: Any, noise: Any) -> Tensor:
        found: Tensor = agent.policy(agent.inputs(batch)[0], noise.actor)
        return found

    def actor_loss(m: Metrics) -> float:
        return float(m["flow/loss"]) + float(m["actor/q_loss"]) / settings["alpha"]

    return Binding(
        agent=FBRACAgent,
        config=lambda s: FBRACConfig(**flow_numbers(s), alpha=s["alpha"]),
        nets=CRITIC | {"flow": "modules_actor_flow/mlp"},
        noise=lambda draw: _noise(draw, "policy_noise"),
        info=CRITIC_INFO
        | {"actor/actor_loss": actor_loss, "actor/bc_flow_loss": "flow/loss"},
        mids={"next_actions": next_actions, "actor_flow_actions": flow_action},
        acts=acts(),
    )


def bind_fawac(settings: Settings) -> Binding:  # noqa: ARG001
    """FAWAC."""
    return Binding(
        agent=FAWACAgent,
        config=lambda s: FAWACConfig(**flow_numbers(s), tau=s["inv_temp"]),
        nets=CRITIC | {"flow": "modules_actor/mlp", "value": "modules_value/value_net"},
        noise=lambda draw: FlowActorNoise(
            next_action=draw("next_action_noise"),
            flow_start=draw("bc_x0"),
            flow_time=draw("bc_t"),
            actor=draw("bc_x0")[:, :0],
        ),
        info=CRITIC_INFO
        | {
            "actor/actor_loss": "actor/weighted_flow_loss",
            "critic/value_loss": "value/loss",
        },
        mids={"next_actions": next_actions},
        acts=acts(),
    )


def bind_ifql(settings: Settings) -> Binding:  # noqa: ARG001
    """IFQL; the recorded case 'single' is its unbatched path, row by row."""

    def config(s: Settings) -> IFQLConfig:
        numbers = common(s) | {"flow_steps": s["flow_steps"]}
        return IFQLConfig(**numbers, best_of=s["num_samples"], kappa=s["kappa"])

    return Binding(
        agent=IFQLAgent,
        config=config,
        nets=CRITIC
        | {"flow": "modules_actor_flow/mlp", "value": "modules_value/value_net"},
        noise=lambda draw: FlowActorNoise(
            next_action=draw("bc_x0")[:, :0],
            flow_start=draw("bc_x0"),
            flow_time=draw("bc_t"),
            actor=draw("bc_x0")[:, :0],
        ),
        info=CRITIC_INFO
        | {
            "actor/actor_loss": "flow/loss",
            "value/value_loss": "value/loss",
            "critic/q_mean": "critic/target_mean",  # the target, not the critic
            "critic/q_max": "critic/target_max",
            "critic/q_min": "critic/target_min",
        },
        acts=acts() | {"single": lambda draw: candidates(draw("action_noise"))},
    )
