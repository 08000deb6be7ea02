# SPDX-License-Identifier: Apache-2.0
"""Recordings of the same form with other sizes are read, and float32 agrees with float64 there.

The references are our own float64 numbers, so this says nothing about the official code: it shows
that no size is written down anywhere, and that float32 stays inside the tolerances elsewhere too.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from qam_train.parity import compare, updates
from qam_train.parity.bindings import binding_of
from qam_train.parity.recording import Recording

HERE = Path(__file__).parent
ROWS, OBSERVATION, ACTION, CHUNK, STEPS, CRITICS, ACTED = 22, 9, 3, 2, 7, 2, 5
SIZES = {
    "batch_size": ROWS,
    "actor_hidden_dims": [20, 12, 16],
    "value_hidden_dims": [14, 18, 10],
    "horizon_length": CHUNK,
    "h": CHUNK,
    "num_qs": CRITICS,
    "ensemble_ct": CRITICS,
    "flow_steps": STEPS,
    "diffusion_steps": STEPS,
    "n_bridge": 5,
    "time_dim": 10,
}
NAMES = sorted(
    path.stem
    for path in HERE.glob("*.npz")
    if path.stem not in ("sample_sequence", "trqam_20")
)


def _noise(name, old, rows, width, rng):
    """Draws of the same kind in the new sizes."""
    steps = {"sde_noise": STEPS, "ddpm_noise": STEPS, "bridge_eps": SIZES["n_bridge"]}
    kind = name.removeprefix("next_")
    if name in ("bc_t", "noisy_t"):
        return rng.random((rows, 1))
    if name == "ddpm_t":
        return rng.integers(1, STEPS + 1, rows).astype(np.int32)
    if name == "reverse_time_uniform":
        return rng.random(rows // 2)
    if name == "reverse_time_grid":
        return rng.integers(0, STEPS + 1, rows // 2).astype(np.int32)
    if kind in steps:
        return rng.standard_normal((steps[kind], rows, width))
    return rng.standard_normal((rows, *old.shape[1:-1], width))


def _batch(rql, rng):
    lead = (CHUNK + 1, ROWS) if rql else (ROWS, CHUNK)
    start = lead if rql else (ROWS,)
    flags = {n: rng.integers(0, 2, lead) for n in ("masks", "terminals", "valid")}
    if rql:  # a chunk that ends has repeated rows behind
        flags["terminals"] = np.maximum.accumulate(flags["terminals"], axis=0)
    return flags | {
        "observations": rng.standard_normal((*start, OBSERVATION)),
        "actions": rng.uniform(-1, 1, (*lead, ACTION)),
        "rewards": -rng.random(lead),
        "next_observations": rng.standard_normal((*lead, OBSERVATION)),
    }


def _inputs(old, rng):
    """Settings, batches, draws and parameters in the new sizes."""
    settings = {k: SIZES.get(k, v) for k, v in old.settings().items()}
    width = ACTION * (CHUNK if settings.get("action_chunking", True) else 1)
    arrays = {"meta": np.array("{}"), "config": np.array(json.dumps(settings))}
    arrays["act/observations"] = rng.standard_normal((ACTED, OBSERVATION))
    for update in ("u1", "u2"):
        for name, value in _batch(settings["agent_name"] == "rql", rng).items():
            arrays[f"{update}/batch/{name}"] = value
    for prefix in ("u1", "u2", *(f"act/{case}" for case in old.groups("act"))):
        rows = ACTED if prefix.startswith("act") else ROWS
        for name, value in old.below(f"{prefix}/noise").items():
            arrays[f"{prefix}/noise/{name}"] = _noise(name, value, rows, width, rng)
    binding = binding_of(old)
    official = {o: n for n, o in old.bound_names("params0", binding.nets).items()}
    drawn = binding.agent.init(
        binding.config(settings), OBSERVATION, ACTION, torch.Generator().manual_seed(1)
    )
    for ours, value in drawn.parameters.items():
        shift = 0.05 * rng.standard_normal(value.shape)
        arrays[f"params0/{official[ours]}"] = value.detach().numpy() + shift
    single = {
        k: v.astype(np.float32) for k, v in arrays.items() if v.dtype == np.float64
    }
    return arrays | single, official


def _write_update(recording, binding, agent, old, update, official):
    """What one update gives, as a recording holds it."""
    values = partial(updates._values, recording)
    batch = binding.batch(partial(values, f"{update}/batch"), recording.settings())
    noise = binding.noise(partial(values, f"{update}/noise"))
    found = {
        f"mid/{name}": binding.mids[name](agent, batch, noise).detach().numpy()
        for name in old.below(f"{update}/f64/mid")
    }
    loss, _ = agent.loss(batch, noise)
    gradients = updates.gradients_of(agent, loss)
    found["loss"] = loss.detach().numpy()
    for name, value in gradients.items():
        if value.any():
            found[f"grad/{official[name]}"] = value.numpy()
    before = {name: value.detach().clone() for name, value in agent.parameters.items()}
    metrics = agent.update(batch, noise)
    found["grad_global_norm"] = metrics["grad/global_norm"].numpy()
    of_gradients = updates.gradient_info(gradients)
    for name in old.below(f"{update}/f64/info"):
        source = binding.info.get(name, name)
        value = of_gradients.get(name)
        if value is None:
            value = source(metrics) if callable(source) else float(metrics[source])
        found[f"info/{name}"] = np.array(value)
    for name, value in agent.parameters.items():
        if not torch.equal(value, before[name]):
            found[f"params/{official[name]}"] = value.detach().numpy().copy()
    return {f"{update}/f64/{name}": value for name, value in found.items()}


@pytest.mark.parametrize("name", NAMES)
def test_recording_of_other_sizes_is_compared(name, tmp_path):
    old, path = Recording(HERE / f"{name}.npz", "float64"), tmp_path / f"{name}.npz"
    arrays, official = _inputs(old, np.random.default_rng(0))
    np.savez(path, **arrays)
    recording = Recording(path, "float64")
    binding = binding_of(recording)
    agent = binding.build(recording)
    for update in ("u1", "u2"):
        arrays |= _write_update(recording, binding, agent, old, update, official)
    for case, noise in binding.acts.items():
        if f"act/{case}/f64/actions" in old:
            play = binding.players.get(case, lambda agent, s, z: agent.act(s, z))
            drawn = noise(partial(updates._values, recording, f"act/{case}/noise"))
            acted = play(agent, recording.tensor("act/observations"), drawn)
            arrays[f"act/{case}/f64/actions"] = acted.flatten(1).numpy()
    np.savez(path, **arrays)
    for precision in ("float64", "float32"):
        rows = compare(path, precision)
        assert len(rows) >= 15
        assert not [row for row in rows if not row.passed]
