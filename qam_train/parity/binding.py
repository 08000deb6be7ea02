# SPDX-License-Identifier: Apache-2.0
"""How one of our methods stands for a recording: names of nets, noise, metrics, intermediates."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qam_train.agents.base import Agent
from qam_train.agents.common import Normaliser
from qam_train.config import NetworkConfig
from qam_train.data.dataset import ChunkBatch
from qam_train.parity.recording import PRECISIONS, Recording

Settings = dict[str, Any]
Draw = Callable[[str], Tensor]  # official name of a draw -> values
Metrics = Mapping[str, Tensor]
Player = Callable[[Any, Tensor, Tensor], Tensor]  # agent, observations, noise
Intermediate = Callable[[Any, ChunkBatch, Any], Tensor]

CRITIC = {
    "critic": "modules_critic/value_net",
    "target_critic": "modules_target_critic/value_net",
}
CRITIC_INFO = {
    "critic/critic_loss": "critic/td_loss",
    "critic/q_mean": "critic/q_mean",
    "critic/q_max": "critic/q_max",
    "critic/q_min": "critic/q_min",
}


def chunk_batch(draw: Draw, settings: Settings) -> ChunkBatch:  # noqa: ARG001
    """A batch of the official chunk sampler; losses use the last step."""
    return ChunkBatch(
        observations=draw("observations"),
        actions=draw("actions"),
        rewards=draw("rewards")[:, -1],
        masks=draw("masks")[:, -1],
        valid=draw("valid")[:, -1],
        next_observations=draw("next_observations")[:, -1],
    )


@dataclass(frozen=True)
class Binding:
    """One method's dictionary between the recording and us.

    Args:
        agent: our class.
        config: official settings -> our numbers.
        nets: our name of each net to the official one.
        noise: reads the draws of one update.
        info: official info entry -> name of our metric, or how it is made from our metrics.
        mids: official intermediate -> how it is computed (agent, batch, noise).
        acts: recorded acting case -> noise of act(); leading candidates axis where N > 1. Case 'n'
            stands for the best of any number: n1, n4, ...
        players: what plays a case, where that is not act().
        dead: official networks that are never read nor changed.
        batch: reads one batch.
        intermediates_factor: of the float32 tolerance, where the official sampler divides by a
            small number at every step.
        info_float32: official info entry -> its own float32 tolerance.
    """

    agent: type[Agent[Any, Any]]
    config: Callable[[Settings], Any]
    nets: Mapping[str, str]
    noise: Callable[[Draw], Any]
    info: Mapping[str, str | Callable[[Metrics], float]]
    mids: Mapping[str, Intermediate] = field(default_factory=dict)
    acts: Mapping[str, Callable[[Draw], Tensor]] = field(default_factory=dict)
    players: Mapping[str, Player] = field(default_factory=dict)
    dead: tuple[str, ...] = ()
    batch: Callable[[Draw, Settings], ChunkBatch] = chunk_batch
    intermediates_factor: float = 1.0
    info_float32: Mapping[str, float] = field(default_factory=dict)

    def acting(self, case: str) -> Callable[[Draw], Tensor] | None:
        """Noise of a recorded acting case; None: not known."""
        return self.acts.get("n" if re.fullmatch(r"n\d+", case) else case)

    def info_value(
        self, metrics: Metrics, name: str, known: Mapping[str, float]
    ) -> float | None:
        """Our value of an official info entry; None: not known.

        Args:
            metrics: ours of the update.
            name: official name.
            known: entries that are no metrics of the method.
        """
        if name in known:
            return known[name]
        source = self.info.get(name, name)
        if callable(source):
            return source(metrics)
        return float(metrics[source]) if source in metrics else None

    def build(self, recording: Recording, first: str = "u1/batch") -> Agent[Any, Any]:
        """Our agent with the recorded parameters; `first` is where a batch lies."""
        dtype = PRECISIONS[recording.precision]
        size = recording.array(f"{first}/observations").shape[-1]
        return self.agent(
            self.config(recording.settings()),
            recording.parameters("params0", self.nets),
            Normaliser(torch.zeros(size, dtype=dtype), torch.ones(size, dtype=dtype)),
        )


def common(settings: Settings) -> dict[str, Any]:
    """Numbers every official configuration has, by our names."""
    horizon = settings["horizon_length"]
    return {
        "chunk": horizon if settings["action_chunking"] else 1,
        "horizon": horizon,
        "discount": settings["discount"],
        "rho": settings["rho"],
        "ema": settings["tau"],
        "lr": settings["lr"],
        "batch_size": settings["batch_size"],
        "critics": settings["num_qs"],
        "actor": NetworkConfig(
            tuple(settings["actor_hidden_dims"]), settings["actor_layer_norm"]
        ),
        "critic": NetworkConfig(
            tuple(settings["value_hidden_dims"]), settings["value_layer_norm"]
        ),
    }


def flow_numbers(settings: Settings) -> dict[str, Any]:
    """The same with the flow's numbers."""
    return common(settings) | {
        "flow_steps": settings["flow_steps"],
        "best_of": settings.get("best_of_n", 1),
    }


def candidates(draw: Tensor) -> Tensor:
    """Recorded candidates (B, N, D) as our (N, B, D); (B, D) stays."""
    return draw.transpose(0, 1) if draw.dim() == 3 else draw


def gaussian_nets(ours: str, theirs: str) -> dict[str, str]:
    """Nets of a tanh-Gaussian head."""
    return {
        f"{ours}/trunk": f"{theirs}/MLP_0",
        f"{ours}/mean": f"{theirs}/OutputDenseMean",
        f"{ours}/log_std": f"{theirs}/OutputDenseLogStd",
    }


def mean_actor_nets(name: str, settings: Settings) -> dict[str, str]:
    """An actor whose activated trunk and mean layer are one MLP of ours."""
    last = len(settings["actor_hidden_dims"])
    return {
        name: f"modules_{name}/actor_net",
        f"{name}/{last}": f"modules_{name}/mean_net",
    }


def next_actions(agent: Any, batch: ChunkBatch, noise: Any) -> Tensor:
    """Clipped actions of the target."""
    found: Tensor = agent.next_action(batch, noise.next_action)
    return found
