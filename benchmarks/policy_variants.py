# SPDX-License-Identifier: Apache-2.0
"""Ways to run one policy, for `qam bench policy`: torch, ONNX Runtime, engines on a GPU."""

from __future__ import annotations

import ctypes
import gc
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from qam_ros.contract.artifact import Artifact
from qam_ros.runtime.backends import Machine, compile_engine, open_sampler
from qam_ros.runtime.engines.library import EngineError
from qam_ros.runtime.onnx_cuda import PROVIDER, OnnxCudaSampler
from qam_ros.runtime.sampler import OnnxSampler, Sampler
from qam_train import flow
from qam_train.networks import velocity_field

Run = Callable[[Any, Any], Any]
"""(observation (O,), noise (W,)) -> chunk of h*A numbers in any shape."""
MB = 1e6


@dataclass(frozen=True)
class Variant:
    """One way to run a policy.

    Args:
        run: makes a chunk.
        file_mb: size of what has to be stored [MB].
        memory_mb: growth of resident memory while it was made and first run [MB].
        exchange: takes other weights; None: not measured.
    """

    run: Run
    file_mb: float
    memory_mb: float
    exchange: Callable[[], object] | None = None


def baked_graph(artifact: Artifact) -> bytes:
    """The artifact's graph with its weights as constants."""
    model = onnx.load_from_string(artifact.onnx_bytes)
    graph = model.graph
    for value in list(graph.input):
        if value.name in artifact.weights:
            graph.input.remove(value)
            weight = artifact.weights[value.name]
            graph.initializer.append(numpy_helper.from_array(weight, value.name))
    data: bytes = model.SerializeToString()
    return data


def int8_graph(baked: bytes) -> bytes:
    """Dynamically quantised: int8 weights per column, activations by the range of each call.

    The quantiser would transpose a Gemm's shared weight once per step, so products and sums are
    written apart first.
    """
    model = onnx.load_from_string(baked)
    nodes = []
    for node in model.graph.node:
        if node.op_type != "Gemm":
            nodes.append(node)
            continue
        x, weight, bias = node.input
        product = f"{node.name}_product"
        nodes.append(helper.make_node("MatMul", [x, weight], [product], name=product))
        nodes.append(helper.make_node("Add", [product, bias], node.output))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        kind = QuantType.QInt8
        quantize_dynamic(source, target, weight_type=kind, per_channel=True)
        return target.read_bytes()


def new_session(data: bytes) -> onnxruntime.InferenceSession:
    """Session with one thread and the default settings otherwise."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        data, options, providers=["CPUExecutionProvider"]
    )


def torch_policy(
    artifact: Artifact,
    dtype: Any = torch.float32,
    device: str = "cpu",
    *,
    compiled: bool = False,
) -> Run:
    """The trainer's own sampler with the artifact's weights, batch 1."""
    tensors = {
        name: torch.tensor(value, dtype=dtype, device=device)
        for name, value in artifact.weights.items()
    }
    first = [
        tensors.pop(f"0/weight_{part}") for part in ("observation", "action", "time")
    ]
    net = {f"actor/{name}": value for name, value in tensors.items() if "/" in name}
    net["actor/0/weight"] = torch.cat(first)
    mean, std = tensors["observation_mean"], tensors["observation_std"]
    steps = artifact.manifest.flow_steps

    def chunk_of(observation: Any, noise: Any) -> Any:
        s = (observation - mean) / std
        field = velocity_field(net, "actor", s[None])
        return flow.integrate(field, noise[None], steps).clamp(-1, 1)

    make: Any = torch.compile(chunk_of) if compiled else chunk_of

    @torch.no_grad()
    def act(observation: Any, noise: Any) -> Any:
        s, z = (
            torch.from_numpy(x).to(device=device, dtype=dtype)
            for x in (observation, noise)
        )
        return make(s, z).cpu().numpy()

    return act


def _resident() -> float:
    """Resident memory of this process [MB]."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MB


def _made(
    artifact: Artifact, file_mb: float, make: Callable[[], tuple[Run, Any]]
) -> Variant:
    """Make a variant, run it once, and see what memory that took."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(
        0
    )  # else freed memory is used again and nothing grows
    before = _resident()
    run, exchange = make()
    run(artifact.golden.observations[0], artifact.golden.noise[0])
    return Variant(run, file_mb, max(0.0, _resident() - before), exchange)


def _bound(artifact: Artifact, open_it: Callable[[], Sampler]) -> tuple[Run, Any]:
    sampler = open_it()
    flat = sampler.layout.pack(artifact.weights)
    return sampler.sample, lambda: sampler.load(flat)


def _session_run(data: bytes) -> tuple[Run, Any]:
    session = new_session(data)

    def run(observation: Any, noise: Any) -> Any:
        feed = {"observation": observation[None], "noise": noise[None]}
        return session.run(None, feed)[0]

    return run, lambda: new_session(data)


def cpu_variants(artifact: Artifact, *, compiled: bool) -> dict[str, Variant]:
    """Everything that runs on a CPU, the baseline first.

    Args:
        artifact: a flow policy.
        compiled: torch.compile, too, which takes a minute and a C++ compiler.
    """
    baked = baked_graph(artifact)
    small = int8_graph(baked)
    weights = sum(value.nbytes for value in artifact.weights.values())
    whole = (weights + len(artifact.onnx_bytes)) / MB
    found = {
        "baseline: weights baked in": _made(
            artifact, len(baked) / MB, lambda: _session_run(baked)
        ),
        "ours: weights as inputs": _made(
            artifact, whole, lambda: _bound(artifact, lambda: OnnxSampler(artifact))
        ),
        "int8, baked in": _made(artifact, len(small) / MB, lambda: _session_run(small)),
        "torch eager": _made(
            artifact, weights / MB, lambda: (torch_policy(artifact), None)
        ),
    }
    if compiled:
        found["torch.compile"] = _made(
            artifact,
            weights / MB,
            lambda: (torch_policy(artifact, compiled=True), None),
        )
    return found


def gpu_variants(artifact: Artifact, folder: Path) -> tuple[dict[str, Variant], str]:
    """Everything that this machine's GPU runs; without one, why not.

    Args:
        artifact: a flow policy.
        folder: for the engine.
    """
    found: dict[str, Variant] = {}
    weights = sum(value.nbytes for value in artifact.weights.values())
    if torch.cuda.is_available():
        found["torch eager, GPU"] = _made(
            artifact,
            weights / MB,
            lambda: (torch_policy(artifact, device="cuda"), None),
        )
    if PROVIDER in onnxruntime.get_available_providers():
        whole = (weights + len(artifact.onnx_bytes)) / MB
        found["ONNX Runtime, GPU"] = _made(
            artifact, whole, lambda: _bound(artifact, lambda: OnnxCudaSampler(artifact))
        )
    machine = Machine(folder=folder)
    try:
        engine = compile_engine(artifact, machine)
    except EngineError as problem:
        return found, str(problem)
    found[engine.library] = _made(
        artifact,
        (weights + engine.engine_bytes) / MB,
        lambda: _bound(
            artifact, lambda: open_sampler(artifact, "tensorrt", machine=machine)
        ),
    )
    return found, ""


def errors_of(
    variants: dict[str, Variant], artifact: Artifact, probes: int = 64
) -> dict[str, float]:
    """Largest difference of each to float64 on the golden observations and noises."""
    exact = torch_policy(artifact, torch.float64)
    pairs = list(zip(artifact.golden.observations, artifact.golden.noise, strict=True))[
        :probes
    ]
    expected = [exact(s, z).ravel() for s, z in pairs]
    return {
        name: max(
            float(np.abs(np.ravel(variant.run(s, z)) - e).max())
            for (s, z), e in zip(pairs, expected, strict=True)
        )
        for name, variant in variants.items()
    }
