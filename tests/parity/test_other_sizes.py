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
NAMES = sorted(  # test_other_horizons.py has the sampler, runs stand below
    path.stem
    for path in HERE.glob("*.npz")
    if path.stem not in ("sample_sequence", "trqam_20")
)
CASES = {"n4": "n7"}  # recorded acting case -> the one that stands for it here


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
    for update in ("u1", "u2"):
        for name, value in old.below(f"{update}/noise").items():
            arrays[f"{update}/noise/{name}"] = _noise(name, value, ROWS, width, rng)
    for case in old.groups("act"):
        ours = CASES.get(case, case)
        for name, value in old.below(f"act/{case}/noise").items():
            like = value.repeat(2, axis=1)[:, :7] if case in CASES else value
            drawn = _noise(name, like, ACTED, width, rng)
            arrays[f"act/{ours}/noise/{name}"] = drawn
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
    values = partial(updates.recorded, recording)
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
        value = binding.info_value(metrics, name, of_gradients)
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
    for case in recording.groups("act")[1:]:
        noise = binding.acting(case)
        play = binding.players.get(case, lambda agent, s, z: agent.act(s, z))
        drawn = noise(partial(updates.recorded, recording, f"act/{case}/noise"))
        acted = play(agent, recording.tensor("act/observations"), drawn)
        arrays[f"act/{case}/f64/actions"] = acted.flatten(1).numpy()
    np.savez(path, **arrays)
    for precision in ("float64", "float32"):
        rows = compare(path, precision)
        assert len(rows) >= 15
        assert not [row for row in rows if not row.passed]


def _of_update(recording, step, part, name):
    return updates.recorded(recording, part, name)[step]


def _sized_run(path, old, count):
    """A run of so many updates in the new sizes, its references our own in float64."""
    rng = np.random.default_rng(count)
    every = [_inputs(old, rng)[0] for _ in range(count)]
    arrays = {k: v for k, v in every[0].items() if k[:3] not in ("u1/", "u2/", "act")}
    for name in (k for k in every[0] if k.startswith("u1/")):
        arrays[name.removeprefix("u1/")] = np.stack([one[name] for one in every])
    np.savez(path, **arrays)
    recording = Recording(path, "float64")
    binding = binding_of(recording)
    official = {o: n for n, o in old.bound_names("params0", binding.nets).items()}
    agent = binding.build(recording, "batch")
    info = {name: [] for name in old.below("u1/f64/info") if name[:5] != "grad/"}
    for step in range(count):
        one = partial(_of_update, recording, step)
        batch = binding.batch(partial(one, "batch"), recording.settings())
        noise = binding.noise(partial(one, "noise"))
        metrics = agent.update(batch, noise)
        for name, values in info.items():
            values.append(binding.info_value(metrics, name, {}))
    arrays |= {f"f64/info/{name}": np.array(values) for name, values in info.items()}
    for name, value in agent.parameters.items():
        after = value.detach().numpy().copy()
        arrays[f"f64/params_after_{count}/{official[name]}"] = after
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("count", "name"), [(3, "trqam"), (33, "trqam"), (9, "sqam"), (5, "dcgql_dac")]
)
def test_run_of_other_length_and_sizes_is_compared(tmp_path, count, name):
    path = tmp_path / f"{name}_{count}.npz"
    _sized_run(path, Recording(HERE / f"{name}.npz", "float64"), count)
    for precision in ("float64", "float32"):
        rows = compare(path, precision)
        assert not [row for row in rows if not row.passed]
        last = f"parameters, all: after {count} updates"
        assert last in {row.quantity for row in rows}
