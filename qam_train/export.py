# SPDX-License-Identifier: Apache-2.0
"""From an agent to a policy artifact, verified against the agent before it is written.

What is exported is what the agent acts with: n Euler steps of its flow on standardised
observations, clipped. The artifact's golden chunks are the agent's own (torch); the ONNX graph must
give the same on all probes within the artifact's tolerance.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from qam_ros.contract.artifact import (
    GOLDEN_PROBES,
    Artifact,
    ArtifactManifest,
    Golden,
    GraphSignature,
    TensorSpec,
    read_artifact,
    write_artifact,
)
from qam_ros.contract.dataset import Dataset, read_dataset, read_dataset_manifest
from qam_ros.contract.errors import ArtifactError
from qam_ros.contract.robot_interface import RobotInterface
from qam_ros.contract.weights import Weights
from qam_ros.runtime.sampler import OnnxSampler
from qam_train.agents.qam import QAMAgent
from qam_train.agents.restore import Agent, restore_agent
from qam_train.checkpoint import latest_checkpoint, read_checkpoint
from qam_train.deployed import (
    Float32Array,
    behaviour_of,
    draw_probes,
    policy_chunks,
    policy_sizes,
    policy_weights,
)
from qam_train.policy_graph import PolicySizes, build_policy_graph

# float32 rounding of ten steps through trained nets; measured errors are near 1e-6.
TOLERANCE = 1e-5

Actor = Literal["fine-tuned", "behaviour"]


@dataclass(frozen=True)
class Provenance:
    """Where a policy comes from; written into its manifest.

    Args:
        run_id: training run.
        dataset_hash: sha256 of the offline dataset's rows.
        policy_version: version of the weights.
        parent_version: version they were fine-tuned from; 0 for none.
        commit: source revision; "" asks git.
        evaluation: figures by name.
    """

    run_id: str
    dataset_hash: str
    policy_version: int = 1
    parent_version: int = 0
    commit: str = ""
    evaluation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """An artifact that was written, and the largest error of ONNX Runtime against torch."""

    manifest: ArtifactManifest
    largest_error: float


def export_artifact(
    agent: Agent,
    interface: RobotInterface,
    dataset: Dataset,
    path: str | Path,
    provenance: Provenance,
    *,
    seed: int = 0,
    replace_existing: bool = False,
) -> Exported:
    """Write an agent's policy as an artifact.

    Args:
        agent: a QAM agent (its tuned flow is exported) or a behaviour-cloned flow.
        interface: the robot interface of the data it was trained on.
        dataset: where the probes come from.
        path: a directory, or a file that ends in .zip.
        provenance: where the policy comes from.
        seed: of the probes.
        replace_existing: take the place of what is at path.

    Raises:
        ArtifactError: sizes do not fit the interface, or ONNX Runtime differs from torch by more
            than the tolerance; then nothing is written.
    """
    sizes = policy_sizes(agent)
    found = (sizes.observation, sizes.action)
    if found != (interface.observation_size, interface.action_size):
        raise ArtifactError(
            f"export: the agent has observation and action size {found}, robot '{interface.robot}' "
            f"{(interface.observation_size, interface.action_size)}; use the interface it was trained on"
        )
    weights = policy_weights(agent)
    observations, noise = draw_probes(dataset, sizes, seed)
    golden = Golden(observations, noise, policy_chunks(agent, observations, noise))
    manifest = _manifest(agent, interface, provenance, weights)
    net_weights = {name: value for name, value in weights.items() if "/" in name}
    graph = build_policy_graph(net_weights, sizes)
    error = largest_error(Artifact(manifest, graph, weights, golden))
    if not error <= TOLERANCE:
        raise ArtifactError(
            f"export: ONNX Runtime differs from torch by up to {error:.1e} on the probes, at most "
            f"{TOLERANCE:.0e} is accepted; are the weights finite and of normal size?",
            error=error,
        )
    written = write_artifact(
        path, manifest, graph, weights, golden, replace=replace_existing
    )
    return Exported(written, error)


def largest_error(artifact: Artifact) -> float:
    """Largest difference between the chunks of ONNX Runtime and the golden ones; NaN if any is."""
    sampler, golden = OnnxSampler(artifact), artifact.golden
    chunks = [
        sampler.sample(observation, noise).copy()
        for observation, noise in zip(golden.observations, golden.noise, strict=True)
    ]
    return float(np.abs(np.stack(chunks) - golden.chunks).max())


def export_version(
    artifact: str | Path,
    weights: Weights,
    chunks: Float32Array,
    path: str | Path,
    provenance: Provenance,
    *,
    replace_existing: bool = False,
) -> Exported:
    """Write a fine-tuned version of an artifact: the same graph and probes, other weights.

    Args:
        artifact: the artifact it was fine-tuned from.
        weights: statistics and weights by name.
        chunks: (64, H, A), golden chunks of these weights on the artifact's probes.
        path: a directory, or a file that ends in .zip.
        provenance: where the version comes from.
        replace_existing: take the place of what is at path.

    Raises:
        ArtifactError: the parts do not fit, or the graph does not give these chunks.
    """
    parent = read_artifact(artifact)
    golden = replace(parent.golden, chunks=chunks)
    manifest = replace(
        parent.manifest,
        policy_version=provenance.policy_version,
        parent_version=provenance.parent_version,
        run_id=provenance.run_id,
        commit=provenance.commit or source_commit(),
        dataset_hash=provenance.dataset_hash,
        evaluation=provenance.evaluation,
    )
    error = largest_error(Artifact(manifest, parent.onnx_bytes, weights, golden))
    if not error <= manifest.tolerance:
        raise ArtifactError(
            f"export: the weights of version {provenance.policy_version} give other chunks than its "
            f"golden ones (off by {error:.1e}, at most {manifest.tolerance:.0e}); they do not belong together",
            error=error,
        )
    written = write_artifact(
        path, manifest, parent.onnx_bytes, weights, golden, replace=replace_existing
    )
    return Exported(written, error)


def source_commit() -> str:
    """Commit of the checkout this module lies in, 'unknown' outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def _manifest(
    agent: Agent, interface: RobotInterface, provenance: Provenance, weights: Weights
) -> ArtifactManifest:
    sizes = policy_sizes(agent)
    return ArtifactManifest(
        interface=interface,
        algorithm=agent.algorithm,
        head="flow",
        flow_steps=sizes.flow_steps,
        chunk_length=sizes.chunk,
        policy_version=provenance.policy_version,
        parent_version=provenance.parent_version,
        run_id=provenance.run_id,
        commit=provenance.commit or source_commit(),
        dataset_hash=provenance.dataset_hash,
        graph=_signature(weights, sizes),
        tolerance=TOLERANCE,
        evaluation=provenance.evaluation,
    )


def _signature(weights: Weights, sizes: PolicySizes) -> GraphSignature:
    shapes: dict[str, tuple[int, ...]] = {
        "observation": (1, sizes.observation),
        "noise": (1, sizes.flat),
        **{name: value.shape for name, value in weights.items()},
    }
    inputs = tuple(TensorSpec(name, shape) for name, shape in shapes.items())
    return GraphSignature(
        inputs, (TensorSpec("chunk", (1, sizes.chunk, sizes.action)),)
    )


@dataclass(frozen=True)
class ExportArguments:
    """Write the policy artifact of a checkpoint."""

    checkpoint: tyro.conf.Positional[Path]
    """Checkpoint file, or a run directory (its newest checkpoint)."""
    dataset: Path
    """Dataset it was trained on: robot interface and probes come from it."""
    out: Path
    """Directory or .zip file to write."""
    actor: Actor = "fine-tuned"
    """Which flow of a QAM agent."""
    version: int = 1
    """Policy version."""
    run_id: str = ""
    """Name of the run; default: the folder of the checkpoint."""
    replace: bool = False
    """Replace what is there."""


def command(argv: Sequence[str]) -> int:
    """Write the policy artifact of a checkpoint."""
    arguments = tyro.cli(ExportArguments, prog="qam export", args=list(argv))
    path = find_checkpoint(arguments.checkpoint)
    agent = restore_agent(path)
    if arguments.actor == "behaviour" and isinstance(agent, QAMAgent):
        agent = behaviour_of(agent)
    found = read_dataset_manifest(arguments.dataset)
    trained_on = read_checkpoint(path).metadata.get("dataset_hash", found.sha256)
    if trained_on != found.sha256:
        raise ArtifactError(
            f"{arguments.dataset}: sha256 of its rows is {found.sha256}, the checkpoint was trained on "
            f"{trained_on}; give that dataset"
        )
    run = arguments.run_id or path.parent.parent.name or path.stem
    exported = export_artifact(
        agent,
        found.interface,
        read_dataset(arguments.dataset),
        arguments.out,
        Provenance(run, found.sha256, arguments.version),
        replace_existing=arguments.replace,
    )
    print(  # noqa: T201
        f"{arguments.out}: {agent.algorithm}, version {arguments.version}, {GOLDEN_PROBES} probes, "
        f"largest error of ONNX Runtime against torch {exported.largest_error:.1e} "
        f"(allowed {TOLERANCE:.0e})"
    )
    return 0


def find_checkpoint(path: Path) -> Path:
    """A checkpoint file, or the newest one of a run directory.

    Raises:
        ArtifactError: there is none.
    """
    if path.is_file():
        return path
    for directory in (path / "checkpoints", path):
        newest = latest_checkpoint(directory)
        if newest is not None:
            return newest
    raise ArtifactError(
        f"{path}: expected a checkpoint or a run directory with checkpoints, found none"
    )
