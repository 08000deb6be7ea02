# SPDX-License-Identifier: Apache-2.0
"""Latency of one action chunk, and the cost of exchanging the weights.

Ours: the robot's sampler, weights as inputs of the graph bound to one buffer. Baseline: ONNX Runtime
as it is usually used, the same graph with the weights as constants and a dictionary of inputs at
every call; for the exchange, a new session. torch eager stands beside them. All on one thread, in
turns. Ratio = ours / baseline in wall time (median).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from made_up import random_artifact
from measuring import Timing, interleave, machine, report
from onnx import numpy_helper

from qam_ros.contract.artifact import Artifact
from qam_ros.contract.interface import load_interface
from qam_ros.runtime.sampler import OnnxSampler
from qam_train import flow
from qam_train.networks import velocity_field

NETS = {"demo 2 x 256": (256, 256), "paper 4 x 512": (512, 512, 512, 512)}


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


def new_session(data: bytes) -> onnxruntime.InferenceSession:
    """Session with one thread and the default settings otherwise."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        data, options, providers=["CPUExecutionProvider"]
    )


def torch_policy(artifact: Artifact) -> Callable[[Any, Any], Any]:
    """The trainer's own sampler with the artifact's weights, batch 1."""
    tensors = {name: torch.tensor(value) for name, value in artifact.weights.items()}
    first = [
        tensors.pop(f"0/weight_{part}") for part in ("observation", "action", "time")
    ]
    net = {f"actor/{name}": value for name, value in tensors.items() if "/" in name}
    net["actor/0/weight"] = torch.cat(first)

    @torch.no_grad()
    def act(observation: Any, noise: Any) -> Any:
        s = torch.from_numpy(observation)
        s = (s - tensors["observation_mean"]) / tensors["observation_std"]
        field = velocity_field(net, "actor", s[None])
        start = torch.from_numpy(noise)[None]
        chunk = flow.integrate(field, start, artifact.manifest.flow_steps)
        return chunk.clamp(-1, 1).numpy()

    return act


def measure(
    widths: Sequence[int], runs: int
) -> tuple[dict[str, Timing], dict[str, Timing], dict[str, float]]:
    """Timings of a chunk, timings of an exchange, largest error of each against the golden chunks."""
    artifact = random_artifact(load_interface("ur5e_2f85"), widths)
    data = baked_graph(artifact)
    sampler, session, act = (
        OnnxSampler(artifact),
        new_session(data),
        torch_policy(artifact),
    )
    generator = np.random.default_rng(1)
    golden = artifact.golden

    def run_session(observation: Any, noise: Any) -> Any:
        return session.run(
            None, {"observation": observation[None], "noise": noise[None]}
        )[0]

    variants = {"ours": sampler.sample, "baked": run_session, "torch": act}
    errors = {
        name: max(
            float(np.abs(run(s, z).reshape(c.shape) - c).max())
            for s, z, c in zip(
                golden.observations, golden.noise, golden.chunks, strict=True
            )
        )
        for name, run in variants.items()
    }

    def timed(run: Callable[[Any, Any], Any]) -> Callable[[], object]:
        def once() -> object:
            index = int(generator.integers(64))
            return run(golden.observations[index], golden.noise[index])

        return once

    chunk = interleave(
        {name: timed(run) for name, run in variants.items()}, runs, warm_up=50
    )
    flat = sampler.layout.pack(artifact.weights)
    exchange = interleave(
        {"ours": lambda: sampler.load(flat), "baked": lambda: new_session(data)},
        max(20, runs // 40),
        warm_up=3,
    )
    return chunk, exchange, errors


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="qam bench policy", description=__doc__)
    parser.add_argument("--runs", type=int, default=2000, help="timed chunks of each")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    words = {
        "ours": "weights as inputs, bound",
        "baked": "baseline: constants, dictionary",
        "torch": "torch eager",
    }
    rows = []
    for net, widths in NETS.items():
        chunk, exchange, errors = measure(widths, arguments.runs)
        for kind, timings in (("chunk", chunk), ("exchange", exchange)):
            for name, timing in timings.items():
                times = [1e6 * value for value in (timing.p50, timing.p99, timing.max)]
                ratio = timing.p50 / timings["baked"].p50
                error = errors[name] if kind == "chunk" else 0.0
                rows.append((net, kind, words[name], *times, ratio, error))
    columns = (
        *("net", "what", "variant", "p50 [us]", "p99 [us]", "max [us]"),
        *("ratio", "largest error"),
    )
    about = machine("onnxruntime", "torch", "numpy") | {"threads": 1, "flow_steps": 10}
    title = "One chunk of 5 x 5 actions, 28 observations, one thread"
    report(title, about, columns, rows, as_json=arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
