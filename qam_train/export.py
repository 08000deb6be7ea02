# SPDX-License-Identifier: Apache-2.0
"""From an agent to a policy artifact, verified against the agent before it is written.

What is exported is what the agent acts with, whatever its method. The artifact's golden chunks are
the agent's own (torch); the ONNX graph must give the same on all probes within the artifact's
tolerance. That is 1e-5. A head that magnifies rounding has a bound of its own (``MAGNIFYING``), and
whoever exports may name another one; both are said and recorded. In lower precision it is a few times
the error that rounded products make on the probes, and that error has a bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import tyro

from qam_ros.contract.artifact import (
    GOLDEN_PROBES,
    Artifact,
    ArtifactManifest,
    Golden,
    read_artifact,
    write_artifact,
)
from qam_ros.contract.dataset import Dataset, read_dataset, read_dataset_manifest
from qam_ros.contract.errors import ArtifactError, ConfigError
from qam_ros.contract.robot_interface import RobotInterface
from qam_ros.contract.weights import Weights
from qam_ros.runtime.sampler import OnnxSampler
from qam_train.checkpoint import read_checkpoint
from qam_train.deployed import (
    AnyAgent,
    Float32Array,
    behaviour_of,
    build_policy,
    choosing,
    policy_chunks,
    policy_sizes,
    rounding,
)
from qam_train.export_sources import FILES, find_data
from qam_train.export_sources import find_checkpoint as find_checkpoint
from qam_train.export_sources import source_commit as source_commit
from qam_train.graphs.builder import Precision
from qam_train.graphs.policy import Policy
from qam_train.probes import clearest_noise, draw_probes
from qam_train.restore import restore_agent
from qam_train.rounded import largest_rounded_error

# float32 rounding of ten steps through trained nets; measured errors are near 1e-6.
TOLERANCE = 1e-5
MAX_TOLERANCE = 1e-2  # a wrong graph or other weights are further off

MAGNIFYING: Mapping[str, float] = MappingProxyType({"diffusion": MAX_TOLERANCE})
"""Heads that may be further off, and how far. QSM divides by sqrt(alpha_hat_k) in every reverse step,
which only a trained predictor cancels: before, rounding grows a hundredfold and more."""

ROUNDING_FACTOR = 4.0  # two ways to round, each as far from the exact value as torch

BOUNDS: Mapping[str, float] = MappingProxyType({"float16": 1e-2, "bfloat16": 5e-2})
"""Largest error that lower precision may make on the probes; chunks lie in [-1, 1]."""

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
    """An artifact that was written; its tolerance is in the manifest.

    Args:
        manifest: as written.
        reason: why the tolerance is not 1e-5; "" where it is.
        largest_error: of ONNX Runtime on the CPU, which multiplies in float32, against torch.
        rounded_error: of products in the artifact's precision against torch.
    """

    manifest: ArtifactManifest
    largest_error: float
    rounded_error: float
    reason: str = ""


def export_artifact(
    agent: AnyAgent,
    interface: RobotInterface,
    dataset: Dataset,
    path: str | Path,
    provenance: Provenance,
    *,
    seed: int = 0,
    precision: Precision = "float32",
    tolerance: float | None = None,
    replace_existing: bool = False,
) -> Exported:
    """Write an agent's policy as an artifact.

    Args:
        agent: of any method; see qam_train.deployed for its variants.
        interface: the robot interface of the data it was trained on.
        dataset: where the probes come from.
        path: a directory, or a file that ends in .zip.
        provenance: where the policy comes from.
        seed: of the probes.
        precision: of the matrix products of actors and flows.
        tolerance: largest difference accepted between float32 backends; None: 1e-5, more for a head of
            ``MAGNIFYING`` whose rounding asks for it.
        replace_existing: take the place of what is at path.

    Raises:
        ConfigError: a tolerance outside (0, 0.01].
        ArtifactError: sizes do not fit the interface, ONNX Runtime differs from torch by more than
            the tolerance, or lower precision by more than its bound; then nothing is written.
    """
    sizes = policy_sizes(agent)
    found = (sizes.observation, sizes.action)
    if found != (interface.observation_size, interface.action_size):
        raise ArtifactError(
            f"export: the agent has observation and action size {found}, robot '{interface.robot}' "
            f"{(interface.observation_size, interface.action_size)}; use the interface it was trained on"
        )
    policy = build_policy(agent, precision)
    observations, noise = draw_probes(dataset, policy.noise_width, seed)
    noise = clearest_noise(agent, observations, noise, seed)
    golden = Golden(observations, noise, policy_chunks(agent, observations, noise))
    own = rounding(agent, observations, noise)
    accepted, reason = _tolerance(policy.head, own, tolerance)
    manifest = _manifest(agent, interface, provenance, policy, accepted)
    if reason:
        figures = {"float32_error": own, "tolerance_reason": reason}
        manifest = replace(manifest, evaluation={**manifest.evaluation, **figures})
    artifact = Artifact(manifest, policy.onnx, policy.weights, golden)
    rounded = error = _checked_error(artifact, own)
    if precision != "float32":
        rounded = largest_rounded_error(artifact)
        manifest = _with_precision(manifest, precision, rounded)
    written = write_artifact(
        path, manifest, policy.onnx, policy.weights, golden, replace=replace_existing
    )
    return Exported(written, error, rounded, reason)


def _checked_error(artifact: Artifact, own: float) -> float:
    """Largest error of ONNX Runtime on the probes, which the artifact's tolerance allows."""
    error, accepted = largest_error(artifact), artifact.manifest.tolerance
    if not error <= accepted:
        raise ArtifactError(
            f"export: ONNX Runtime differs from torch by up to {error:.1e} on the probes, at most "
            f"{accepted:.0e} is accepted, and torch itself is {own:.1e} from double precision; are the "
            "weights finite and of normal size? If this policy magnifies rounding by its nature, say how "
            "much is right with --tolerance",
            error=error,
        )
    return error


def _with_precision(
    manifest: ArtifactManifest, precision: Precision, error: float
) -> ArtifactManifest:
    """The manifest with the tolerance of a lower precision."""
    bound = BOUNDS[precision]
    if not error <= bound:
        raise ArtifactError(
            f"export: {precision} products change the chunks by up to {error:.1e} on the probes, at most "
            f"{bound:.0e} is accepted; export in float32, or in float16 where this was bfloat16",
            error=error,
        )
    tolerance = min(max(manifest.tolerance, ROUNDING_FACTOR * error), bound)
    figures = {"precision": precision, "precision_error": error}
    evaluation = {**manifest.evaluation, **figures}
    return replace(manifest, tolerance=tolerance, evaluation=evaluation)


def _tolerance(head: str, own: float, asked: float | None) -> tuple[float, str]:
    """Largest difference accepted between float32 backends, and why it is not ``TOLERANCE``.

    Args:
        head: of the policy.
        own: distance of torch itself to float64 on the probes.
        asked: by whoever exports.
    """
    if asked is not None:
        if not 0.0 < asked <= MAX_TOLERANCE:
            raise ConfigError(
                f"export: tolerance {asked:g}, expected more than 0 and at most {MAX_TOLERANCE:g}"
            )
        return asked, "asked for with --tolerance"
    if head not in MAGNIFYING or own <= TOLERANCE / 2.0:
        return TOLERANCE, ""
    wider = min(ROUNDING_FACTOR * own, MAGNIFYING[head])
    return wider, f"head {head} magnifies rounding"


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
    return Exported(written, error, error)


def _manifest(
    agent: AnyAgent,
    interface: RobotInterface,
    provenance: Provenance,
    policy: Policy,
    tolerance: float,
) -> ArtifactManifest:
    return ArtifactManifest(
        interface=interface,
        algorithm=agent.algorithm,
        head=policy.head,
        flow_steps=policy.steps,
        chunk_length=policy.sizes.chunk,
        policy_version=provenance.policy_version,
        parent_version=provenance.parent_version,
        run_id=provenance.run_id,
        commit=provenance.commit or source_commit(),
        dataset_hash=provenance.dataset_hash,
        graph=policy.signature,
        tolerance=tolerance,
        evaluation=provenance.evaluation,
    )


@dataclass(frozen=True)
class ExportArguments:
    """Write the policy artifact of a checkpoint."""

    checkpoint: tyro.conf.Positional[Path]
    """Checkpoint file, or a run directory (its newest checkpoint)."""
    out: Path
    """Directory or .zip file to write."""
    dataset: Path | None = None
    """Dataset it was trained on: robot interface and probes come from it. Default: where the checkpoint
    says that it was, or the folder dataset of the demo that it is part of."""
    actor: Actor = "fine-tuned"
    """The method's policy, or the behaviour flow under it, for a method that has one."""
    best_of: int | None = None
    """Candidates per action, of which the critics choose one; default: as the method was trained.
    For methods whose policy is a flow."""
    critics: int | None = None
    """Critics that choose (and guide, where a method is guided); default: all."""
    precision: Precision = "float32"
    """Of matrix products on a GPU; the Euler state, statistics, weights and critics stay float32. A CPU
    computes such an artifact in float32."""
    tolerance: float | None = None
    """Largest difference accepted between backends in float32, recorded in the artifact. Default: 1e-5; for
    the head diffusion as much as its rounding asks for, at most 0.01."""
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
    metadata = read_checkpoint(path).metadata
    data = arguments.dataset or find_data(path, metadata)
    found = read_dataset_manifest(data)
    trained_on = metadata.get("dataset_hash", found.sha256)
    if found.sha256 not in (trained_on, *metadata.get(FILES, ())):
        raise ArtifactError(
            f"{data}: sha256 of its rows is {found.sha256}, the checkpoint was trained on {trained_on}; give "
            "that dataset with --dataset"
        )
    agent = _variant(restore_agent(path), arguments)
    run = arguments.run_id or path.parent.parent.name or path.stem
    exported = export_artifact(
        agent,
        found.interface,
        read_dataset(data),
        arguments.out,
        Provenance(run, found.sha256, arguments.version),
        precision=arguments.precision,
        tolerance=arguments.tolerance,
        replace_existing=arguments.replace,
    )
    allowed = f"(allowed {exported.manifest.tolerance:.0e})"
    print(  # noqa: T201
        f"{arguments.out}: {agent.algorithm}, head {exported.manifest.head}, version "
        f"{arguments.version}, {GOLDEN_PROBES} probes, largest error of ONNX Runtime against torch {exported.largest_error:.1e} "
        f"{allowed}"
    )
    if exported.reason:
        print(  # noqa: T201
            f"tolerance {exported.manifest.tolerance:.1e} instead of {TOLERANCE:.0e}: {exported.reason}"
        )
    if arguments.precision != "float32":
        print(  # noqa: T201
            f"products in {arguments.precision}: largest error {exported.rounded_error:.1e} {allowed}"
        )
    return 0


def _variant(agent: AnyAgent, arguments: ExportArguments) -> AnyAgent:
    if arguments.actor == "behaviour":
        agent = behaviour_of(agent)
    if arguments.best_of is None and arguments.critics is None:
        return agent
    held = getattr(agent.config, "best_of", 1)
    candidates = held if arguments.best_of is None else arguments.best_of
    return choosing(agent, candidates, arguments.critics)
