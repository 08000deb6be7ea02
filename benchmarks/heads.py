# SPDX-License-Identifier: Apache-2.0
"""One action chunk of every method on the robot's sampler: size of the graph, latency, error.

Published sizes (nets 4 x 512, ten critics, ten steps), fresh nets moved away from their start. Error:
largest difference on 64 probes between ONNX Runtime and torch, and of each to torch in float64. The
baseline is the plain flow of QAM: ratio = median latency / that of QAM, all in turns, one thread: each
finds the caches full of the others (policy.py has the flow by itself).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from measuring import interleave, machine, report

from qam_ros.contract.artifact import Artifact, ArtifactManifest, Golden
from qam_ros.contract.interface import load_interface
from qam_ros.contract.robot_interface import RobotInterface
from qam_ros.runtime.sampler import OnnxSampler
from qam_train.agents.common import Normaliser
from qam_train.agents.registry import METHODS
from qam_train.deployed import (
    AnyAgent,
    build_policy,
    choosing,
    in_double,
    policy_chunks,
)
from qam_train.graphs.builder import Precision
from qam_train.probes import clearest_noise

INTERFACE = load_interface("ur5e_2f85")
CHUNK = 5
MOVE = 0.02  # standard deviation of what is added to every parameter
VARIANTS: dict[str, tuple[str, int | None, int | None]] = {
    **{name: (name, None, None) for name in METHODS},
    "qam, best of 8 by 2": ("qam", 8, 2),
    "ifql, best of 32 by 2": ("ifql", 32, 2),
    "cgql, 2 critics": ("cgql", 1, 2),
}


@torch.no_grad()
def make_agent(
    name: str,
    candidates: int | None,
    critics: int | None,
    *,
    interface: RobotInterface = INTERFACE,
    **settings: Any,
) -> AnyAgent:
    """Agent of a method, its parameters moved; published sizes where nothing else is said."""
    method, generator = METHODS[name], torch.Generator().manual_seed(0)
    sizes = interface.observation_size, interface.action_size
    normaliser = Normaliser(torch.zeros(sizes[0]), torch.ones(sizes[0]))
    known = {field.name for field in dataclasses.fields(method.config)}
    chosen = {key: value for key, value in settings.items() if key in known}
    config = method.config(chunk=CHUNK, **chosen)
    agent = method.agent.init(config, *sizes, generator, normaliser)
    for value in agent.parameters.values():
        value.add_(MOVE * torch.randn(value.shape, generator=generator))
    return agent if candidates is None else choosing(agent, candidates, critics)


def artifact_of(
    agent: AnyAgent,
    interface: RobotInterface = INTERFACE,
    precision: Precision = "float32",
) -> Artifact:
    """Artifact of an agent in memory, with 64 drawn probes."""
    policy = build_policy(agent, precision)
    generator = np.random.default_rng(0)
    size, width = policy.sizes.observation, policy.noise_width
    observations = generator.standard_normal((64, size)).astype(np.float32)
    noise = generator.standard_normal((64, width)).astype(np.float32)
    noise = clearest_noise(agent, observations, noise, 0)
    manifest = ArtifactManifest(
        interface=interface,
        algorithm=agent.algorithm,
        head=policy.head,
        flow_steps=policy.steps,
        chunk_length=CHUNK,
        policy_version=1,
        parent_version=0,
        run_id="benchmark",
        commit="none",
        dataset_hash="none",
        graph=policy.signature,
        tolerance=1e-5,
    )
    golden = Golden(observations, noise, policy_chunks(agent, observations, noise))
    return Artifact(manifest, policy.onnx, policy.weights, golden)


def largest(one: Any, other: Any) -> float:
    """Largest difference."""
    return float(np.abs(one - other).max())


def prepare(variant: str) -> tuple[list[Any], Callable[[], object]]:
    """Figures of one variant, and one run of it."""
    agent = make_agent(*VARIANTS[variant])
    artifact = artifact_of(agent)
    golden = artifact.golden
    observations, noise, own = golden.observations, golden.noise, golden.chunks
    exact = policy_chunks(in_double(agent), observations, noise)
    sampler = OnnxSampler(artifact)
    found = sampler.sample_all(observations, noise)
    graph, weights = artifact.manifest.graph, artifact.weights
    figures = [
        *(artifact.manifest.head, graph.noise_width),
        len(onnx.load_from_string(artifact.onnx_bytes).graph.node),
        *(2 + len(weights), sum(w.nbytes for w in weights.values()) / 1e6),
        *(largest(found, own), largest(found, exact), largest(own, exact)),
    ]
    return figures, lambda: sampler.sample(observations[0], noise[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="timed chunks of each")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    names = list(dict.fromkeys(("qam", *arguments.only)))
    prepared = {name: prepare(name) for name in names}
    timings = interleave(
        {name: run for name, (_, run) in prepared.items()}, arguments.runs, warm_up=5
    )
    rows = []
    for name, (figures, _) in prepared.items():
        timing = timings[name]
        times = [1e3 * timing.p50, 1e3 * timing.p99, timing.p50 / timings["qam"].p50]
        rows.append((name, *figures, *times))
    columns = (
        *("method", "head", "noise", "nodes", "inputs", "weights [MB]"),
        *("error to torch", "error to float64", "torch to float64"),
        *("p50 [ms]", "p99 [ms]", "ratio"),
    )
    about = machine("onnxruntime", "torch", "numpy") | {"threads": 1}
    title = "One chunk of 5 x 5 actions, 28 observations, nets 4 x 512"
    report(title, about, columns, rows, as_json=arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
