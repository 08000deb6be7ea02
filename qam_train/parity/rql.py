# SPDX-License-Identifier: Apache-2.0
"""Binding of RQL, whose batches are time-major and carry raw rewards."""

from __future__ import annotations

from typing import Any

import torch

from qam_train.agents.rql import RQLAgent, RQLConfig, RQLNoise
from qam_train.config import NetworkConfig
from qam_train.data.dataset import ChunkBatch
from qam_train.data.segments import SegmentWindows, segment_batch
from qam_train.parity.binding import Binding, Draw, Settings, mean_actor_nets
from qam_train.parity.recording import UnsupportedRecordingError

FIELDS = ("observations", "actions", "rewards", "terminals", "masks")


def _config(s: Settings) -> RQLConfig:
    return RQLConfig(
        chunk=s["h"],
        discount=s["discount"],
        rho=s["rho"],
        ema=s["tau"],
        lr=s["lr"],
        batch_size=s["batch_size"],
        critics=s["ensemble_ct"],
        actor=NetworkConfig(tuple(s["actor_hidden_dims"]), s["actor_layer_norm"]),
        critic=NetworkConfig(tuple(s["value_hidden_dims"]), s["layer_norm"]),
        flow_steps=s["flow_steps"],
        alpha=s["alpha"],
        kappa=s["expectile"],
        actor_ema=1.0 - s["ema"],
    )


def _batch(draw: Draw, settings: Settings) -> ChunkBatch:
    window = SegmentWindows(*(draw(name) for name in FIELDS))
    return segment_batch(window, settings["discount"])


def bind_rql(settings: Settings) -> Binding:
    """RQL; case 'explore' plays the flow itself.

    Raises:
        UnsupportedRecordingError: another aggregate of the ensemble.
    """
    if settings["q_agg"] != "mean":
        raise UnsupportedRecordingError(
            f"switch q_agg = {settings['q_agg']} is not implemented, only mean"
        )

    def noise(draw: Draw) -> RQLNoise:
        grid = draw("reverse_time_grid") / settings["flow_steps"]
        uniform = draw("reverse_time_uniform")
        return RQLNoise(
            next_start=draw("next_x0_noise"),
            distance=torch.cat([uniform, grid.to(uniform.dtype)]).unsqueeze(-1),
            flow_start=draw("bc_x0"),
            flow_time=draw("bc_t"),
        )

    names: dict[str, Any] = {
        "actor_loss": "actor/loss",
        "bc_loss": "flow/loss",
        "critic_loss": "value/loss",
        "q": "value/v_mean",
        "total_loss": "loss",
    }
    for kind in ("mean", "max", "min"):
        names |= {f"q_{kind}": f"value/v_{kind}", f"q_pe_{kind}": f"actor/value_{kind}"}
    return Binding(
        agent=RQLAgent,
        config=_config,
        nets={
            "value": "modules_value/value_net",
            "target_value": "modules_target_value/value_net",
        }
        | mean_actor_nets("actor", settings)
        | mean_actor_nets("target_actor", settings),
        noise=noise,
        info=names,
        batch=_batch,
        acts={case: lambda draw: draw("action_noise") for case in ("eval", "explore")},
        players={"explore": lambda agent, s, z: agent.explore(s, z)},
    )
