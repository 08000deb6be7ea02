# SPDX-License-Identifier: Apache-2.0
"""QAM against its recordings: losses, gradients, adjoints, parameters and actions of two updates."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from qam_train.agents.common import Normaliser
from qam_train.agents.qam import QAMAgent, QAMNoise
from qam_train.config import AgentConfig, NetworkConfig
from qam_train.data.dataset import ChunkBatch
from qam_train.networks import Params
from qam_train.parity.recording import (
    PRECISIONS,
    Comparison,
    Recording,
    absolute,
    largest,
    relative,
    scaled,
)

NETS = {
    "critic": "modules_critic/value_net",
    "slow": "modules_actor_slow/mlp",
    "fast": "modules_actor_fast/mlp",
    "target_critic": "modules_target_critic/value_net",
    "target_slow": "modules_target_actor_slow/mlp",
}
INFO = {
    "critic/critic_loss": "critic/td_loss",
    "critic/q_mean": "critic/q_mean",
    "critic/q_max": "critic/q_max",
    "critic/q_min": "critic/q_min",
    "actor/flow_loss": "flow/loss",
    "actor/fast_loss": "adjoint/loss",
    "actor/adj_loss": "adjoint/loss",
    "actor/adj_mean": "adjoint/terminal_mean",
    "actor/adj_std": "adjoint/terminal_std",
    "actor/adj_max": "adjoint/terminal_max",
}
# Switches of the official configuration and the values the QAM agent here stands for.
FIXED = {
    "best_of_n": 1,
    "edit_scale": 0.0,
    "fql_alpha": 0.0,
    "residual": False,
    "target_actor": True,
    "use_target_grad": True,
}


def supported(recording: Recording) -> str | None:
    """Why QAMAgent does not stand for a recording; None where it does."""
    settings = recording.settings()
    if (
        settings.get("agent_name") != "qam"
        or "params0/modules_critic/value_net/Dense_0/bias" not in recording
    ):
        return f"method '{settings.get('agent_name', recording.method)}' is not implemented"
    for name, value in FIXED.items():
        if settings[name] != value:
            return f"switch {name} = {settings[name]} is not implemented, only {value}"
    return None


def agent_config(recording: Recording) -> AgentConfig:
    """The recording's official configuration as the numbers of our agent."""
    settings = recording.settings()
    horizon = settings["horizon_length"]
    return AgentConfig(
        flow_steps=settings["flow_steps"],
        chunk=horizon if settings["action_chunking"] else 1,
        horizon=horizon,
        discount=settings["discount"],
        rho=settings["rho"],
        tau=settings["inv_temp"],
        ema=settings["tau"],
        lr=settings["lr"],
        clip_norm=1.0 if settings["clip_grad"] else float("inf"),
        action_clip=1.0 if settings["clip_adj"] else float("inf"),
        batch_size=settings["batch_size"],
        critics=settings["num_qs"],
        actor=NetworkConfig(
            tuple(settings["actor_hidden_dims"]), settings["actor_layer_norm"]
        ),
        critic=NetworkConfig(
            tuple(settings["value_hidden_dims"]), settings["value_layer_norm"]
        ),
    )


def compare_qam(recording: Recording) -> Iterator[Comparison]:
    """Two consecutive updates and the acting path, everything fed from the recording."""
    size = recording.array("act/observations").shape[-1]
    dtype = PRECISIONS[recording.precision]
    identity = Normaliser(torch.zeros(size, dtype=dtype), torch.ones(size, dtype=dtype))
    agent = QAMAgent(
        agent_config(recording), recording.parameters("params0", NETS), identity
    )
    for update in ("u1", "u2"):
        batch, noise = _batch(recording, update), _noise(recording, update)
        yield from _compare_loss(recording, agent, batch, noise, update)
        yield from _compare_step(recording, agent, batch, noise, update)
    start = recording.tensor("act/n1/noise/action_noise")[:, 0]
    actions = agent.act(recording.tensor("act/observations"), start).flatten(1)
    reference = recording.array("act/n1/f64/actions")
    yield recording.row("actions: best of 1", absolute(actions, reference))


def _compare_loss(
    recording: Recording,
    agent: QAMAgent,
    batch: ChunkBatch,
    noise: QAMNoise,
    update: str,
) -> Iterator[Comparison]:
    """Intermediate arrays, loss, metrics and gradients before the step."""
    prefix = f"{update}/f64"
    (states, adjoints, _), _ = agent.adjoint_targets(batch.observations, noise)
    next_actions = agent.act(batch.next_observations, noise.next_action).flatten(1)
    arrays = {"next_actions": next_actions, "am/xs": states, "am/adjs": adjoints}
    errors = [
        scaled(value, recording.array(f"{prefix}/mid/{name}"))
        for name, value in arrays.items()
    ]
    yield recording.row(f"intermediates: {update}", largest(errors))

    loss, metrics = agent.loss(batch, noise)
    names = list(agent.trained)
    gradients = dict(
        zip(names, torch.autograd.grad(loss, list(agent.trained.values())), strict=True)
    )
    error = relative(float(loss.detach()), float(recording.array(f"{prefix}/loss")))
    yield recording.row(f"loss: {update}", error)
    ours = {name: float(metrics[INFO[name]]) for name in INFO} | _gradient_info(
        gradients
    )
    info = recording.scalars(f"{prefix}/info/")
    yield recording.row(
        f"info: {update}",
        largest(relative(ours[name], value) for name, value in info.items()),
    )

    reference = recording.parameters(f"{prefix}/grad", NETS, exact=True)
    norm = float(recording.array(f"{prefix}/grad_global_norm"))
    errors = [
        absolute(gradients[name], value.numpy()) / norm
        for name, value in reference.items()
    ]
    yield recording.row(f"gradients: {update}", largest(errors))
    absent = [
        float(gradients[name].abs().max()) for name in names if name not in reference
    ]
    yield recording.row(f"untouched: gradients of {update}", largest(absent))


def _compare_step(
    recording: Recording,
    agent: QAMAgent,
    batch: ChunkBatch,
    noise: QAMNoise,
    update: str,
) -> Iterator[Comparison]:
    """Parameters and targets after the step."""
    before = {name: value.detach().clone() for name, value in agent.parameters.items()}
    agent.update(batch, noise)
    after = {name: value.detach().double() for name, value in agent.parameters.items()}
    reference = recording.parameters(f"{update}/f64/params", NETS, exact=True)
    errors = torch.cat(
        [(after[name] - value).abs().flatten() for name, value in reference.items()]
    )
    yield recording.row(
        f"parameters, 99%: after {update}", float(errors.quantile(0.99))
    )
    yield recording.row(f"parameters, all: after {update}", float(errors.max()))
    still = [
        float((after[name] - before[name]).abs().max())
        for name in before
        if name not in reference
    ]
    yield recording.row(f"untouched: parameters after {update}", largest(still))


def _batch(recording: Recording, update: str) -> ChunkBatch:
    def field(name: str) -> Tensor:
        return recording.tensor(f"{update}/batch/{name}")

    return ChunkBatch(
        observations=field("observations"),
        actions=field("actions"),
        rewards=field("rewards")[:, -1],
        masks=field("masks")[:, -1],
        valid=field("valid")[:, -1],
        next_observations=field("next_observations")[:, -1],
    )


def _noise(recording: Recording, update: str) -> QAMNoise:
    def draw(name: str) -> Tensor:
        return recording.tensor(f"{update}/noise/{name}")

    return QAMNoise(
        next_action=draw("next_action_noise")[:, 0],
        flow_start=draw("bc_x0"),
        flow_time=draw("bc_t"),
        rollout_start=draw("sde_x0"),
        rollout=draw("sde_noise")[
            :-1
        ],  # the last draw is not used: that step is deterministic
    )


def _gradient_info(gradients: Params) -> dict[str, float]:
    """Official gradient statistics; its 'norm' is the sum of the norms of the single arrays."""
    values = list(gradients.values())
    return {
        "grad/max": max(float(g.max()) for g in values),
        "grad/min": min(float(g.min()) for g in values),
        "grad/norm": sum(float(torch.linalg.vector_norm(g)) for g in values),
    }
