# SPDX-License-Identifier: Apache-2.0
"""Bindings of the adjoint-matching family: QAM and its heads, TRQAM, SQAM, BAM."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qam_train.agents.adjoint_family import QAMNoise
from qam_train.agents.bam import BAMAgent, BAMConfig
from qam_train.agents.common import Normaliser
from qam_train.agents.flow_bc import FlowBCAgent, FlowNoise
from qam_train.agents.qam import QAMAgent
from qam_train.agents.qam_edit import EditConfig, QAMEditAgent, QAMEditConfig
from qam_train.agents.qam_onestep import QAMOneStepAgent, QAMOneStepConfig
from qam_train.agents.sqam import SQAMAgent, SQAMConfig
from qam_train.agents.trqam import TRQAMAgent, TRQAMConfig
from qam_train.config import AgentConfig
from qam_train.data.dataset import ChunkBatch
from qam_train.dual import DualConfig
from qam_train.networks import Params
from qam_train.parity.binding import (
    CRITIC,
    CRITIC_INFO,
    Binding,
    Draw,
    Metrics,
    Settings,
    candidates,
    flow_numbers,
    gaussian_nets,
    next_actions,
)
from qam_train.parity.cold import playing_the_clone

FLOW_PAIR = {
    **CRITIC,
    "slow": "modules_actor_slow/mlp",
    "fast": "modules_actor_fast/mlp",
    "target_slow": "modules_target_actor_slow/mlp",
}
DEAD = ("modules_target_actor_fast",)
INFO = CRITIC_INFO | {
    "actor/flow_loss": "flow/loss",
    "actor/fast_loss": "adjoint/loss",
    "actor/adj_loss": "adjoint/loss",
    "actor/adj_mean": "adjoint/terminal_mean",
    "actor/adj_std": "adjoint/terminal_std",
    "actor/adj_max": "adjoint/terminal_max",
}
EDIT_INFO = {
    "actor/edit_q_loss": "edit/q_loss",
    "actor/edit_entropy_loss": "edit/entropy_loss",
    "actor/edit_entropy": "edit/entropy",
    "actor/edit_alpha_loss": "edit/alpha_loss",
    "actor/edit_alpha": "edit/alpha",
}
ONE_STEP_INFO = {
    "actor/fql_distill_loss": "one_step/distill_loss",
    "actor/fql_q_loss": "one_step/q_loss",
}


def adjoint_numbers(settings: Settings) -> dict[str, Any]:
    """Official settings of the family by our names."""
    return flow_numbers(settings) | {
        "clip_norm": 1.0 if settings.get("clip_grad", True) else float("inf"),
        "action_clip": 1.0 if settings.get("clip_adj", True) else float("inf"),
    }


def _noise(draw: Draw) -> QAMNoise:
    return QAMNoise(
        next_action=candidates(draw("next_action_noise")),
        flow_start=draw("bc_x0"),
        flow_time=draw("bc_t"),
        rollout_start=draw("sde_x0"),
        rollout=draw("sde_noise")[:-1],  # the last step is deterministic
    )


def edit_noise(draw: Draw) -> Tensor:
    """Flow start and edit normal, as EditHead takes them."""
    return torch.cat([draw("edit_flow_noise"), draw("edit_noise")], -1)


def edit_candidates(draw: Draw, prefix: str = "") -> Tensor:
    """The same for candidates; prefix 'next_' for the next observation."""
    names = (
        ("next_action_noise", "next_edit_noise")
        if prefix
        else ("action_noise", "edit_noise")
    )
    return candidates(torch.cat([draw(name) for name in names], -1))


def _mids() -> dict[str, Any]:
    def path(agent: Any, batch: Any, noise: Any) -> Any:
        s, _ = agent.inputs(batch)
        return agent.adjoint_targets(s, noise)

    def times(agent: Any, batch: Any, noise: Any) -> Tensor:
        found = path(agent, batch, noise)[0]
        return found.times.expand(*found.states.shape[:-1], 1)

    return {
        "next_actions": next_actions,
        "am/xs": lambda *x: path(*x)[0].states,
        "am/adjs": lambda *x: path(*x)[1],
        "am/ts": times,
    }


def _flow_of_head(agent: Any, batch: Any, noise: Any) -> Tensor:
    s, _ = agent.inputs(batch)
    found: Tensor = agent.head_nets().flow(s, noise.head[:, : agent.chunk_width])
    return found


def acts(noise: str = "action_noise") -> dict[str, Any]:
    """The usual acting cases: the best of any number of candidates."""
    return {"n": lambda draw: candidates(draw(noise))}


def bind_qam(settings: Settings) -> Binding:
    """QAM with any combination of its official switches."""
    binding = Binding(
        agent=_switched(QAMAgent, settings),
        config=lambda s: AgentConfig(**adjoint_numbers(s), tau=s["inv_temp"]),
        nets=FLOW_PAIR,
        noise=_noise,
        info=INFO,
        mids=_mids(),
        acts=acts(),
        dead=DEAD,
    )
    if settings.get("edit_scale", 0.0) > 0.0:
        return _with_edit(binding, settings)
    if settings.get("fql_alpha", 0.0) > 0.0:
        return _with_one_step(binding, settings)
    return binding


def _with_edit(binding: Binding, settings: Settings) -> Binding:
    def config(s: Settings) -> QAMEditConfig:
        edit = EditConfig(s["edit_scale"], s["edit_target_entropy_multiplier"])
        return QAMEditConfig(**adjoint_numbers(s), tau=s["inv_temp"], edit=edit)

    return dataclasses.replace(
        binding,
        agent=_switched(QAMEditAgent, settings),
        config=config,
        nets=FLOW_PAIR
        | gaussian_nets("edit", "modules_edit_actor")
        | {"edit_alpha": "modules_edit_alpha"},
        noise=lambda draw: dataclasses.replace(
            _noise(draw),
            next_action=edit_candidates(draw, "next_"),
            head=edit_noise(draw),
        ),
        info=INFO | EDIT_INFO,
        mids=_mids() | {"actor_flow_actions": _flow_of_head},
        acts={"n": edit_candidates},
    )


def _with_one_step(binding: Binding, settings: Settings) -> Binding:
    def config(s: Settings) -> QAMOneStepConfig:
        numbers = adjoint_numbers(s)
        return QAMOneStepConfig(**numbers, tau=s["inv_temp"], distill=s["fql_alpha"])

    return dataclasses.replace(
        binding,
        agent=_switched(QAMOneStepAgent, settings),
        config=config,
        nets=FLOW_PAIR | {"one_step": "modules_one_step_actor/mlp"},
        noise=lambda draw: dataclasses.replace(_noise(draw), head=draw("fql_noise")),
        info=INFO | ONE_STEP_INFO,
        mids=_mids() | {"actor_flow_actions": _flow_of_head},
    )


def with_fields(kind: type[Any], fields: Mapping[str, Any]) -> type[Any]:
    """A class with other class fields; those it does not have must keep what they stand for."""
    changed = {n: v for n, v in fields.items() if getattr(kind, n, v) != v}
    return type(f"Switched{kind.__name__}", (kind,), changed) if changed else kind


def _switched(kind: type[Any], settings: Settings) -> type[Any]:
    """The method with the fields that the official switches name."""
    named = {
        "tuned": "residual" if settings.get("residual", False) else "direct",
        "base": "target_slow" if settings.get("target_actor", True) else "slow",
        "judge": "target_critic" if settings.get("use_target_grad", True) else "critic",
    }
    switched = with_fields(kind, named)
    return playing_the_clone(switched) if settings.get("inv_temp") == 0.0 else switched


def dual_numbers(settings: Settings) -> DualConfig:
    """Official settings of the additive rule."""
    return DualConfig(
        budget=settings["kl_budget"],
        step=settings["eta_lambda"],
        average=settings["kl_ema_coef"],
        cap=settings["kl_clip_coef"],
        scale=settings["lam_scale"],
        smallest=settings["lambda_min"],
        largest=settings["lambda_max"],
    )


def _dual_info(settings: Settings) -> Mapping[str, Any]:
    cap = settings["kl_clip_coef"] * settings["kl_budget"]

    def clipped(metrics: Any) -> float:
        return min(float(metrics["dual/kl_estimate"]), cap)

    return INFO | {
        "actor/path_kl": "dual/kl_estimate",
        "dual/sigma_scale": lambda m: float(m["dual/lambda"]) ** -0.5,
        "dual/kl_estimate_clipped": clipped,
        "dual/kl_clipped": lambda m: float(clipped(m) < float(m["dual/kl_estimate"])),
        "dual/kl_ema": "dual/kl_average",
        "dual/kl_budget": "dual/budget",
    }


def bind_trqam(settings: Settings) -> Binding:
    """TRQAM; its behaviour pre-training is our behaviour-cloned flow."""
    if settings.get("bc_only", False):
        return _pretraining()
    return Binding(
        agent=_switched(TRQAMAgent, settings),
        config=lambda s: TRQAMConfig(**adjoint_numbers(s), dual=dual_numbers(s)),
        nets=FLOW_PAIR,
        noise=_noise,
        info=_dual_info(settings),
        mids=_mids(),
        acts=acts(),
        dead=DEAD,
    )


class Pretraining(TRQAMAgent):
    """TRQAM while its behaviour flow is cloned: FlowBCAgent learns, all other nets stand still.

    Acts with the untrained tuned flow (official code).
    """

    def __init__(self, config: Any, parameters: Params, normaliser: Normaliser) -> None:
        super().__init__(config, parameters, normaliser)
        slow = {n: v for n, v in self.trained.items() if n.startswith("slow/")}
        self.cloning = FlowBCAgent(config, slow, normaliser)

    def loss(self, batch: ChunkBatch, noise: Any) -> tuple[Tensor, Any]:
        """Flow matching alone; the others have no gradient."""
        loss, metrics = self.cloning.loss(batch, noise)
        return loss + 0.0 * sum(v.sum() for v in self.trained.values()), metrics

    def update(
        self, batch: ChunkBatch, noise: Any, learning_rate: float | Tensor | None = None
    ) -> Any:
        """One step of the behaviour flow; neither targets nor trust region move."""
        return self.cloning.update(batch, noise, learning_rate)


def _pretraining() -> Binding:
    return Binding(
        agent=Pretraining,
        config=lambda s: TRQAMConfig(**adjoint_numbers(s), dual=dual_numbers(s)),
        nets=FLOW_PAIR,
        noise=lambda draw: FlowNoise(draw("bc_x0"), draw("bc_t")),
        info={"actor/flow_loss": "flow/loss", "actor/fast_loss": lambda _: 0.0},
        acts=acts(),
        dead=DEAD,
    )


def bind_bam(settings: Settings) -> Binding:
    """BAM."""

    def end(agent: Any, batch: ChunkBatch, noise: Any) -> Tensor:
        found: Tensor = agent.rollout(agent.inputs(batch)[0], noise)[0]
        return found

    def cost(agent: Any, batch: ChunkBatch, noise: Any) -> Tensor:
        found: Tensor = agent.rollout(agent.inputs(batch)[0], noise)[1]
        return found

    return Binding(
        agent=_switched(BAMAgent, settings),
        config=lambda s: BAMConfig(**adjoint_numbers(s), tau=s["inv_temp"]),
        nets=FLOW_PAIR,
        noise=_noise,
        info=CRITIC_INFO
        | {
            "actor/flow_loss": "flow/loss",
            "actor/bam_loss": "bam/loss",
            "actor/bc_loss": "bam/control_cost",
        },
        mids={"next_actions": next_actions, "sde/x_end": end, "sde/bc_loss": cost},
        acts=acts(),
        dead=DEAD,
    )


def bind_sqam(settings: Settings) -> Binding:
    """SQAM."""
    if settings.get("bc_only", False):
        return _pretraining()

    def config(s: Settings) -> SQAMConfig:
        return SQAMConfig(
            **adjoint_numbers(s),
            dual=dual_numbers(s),
            bridges=s["n_bridge"],
            penalty=s["gap_reg_coef"],
        )

    def noise(draw: Draw) -> QAMNoise:
        return QAMNoise(
            next_action=candidates(draw("next_action_noise")),
            flow_start=draw("bc_x0"),
            flow_time=draw("bc_t"),
            rollout_start=draw("ode_x0"),
            rollout=draw("bridge_eps"),
        )

    weight, count = settings["gap_reg_coef"], settings["n_bridge"]

    def mean(m: Metrics) -> float:
        return float(m["adjoint/terminal_mean"]) * (count + 1) / (2 * count)

    def spread(m: Metrics) -> float:  # over all bridge states, g = t g_1
        terminal = m["adjoint/terminal_mean"] ** 2 + m["adjoint/terminal_std"] ** 2
        square = float(terminal) * (count + 1) * (2 * count + 1) / (6 * count**2)
        return float((square - mean(m) ** 2) ** 0.5)

    return Binding(
        agent=_switched(SQAMAgent, settings),
        config=config,
        nets=FLOW_PAIR,
        noise=noise,
        info=dict(_dual_info(settings))
        | {
            "actor/adj_mean": mean,
            "actor/adj_std": spread,
            "critic/gap_reg_term": "critic/value_gap",
            "critic/critic_loss_total": lambda m: (
                float(m["critic/td_loss"])
                + weight * float(m.get("critic/value_gap", 0.0))
            ),
        },
        mids=_mids(),
        acts=acts(),
        dead=DEAD,
    )
