# SPDX-License-Identifier: Apache-2.0
"""A recorded run of consecutive updates, and the dual rule alone on made-up sequences."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from qam_train import dual
from qam_train.agents.base import Agent
from qam_train.parity.binding import Binding, Draw
from qam_train.parity.family import dual_numbers
from qam_train.parity.recording import (
    PRECISIONS,
    Comparison,
    Recording,
    largest,
    relative,
)
from qam_train.parity.updates import (
    compare_parameters,
    gradient_info,
    gradients_of,
    not_known,
    recorded,
)

AFTER = "f64/params_after_"  # and the number of updates
OWED = {
    "lam",
    "kl_ema",
}  # of a recorded sequence of the dual rule, whatever else is there


def compare_run(recording: Recording, binding: Binding) -> Iterator[Comparison]:
    """Consecutive updates: every info entry, the dual state, all parameters where recorded."""
    agent = binding.build(recording, "batch")
    reference = recording.below("f64/info")
    updates = len(recording.array("batch/observations"))
    errors: dict[str, list[float]] = {name: [] for name in reference}
    unknown = {n for n, v in reference.items() if not updates or len(v) != updates}
    after: list[Comparison] = []
    for step in range(updates):
        found = _one_update(recording, binding, agent, step)
        for name, values in reference.items():
            value = found(name)
            if value is None:
                unknown.add(name)
            elif name not in unknown:
                errors[name].append(relative(value, float(values[step])))
        after += _parameters(recording, binding, agent, step + 1)
    for name, found_errors in errors.items():
        if name in unknown:
            yield not_known(recording, f"updates: {name}")
        else:
            yield recording.row(f"updates: {name}", largest(found_errors))
    yield from after or [not_known(recording, f"parameters, all: {AFTER}{updates}")]


def _parameters(
    recording: Recording, binding: Binding, agent: Agent[Any, Any], count: int
) -> Iterator[Comparison]:
    """All parameters after so many updates, where they are recorded."""
    if count in recording.numbers(AFTER):
        ours = {
            name: value.detach().double() for name, value in agent.parameters.items()
        }
        theirs = recording.parameters(f"{AFTER}{count}", binding.nets, exact=True)
        yield from compare_parameters(recording, ours, theirs, f"{count} updates")


def _one_update(
    recording: Recording, binding: Binding, agent: Agent[Any, Any], step: int
) -> Callable[[str], float | None]:
    """Update number `step`; returns official info name -> our value, None where not known."""

    def draw(part: str) -> Draw:
        return lambda name: recorded(recording, part, name)[step]

    batch = binding.batch(draw("batch"), recording.settings())
    noise = binding.noise(draw("noise"))
    gradients = gradients_of(agent, agent.loss(batch, noise)[0])
    before = _dual_info(agent, "before")
    metrics = agent.update(batch, noise)
    ours = gradient_info(gradients) | before | _dual_info(agent, "after")
    return lambda name: binding.info_value(metrics, name, ours)


def _dual_info(agent: Agent[Any, Any], when: str) -> dict[str, float]:
    """Multiplier and averaged KL by their official names; empty without a trust region."""
    state = getattr(agent, "dual", None)
    if state is None:
        return {}
    numbers = {"lam": state.multiplier, "kl_ema": state.kl}
    return {f"dual/{name}_{when}": float(value) for name, value in numbers.items()}


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
            label = f"dual rule: {name}, {sequence}"
            for key in (reference.keys() - found.keys()) | (OWED - reference.keys()):
                yield not_known(recording, f"{label}, {key}")
            error = largest(
                _relative(np.array(found[key]), reference[key])
                for key in found.keys() & reference.keys()
            )
            yield recording.row(label, error)


def _relative(found: npt.NDArray[Any], reference: npt.NDArray[Any]) -> float:
    """Largest relative difference, absolute where a reference entry is 0; infinite if sizes differ."""
    if found.shape != reference.shape:
        return float("inf")
    size = np.abs(reference) if np.all(reference != 0) else 1.0
    return float((np.abs(found - reference) / size).max())
