# SPDX-License-Identifier: Apache-2.0
"""The recorded 20-update TRQAM run, and the dual rule alone on made-up sequences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from qam_train import dual
from qam_train.agents.base import Agent
from qam_train.agents.common import Normaliser
from qam_train.parity.binding import Binding
from qam_train.parity.family import dual_numbers
from qam_train.parity.recording import (
    PRECISIONS,
    Comparison,
    Recording,
    largest,
    relative,
)
from qam_train.parity.updates import compare_parameters, gradient_info, gradients_of


def compare_run(recording: Recording, binding: Binding) -> Iterator[Comparison]:
    """Consecutive updates: every info entry and the dual state, then all parameters."""
    agent = _agent(recording, binding)
    reference = recording.below("f64/info")
    updates = len(next(iter(reference.values())))
    errors: dict[str, list[float]] = {name: [] for name in reference}
    for step in range(updates):
        found = _one_update(recording, binding, agent, step)
        for name, values in reference.items():
            errors[name].append(relative(found(name), float(values[step])))
    for name, found_errors in errors.items():
        yield recording.row(f"20 updates: {name}", largest(found_errors))
    after = {name: value.detach().double() for name, value in agent.parameters.items()}
    last = recording.parameters("f64/params_after_20", binding.nets, exact=True)
    yield from compare_parameters(recording, after, last, f"{updates} updates")


def _agent(recording: Recording, binding: Binding) -> Any:
    size = recording.array("batch/observations").shape[-1]
    dtype = PRECISIONS[recording.precision]
    return binding.agent(
        binding.config(recording.settings()),
        recording.parameters("params0", binding.nets),
        Normaliser(torch.zeros(size, dtype=dtype), torch.ones(size, dtype=dtype)),
    )


def _one_update(
    recording: Recording, binding: Binding, agent: Agent[Any, Any], step: int
) -> Any:
    """Update number `step`; returns official info name -> our value."""
    settings = recording.settings()
    batch = binding.batch(lambda n: recording.tensor(f"batch/{n}")[step], settings)
    noise = binding.noise(lambda n: recording.tensor(f"noise/{n}")[step])
    gradients = gradients_of(agent, agent.loss(batch, noise)[0])
    state = vars(agent)["dual"]
    before = {
        "dual/lam_before": float(state.multiplier),
        "dual/kl_ema_before": float(state.kl),
    }
    metrics = agent.update(batch, noise)
    after = {"dual/lam_after": float(state.multiplier)}
    ours = gradient_info(gradients) | before | after

    def value(name: str) -> float:
        if name in ours:
            return ours[name]
        source = binding.info.get(name, name)
        return source(metrics) if callable(source) else float(metrics[source])

    return value


def compare_rule(recording: Recording) -> Iterator[Comparison]:
    """The additive rule from m = 1, D_bar = 0 on sequences of KL estimates."""
    configs = json.loads(str(recording.array("f64/dual_configs")))
    base = recording.settings()
    zero = torch.zeros((), dtype=PRECISIONS[recording.precision])
    for name, changes in configs.items():
        config = dual_numbers(base | changes)
        for sequence in recording.groups(f"dual/{name}"):
            state = dual.initial_state(config, zero)
            found: dict[str, list[float]] = {
                k: [] for k in ("lam", "kl_ema", "lambda_used", "sigma_scale")
            }
            for kl in recording.tensor(f"dual/{name}/{sequence}/kl_estimate"):
                state = dual.advance(config, state, kl, zero)
                used = dual.temperature(config, state, zero)
                values = (state.multiplier, state.kl, used, used.rsqrt())
                for key, value in zip(found, values, strict=True):
                    found[key].append(float(value))
            reference = recording.below(f"dual/{name}/{sequence}/f64")
            error = largest(
                float(np.abs(np.array(found[key]) / values - 1.0).max())
                if np.all(values != 0)
                else float(np.abs(np.array(found[key]) - values).max())
                for key, values in reference.items()
            )
            yield recording.row(f"dual rule: {name}, {sequence}", error)
