# SPDX-License-Identifier: Apache-2.0
"""A policy artifact with random weights, in memory or on disk: the numbers do not matter for speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from qam_ros.contract.artifact import (
    GOLDEN_PROBES,
    Artifact,
    ArtifactManifest,
    Golden,
    GraphSignature,
    TensorSpec,
)
from qam_ros.contract.interface import RobotInterface
from qam_ros.runtime.sampler import OnnxSampler
from qam_train.policy_graph import PolicySizes, build_policy_graph, split_first_layer


def random_artifact(
    interface: RobotInterface, widths: Sequence[int], chunk: int = 5, steps: int = 10
) -> Artifact:
    """Artifact of a flow policy with random weights.

    Args:
        interface: the robot.
        widths: hidden widths of the velocity net.
        chunk: actions in a chunk.
        steps: flow steps.
    """
    generator = np.random.default_rng(0)
    size = interface.observation_size
    sizes = PolicySizes(size, interface.action_size, chunk, steps)
    fan = (size + sizes.flat + 1, *widths, sizes.flat)
    net = {}
    for layer, (rows, columns) in enumerate(pairwise(fan)):
        bound = (6 / (rows + columns)) ** 0.5
        weight = generator.uniform(-bound, bound, (rows, columns))
        net[f"{layer}/weight"] = weight.astype(np.float32)
        net[f"{layer}/bias"] = np.zeros(columns, np.float32)
    hidden = split_first_layer(net, sizes)
    statistics = {
        "observation_mean": np.zeros(size, np.float32),
        "observation_std": np.ones(size, np.float32),
    }
    weights = statistics | hidden
    shapes = {
        "observation": (1, size),
        "noise": (1, sizes.flat),
        **{name: value.shape for name, value in weights.items()},
    }
    signature = GraphSignature(
        tuple(TensorSpec(name, shape) for name, shape in shapes.items()),
        (TensorSpec("chunk", (1, chunk, interface.action_size)),),
    )
    manifest = ArtifactManifest(
        interface=interface,
        algorithm="random",
        head="flow",
        flow_steps=steps,
        chunk_length=chunk,
        policy_version=1,
        parent_version=0,
        run_id="benchmark",
        commit="none",
        dataset_hash="none",
        graph=signature,
        tolerance=1e-5,
    )
    probes = Golden(
        generator.standard_normal((GOLDEN_PROBES, size)).astype(np.float32),
        generator.standard_normal((GOLDEN_PROBES, sizes.flat)).astype(np.float32),
        np.zeros((GOLDEN_PROBES, chunk, interface.action_size), np.float32),
    )
    artifact = Artifact(manifest, build_policy_graph(hidden, sizes), weights, probes)
    chunks = OnnxSampler(artifact).sample_all(probes.observations, probes.noise)
    return dataclasses.replace(
        artifact, golden=dataclasses.replace(probes, chunks=chunks)
    )
