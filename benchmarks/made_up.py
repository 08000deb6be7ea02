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
)
from qam_ros.contract.interface import RobotInterface
from qam_ros.runtime.sampler import OnnxSampler
from qam_train.deployment import FlowPolicy
from qam_train.graphs.builder import PolicySizes
from qam_train.graphs.policy import build_graph


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
    sizes = PolicySizes(size, interface.action_size, chunk)
    fan = (size + sizes.flat + 1, *widths, sizes.flat)
    nets = {
        "observation_mean": np.zeros(size, np.float32),
        "observation_std": np.ones(size, np.float32),
    }
    for layer, (rows, columns) in enumerate(pairwise(fan)):
        bound = (6 / (rows + columns)) ** 0.5
        weight = generator.uniform(-bound, bound, (rows, columns))
        nets[f"flow/{layer}/weight"] = weight.astype(np.float32)
        nets[f"flow/{layer}/bias"] = np.zeros(columns, np.float32)
    policy = build_graph(FlowPolicy("flow", steps), nets, sizes)
    manifest = ArtifactManifest(
        interface=interface,
        algorithm="random",
        head=policy.head,
        flow_steps=policy.steps,
        chunk_length=chunk,
        policy_version=1,
        parent_version=0,
        run_id="benchmark",
        commit="none",
        dataset_hash="none",
        graph=policy.signature,
        tolerance=1e-5,
    )
    probes = Golden(
        generator.standard_normal((GOLDEN_PROBES, size)).astype(np.float32),
        generator.standard_normal((GOLDEN_PROBES, policy.noise_width)).astype(
            np.float32
        ),
        np.zeros((GOLDEN_PROBES, chunk, interface.action_size), np.float32),
    )
    artifact = Artifact(manifest, policy.onnx, policy.weights, probes)
    chunks = OnnxSampler(artifact).sample_all(probes.observations, probes.noise)
    return dataclasses.replace(
        artifact, golden=dataclasses.replace(probes, chunks=chunks)
    )
