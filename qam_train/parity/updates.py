# SPDX-License-Identifier: Apache-2.0
"""Two recorded updates and the acting path of any method, through its binding."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qam_train.agents.base import Agent
from qam_train.networks import Params
from qam_train.parity.binding import Binding, Draw
from qam_train.parity.recording import (
    PRECISIONS,
    Comparison,
    Recording,
    absolute,
    largest,
    relative,
    scaled,
)


def compare_updates(recording: Recording, binding: Binding) -> Iterator[Comparison]:
    """Everything of the updates u1, u2, ..., fed from the recording, then acting."""
    agent = binding.build(recording)
    yield recording.row("untouched: nets not bound", _unbound(recording, binding))
    for update in _updates(recording):
        batch = binding.batch(
            partial(recorded, recording, f"{update}/batch"), recording.settings()
        )
        noise = binding.noise(partial(recorded, recording, f"{update}/noise"))
        yield from _compare_loss(recording, binding, agent, batch, noise, update)
        yield from _compare_step(recording, binding, agent, batch, noise, update)
    yield from compare_acting(recording, binding, agent)


def _updates(recording: Recording) -> list[str]:
    return [f"u{number}" for number in recording.numbers("u")]


def compare_acting(
    recording: Recording, binding: Binding, agent: Any
) -> Iterator[Comparison]:
    """Actions of every recorded case, with the parameters after the last update."""
    observations = recording.tensor("act/observations")
    for case in recording.groups("act"):
        if case == "observations":
            continue
        noise = binding.acting(case)
        if noise is None:
            yield not_known(recording, f"actions: {case}")
            continue
        reference = recording.array(f"act/{case}/f64/actions")
        draw: Draw = partial(recorded, recording, f"act/{case}/noise")
        play = binding.players.get(case, lambda agent, s, z: agent.act(s, z))
        actions = play(agent, observations, noise(draw))
        flat = reference.reshape(reference.shape[0], -1)
        yield recording.row(f"actions: {case}", absolute(actions.flatten(1), flat))


def not_known(recording: Recording, quantity: str) -> Comparison:
    """The failing row of what is recorded and stands for nothing here."""
    return recording.row(f"{quantity}, not known", float("inf"))


def recorded(recording: Recording, prefix: str, name: str) -> Tensor:
    """One recorded array; whole numbers stay whole."""
    array = recording.array(f"{prefix}/{name}")
    if array.dtype.kind == "i":
        return torch.from_numpy(array).long()
    return torch.from_numpy(array).to(PRECISIONS[recording.precision])


def _unbound(recording: Recording, binding: Binding) -> float:
    """0 where every recorded array is bound, or belongs to a dead net or layer: never moved."""
    bound = set(recording.bound_names("params0", binding.nets))
    everything = recording.below("params0")
    known = {name.split("/")[0] for name in binding.nets.values()} | set(binding.dead)
    if {name.split("/")[0] for name in everything} - known:
        return float("inf")
    errors = [0.0]
    for name in everything.keys() - bound:
        for update in _updates(recording):
            gradient = recording.below(f"{update}/f64/grad").get(name)
            after = recording.below(f"{update}/f64/params").get(name)
            if gradient is not None:
                errors.append(float(np.abs(gradient).max()))
            averaged = name.startswith(
                "modules_target_"
            )  # follows a layer that is dead
            if after is not None and not averaged:
                errors.append(float(np.abs(after - everything[name]).max()))
    return largest(errors)


def _compare_loss(
    recording: Recording,
    binding: Binding,
    agent: Agent[Any, Any],
    batch: Any,
    noise: Any,
    update: str,
) -> Iterator[Comparison]:
    """Intermediate arrays, loss and gradients before the step."""
    prefix = f"{update}/f64"
    mids = recording.below(f"{prefix}/mid")
    for name in mids.keys() - binding.mids.keys():
        yield not_known(recording, f"intermediates: {name} of {update}")
    known = [name for name in mids if name in binding.mids]
    if known:
        errors = [
            scaled(binding.mids[name](agent, batch, noise), mids[name])
            for name in known
        ]
        row = recording.row(f"intermediates: {update}", largest(errors))
        if recording.precision == "float32":
            wider = row.tolerance * binding.intermediates_factor
            row = dataclasses.replace(row, tolerance=wider)
        yield row

    loss, _ = agent.loss(batch, noise)
    error = relative(float(loss.detach()), float(recording.array(f"{prefix}/loss")))
    yield recording.row(f"loss: {update}", error)
    gradients = gradients_of(agent, loss)
    reference = recording.parameters(f"{prefix}/grad", binding.nets, exact=True)
    norm = float(recording.array(f"{prefix}/grad_global_norm"))
    errors = [
        absolute(gradients[name], value.numpy()) / norm
        if name in gradients  # a net that we do not train has none
        else float("inf")
        for name, value in reference.items()
    ]
    yield recording.row(f"gradients: {update}", largest(errors))
    absent = [
        float(value.abs().max())
        for name, value in gradients.items()
        if name not in reference
    ]
    yield recording.row(f"untouched: gradients of {update}", largest(absent))


def gradients_of(agent: Agent[Any, Any], loss: Tensor) -> Params:
    """Gradients before the clip, by name."""
    names = list(agent.trained)
    found = torch.autograd.grad(loss, list(agent.trained.values()), retain_graph=True)
    return dict(zip(names, found, strict=True))


def _compare_step(
    recording: Recording,
    binding: Binding,
    agent: Agent[Any, Any],
    batch: Any,
    noise: Any,
    update: str,
) -> Iterator[Comparison]:
    """Info entries, dual state, parameters and targets after the step."""
    before = {name: value.detach().clone() for name, value in agent.parameters.items()}
    gradients = gradients_of(agent, agent.loss(batch, noise)[0])
    yield from _compare_dual(recording, agent, update, "before")
    metrics = agent.update(batch, noise)
    yield from _compare_info(recording, binding, metrics, gradients, update)
    yield from _compare_dual(recording, agent, update, "after")
    norm = float(recording.array(f"{update}/f64/grad_global_norm"))
    error = relative(float(metrics["grad/global_norm"]), norm)
    yield recording.row(f"info: global norm of {update}", error)
    after = {name: value.detach().double() for name, value in agent.parameters.items()}
    reference = recording.parameters(f"{update}/f64/params", binding.nets, exact=True)
    yield from compare_parameters(recording, after, reference, update)
    still = [
        float((after[name] - before[name]).abs().max())
        for name in before
        if name not in reference
    ]
    yield recording.row(f"untouched: parameters after {update}", largest(still))


def compare_parameters(
    recording: Recording, after: Params, reference: Params, when: str
) -> Iterator[Comparison]:
    """Absolute differences, 99 % of the entries and all of them."""
    if not reference:
        yield not_known(recording, f"parameters, all: none recorded after {when}")
        return
    errors = torch.cat(
        [(after[name] - value).abs().flatten() for name, value in reference.items()]
    )
    quantile = float(np.quantile(errors.numpy(), 0.99))  # torch's stops at 16 million
    yield recording.row(f"parameters, 99%: after {when}", quantile)
    yield recording.row(f"parameters, all: after {when}", float(errors.max()))


def _compare_info(
    recording: Recording,
    binding: Binding,
    metrics: Mapping[str, Tensor],
    gradients: Params,
    update: str,
) -> Iterator[Comparison]:
    """Every entry of the official info dictionary."""
    ours = gradient_info(gradients)
    errors, separate = [], []
    for name, value in recording.scalars(f"{update}/f64/info/").items():
        found = binding.info_value(metrics, name, ours)
        if found is None:
            separate.append(not_known(recording, f"info: {name} of {update}"))
            continue
        error = relative(found, value)
        if recording.precision == "float32" and name in binding.info_float32:
            row = recording.row(f"info: {name} of {update}", error)
            allowed = binding.info_float32[name]
            separate.append(dataclasses.replace(row, tolerance=allowed))
        else:
            errors.append(error)
    yield recording.row(f"info: {update}", largest(errors))
    yield from separate


def _compare_dual(
    recording: Recording, agent: Any, update: str, when: str
) -> Iterator[Comparison]:
    """Multiplier and averaged KL of the trust region."""
    prefix = f"{update}/f64/dual"
    if f"{prefix}/lam_{when}" not in recording:
        return
    state = agent.dual
    errors = [
        relative(float(value), float(recording.array(f"{prefix}/{name}_{when}")))
        for name, value in (("lam", state.multiplier), ("kl_ema", state.kl))
    ]
    yield recording.row(f"info: dual {when} {update}", largest(errors))


def gradient_info(gradients: Params) -> dict[str, float]:
    """Official gradient statistics; its 'norm' is the sum of the norms of the single arrays."""
    values = list(gradients.values())
    return {
        "grad/max": max(float(g.max()) for g in values),
        "grad/min": min(float(g.min()) for g in values),
        "grad/norm": sum(float(torch.linalg.vector_norm(g)) for g in values),
    }
