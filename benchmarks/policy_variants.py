# SPDX-License-Identifier: Apache-2.0
"""Ways to run one policy, for `qam bench policy`: torch, ONNX Runtime, engines on a GPU."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper

from qam_ros.contract.artifact import Artifact
from qam_ros.runtime.backends import Machine, compile_engine, open_sampler
from qam_ros.runtime.engines.library import EngineError
from qam_ros.runtime.onnx_cuda import PROVIDER, OnnxCudaSampler
from qam_ros.runtime.onnx_int8 import Int8Sampler
from qam_ros.runtime.precision import float32_products
from qam_ros.runtime.sampler import OnnxSampler, Sampler
from qam_train import flow
from qam_train.networks import velocity_field

Run = Callable[[Any, Any], Any]
"""(observation (O,), noise (W,)) -> chunk of h*A numbers in any shape."""
MB = 1e6


Make = Callable[[], tuple[Run, Any]]
"""Makes a way to run a policy, and what takes other weights."""


@dataclass(frozen=True)
class Variant:
    """One way to run a policy.

    Args:
        run: makes a chunk.
        file_mb: size of what has to be stored [MB].
        memory_mb: what a process of its own grew by, while it was made and first run [MB]; None: not
            measured.
        exchange: takes other weights; None: not measured.
    """

    run: Run
    file_mb: float
    memory_mb: float | None
    exchange: Callable[[], object] | None = None


def baked_graph(artifact: Artifact) -> bytes:
    """The artifact's graph with its weights as constants."""
    model = onnx.load_from_string(float32_products(artifact.onnx_bytes))
    graph = model.graph
    for value in list(graph.input):
        if value.name in artifact.weights:
            graph.input.remove(value)
            weight = artifact.weights[value.name]
            graph.initializer.append(numpy_helper.from_array(weight, value.name))
    data: bytes = model.SerializeToString()
    return data


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


def _own_memory() -> float:
    """Memory of this process that no file stands behind [MB]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next(line for line in lines if line.startswith("RssAnon"))
    return float(found.split()[1]) * 1024 / MB


def memory_of(artifact: Artifact, make: Make) -> float:
    """Growth of a child process while it makes a variant and runs it once [MB].

    A child each: in one process a later variant would fill what an earlier one has let go.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else freed memory is used and nothing grows
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            before = _own_memory()
            run, _ = make()
            run(artifact.golden.observations[0], artifact.golden.noise[0])
            os.write(write, repr(_own_memory() - before).encode())
        finally:
            os._exit(0)  # past whatever the parent would do at its end
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return float(answer or "nan")


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


def _int8(artifact: Artifact) -> tuple[Run, Any]:
    """The exchange lasts until the weights run in int8; in float32 they run at once."""
    sampler = Int8Sampler(artifact)
    flat = sampler.layout.pack(artifact.weights)

    def exchange() -> object:
        sampler.load(flat)
        return sampler.settle(timeout_s=60.0)

    return sampler.sample, exchange


def has_compiler() -> bool:
    """Whether torch.compile finds a C++ compiler."""
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++")))


def cpu_variants(artifact: Artifact, *, compiled: bool) -> dict[str, Variant]:
    """Everything that runs on a CPU, the baseline first.

    Args:
        artifact: a flow policy.
        compiled: torch.compile, too, which takes a minute and a C++ compiler.
    """
    baked = baked_graph(artifact)
    weights = sum(value.nbytes for value in artifact.weights.values()) / MB
    whole = weights + len(artifact.onnx_bytes) / MB
    recipes: dict[str, tuple[float, Make]] = {
        "baseline: weights baked in": (len(baked) / MB, lambda: _session_run(baked)),
        "ours: weights as inputs": (
            whole,
            lambda: _bound(artifact, lambda: OnnxSampler(artifact)),
        ),
        "ours: onnx-int8": (whole, lambda: _int8(artifact)),
        "torch eager": (weights, lambda: (torch_policy(artifact), None)),
    }
    try:
        Int8Sampler(artifact)
    except EngineError:  # no layer is large enough
        del recipes["ours: onnx-int8"]
    if compiled:
        recipes["torch.compile"] = (
            weights,
            lambda: (torch_policy(artifact, compiled=True), None),
        )
    memory = {name: memory_of(artifact, make) for name, (_, make) in recipes.items()}
    found = {}
    for name, (file_mb, make) in recipes.items():
        run, exchange = make()
        found[name] = Variant(run, file_mb, memory[name], exchange)
    return found


def gpu_variants(artifact: Artifact, folder: Path) -> tuple[dict[str, Variant], str]:
    """Everything that this machine's GPU runs; without one, why not.

    Args:
        artifact: a flow policy.
        folder: for the engine.
    """
    found: dict[str, Variant] = {}
    weights = sum(value.nbytes for value in artifact.weights.values()) / MB
    if torch.cuda.is_available():
        eager = torch_policy(artifact, device="cuda")
        found["torch eager, GPU"] = Variant(eager, weights, None)
    if PROVIDER in onnxruntime.get_available_providers():
        run, exchange = _bound(artifact, lambda: OnnxCudaSampler(artifact))
        whole = weights + len(artifact.onnx_bytes) / MB
        found["ONNX Runtime, GPU"] = Variant(run, whole, None, exchange)
    machine = Machine(folder=folder)
    try:
        engine = compile_engine(artifact, machine)
    except EngineError as problem:
        return found, str(problem)
    run, exchange = _bound(
        artifact, lambda: open_sampler(artifact, "tensorrt", machine=machine)
    )
    whole = weights + engine.engine_bytes / MB
    found[engine.library] = Variant(run, whole, None, exchange)
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
