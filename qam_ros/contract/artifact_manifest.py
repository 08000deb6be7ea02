# SPDX-License-Identifier: Apache-2.0
"""Manifest of a policy artifact: what the policy is, what it was made for, how it must answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qam_ros.contract.errors import (
    ArtifactError,
    InterfaceError,
    check_keys,
    nearest,
)
from qam_ros.contract.interface_yaml import read_interface, write_interface
from qam_ros.contract.reading import read_integer, read_names, read_positive, read_text
from qam_ros.contract.robot_interface import RobotInterface

ARTIFACT_VERSION: Final = 1
GOLDEN_PROBES: Final = 64
MEMBERS: Final = ("policy.onnx", "weights.safetensors", "golden.npz")
MAX_NOISE: Final = 65_536
"""Most numbers of noise that one chunk may take."""
HEADS: Final = (
    *("flow", "one_step", "gaussian", "deterministic", "edited_flow"),
    *("noise_policy_flow", "guided_flow", "diffusion"),
)
MAX_TOLERANCE: Final = 0.1
"""Of actions in [-1, 1]; golden chunks that may be further off would say nothing."""
MAX_NUMBER: Final = 2**63 - 1
"""Of versions and counts, as they travel in messages."""
BEST_OF: Final = "best_of_"
"""Before a head: of several chunks the one that the critics value most."""
FIXED_INPUTS: Final = ("observation", "noise", "observation_mean", "observation_std")

_TEXTS: Final = ("algorithm", "head", "run_id", "commit", "dataset_hash")
_KEYS: Final = (
    *("format_version", *_TEXTS, "policy_version", "parent_version", "flow_steps"),
    *("chunk_length", "control_period_s", "tolerance", "evaluation", "graph", "sha256"),
    *("semantic_hash", "deployment_hash", "interface"),
)


@dataclass(frozen=True)
class TensorSpec:
    """Name and static shape of a float32 tensor that goes into or comes out of the graph."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GraphSignature:
    """Inputs and outputs of the policy graph, in order.

    Args:
        inputs: observation (1, O), noise (1, W), observation_mean (O,), observation_std (O,), then
            the weights.
        outputs: chunk (1, h, A).
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def noise_width(self) -> int:
        """W, standard normal numbers that one chunk takes."""
        return self.inputs[1].shape[-1]

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of everything in weights.safetensors: statistics and weights, in graph order."""
        return {spec.name: spec.shape for spec in self.inputs[2:]}


@dataclass(frozen=True)
class ArtifactManifest:
    """What an artifact's manifest says.

    Args:
        interface: the robot interface the policy was trained for.
        algorithm: e.g. ``qam``.
        head: how an action is made from the networks: one of HEADS, or one behind BEST_OF.
        flow_steps: K, steps of the sampler; 1 for a head that takes one.
        chunk_length: h, actions per chunk.
        policy_version: version of these weights.
        parent_version: version they were fine-tuned from; 0 for none.
        run_id: training run.
        commit: source revision that made it.
        dataset_hash: sha256 of the offline dataset's rows.
        graph: inputs and outputs of policy.onnx.
        tolerance: largest difference accepted between a backend's chunks and the golden ones.
        evaluation: figures by name, as measured.
        sha256: of every other file by name (hex); filled in by ``write_artifact``.
        format_version: version of the format.
    """

    interface: RobotInterface
    algorithm: str
    head: str
    flow_steps: int
    chunk_length: int
    policy_version: int
    parent_version: int
    run_id: str
    commit: str
    dataset_hash: str
    graph: GraphSignature
    tolerance: float
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    format_version: int = ARTIFACT_VERSION

    @property
    def control_period_s(self) -> float:
        """Time between two actions [s]."""
        return self.interface.control_period_s


def write_manifest(manifest: ArtifactManifest) -> dict[str, Any]:
    """Mapping of a manifest; ``read_manifest`` reads it back."""
    return {
        "format_version": manifest.format_version,
        **{name: getattr(manifest, name) for name in _TEXTS},
        "policy_version": manifest.policy_version,
        "parent_version": manifest.parent_version,
        "flow_steps": manifest.flow_steps,
        "chunk_length": manifest.chunk_length,
        "control_period_s": manifest.control_period_s,
        "tolerance": manifest.tolerance,
        "evaluation": dict(manifest.evaluation),
        "graph": {
            "inputs": [_write_spec(spec) for spec in manifest.graph.inputs],
            "outputs": [_write_spec(spec) for spec in manifest.graph.outputs],
        },
        "sha256": dict(manifest.sha256),
        "semantic_hash": manifest.interface.semantic_hash,
        "deployment_hash": manifest.interface.deployment_hash,
        "interface": write_interface(manifest.interface),
    }


def read_manifest(mapping: Mapping[str, Any], where: str) -> ArtifactManifest:
    """Manifest from its mapping.

    Raises:
        ArtifactError: newer version, unknown or missing key, wrong value, an interface that does not
            match its hashes or is malformed, or a graph that does not match the interface.
    """
    version = read_integer(
        mapping.get("format_version"), f"{where}, format_version", 1, ArtifactError
    )
    if version > ARTIFACT_VERSION:
        raise ArtifactError(
            f"{where}: artifact format {version} is newer than this program, which reads up to "
            f"{ARTIFACT_VERSION}; update qam_ros on this machine",
            found=version,
            expected=ARTIFACT_VERSION,
        )
    check_keys(mapping, _KEYS, (), where, ArtifactError)
    interface = _read_interface(mapping, where)

    def text(name: str) -> str:
        return read_text(mapping[name], f"{where}, {name}", ArtifactError)

    def integer(name: str, minimum: int) -> int:
        value = read_integer(mapping[name], f"{where}, {name}", minimum, ArtifactError)
        if value > MAX_NUMBER:
            raise ArtifactError(
                f"{where}: {name} is {value}, at most {MAX_NUMBER} fits"
            )
        return value

    manifest = ArtifactManifest(
        format_version=version,
        interface=interface,
        algorithm=text("algorithm"),
        head=text("head"),
        flow_steps=integer("flow_steps", 1),
        chunk_length=integer("chunk_length", 1),
        policy_version=integer("policy_version", 0),
        parent_version=integer("parent_version", 0),
        run_id=text("run_id"),
        commit=text("commit"),
        dataset_hash=text("dataset_hash"),
        graph=_read_graph(mapping["graph"], f"{where}, graph"),
        tolerance=read_positive(
            mapping["tolerance"], f"{where}, tolerance", ArtifactError
        ),
        evaluation=_mapping(mapping["evaluation"], f"{where}, evaluation"),
        sha256=_read_hashes(mapping["sha256"], f"{where}, sha256"),
    )
    if manifest.tolerance > MAX_TOLERANCE:
        raise ArtifactError(
            f"{where}: tolerance is {manifest.tolerance}, at most {MAX_TOLERANCE} is accepted; golden "
            "chunks would say nothing, export the policy again",
            found=manifest.tolerance,
        )
    check_graph(manifest, where)
    return manifest


def _read_interface(mapping: Mapping[str, Any], where: str) -> RobotInterface:
    """The interface inside, which must have the hashes and the period that the manifest states."""
    try:
        interface = read_interface(
            _mapping(mapping["interface"], f"{where}, interface"), where
        )
    except InterfaceError as problem:
        raise ArtifactError(str(problem), **problem.details) from problem
    for name in ("semantic_hash", "deployment_hash", "control_period_s"):
        if mapping[name] != getattr(interface, name):
            raise ArtifactError(
                f"{where}: {name} is {mapping[name]}, its interface has "
                f"{getattr(interface, name)}; the manifest was changed by hand, export again",
                found=mapping[name],
                expected=getattr(interface, name),
            )
    return interface


def check_graph(manifest: ArtifactManifest, where: str) -> None:
    """Refuse a graph signature that does not fit the interface and the chunk length.

    Raises:
        ArtifactError: names the tensor, its shape and the expected one.
    """
    if manifest.head.removeprefix(BEST_OF) not in HEADS:
        raise ArtifactError(
            f"{where}: head '{manifest.head}' is not known; {nearest(manifest.head, HEADS)}; update "
            "qam_ros on this machine, or export the policy again",
            found=manifest.head,
        )
    observation, action = (
        manifest.interface.observation_size,
        manifest.interface.action_size,
    )
    chunk = manifest.chunk_length
    names = [spec.name for spec in manifest.graph.inputs]
    if tuple(names[: len(FIXED_INPUTS)]) != FIXED_INPUTS:
        raise ArtifactError(
            f"{where}: the graph's inputs start with {names[: len(FIXED_INPUTS)]}, expected "
            f"{list(FIXED_INPUTS)}; export the policy again",
            found=names,
        )
    fixed = {
        spec.name: spec.shape for spec in manifest.graph.inputs[: len(FIXED_INPUTS)]
    }
    fixed |= {spec.name: spec.shape for spec in manifest.graph.outputs}
    noise = fixed["noise"]
    if len(noise) != 2 or noise[0] != 1 or noise[1] > MAX_NOISE:
        raise ArtifactError(
            f"{where}: the graph takes noise of shape {noise}, expected (1, 1) to (1, {MAX_NOISE}); "
            "export the policy with fewer candidates or steps",
            found=noise,
        )
    expected = {
        "observation": (1, observation),
        "noise": noise,
        "observation_mean": (observation,),
        "observation_std": (observation,),
        "chunk": (1, chunk, action),
    }
    if fixed != expected:
        raise ArtifactError(
            f"{where}: the graph has {fixed}, robot '{manifest.interface.robot}' with chunks of "
            f"{chunk} needs {expected}; export the policy for this interface",
            found=fixed,
            expected=expected,
        )


def _write_spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape)}


def _read_graph(value: Any, where: str) -> GraphSignature:
    mapping = _mapping(value, where)
    check_keys(mapping, ("inputs", "outputs"), (), where, ArtifactError)
    inputs = _read_specs(mapping["inputs"], f"{where}.inputs")
    return GraphSignature(inputs, _read_specs(mapping["outputs"], f"{where}.outputs"))


def _read_specs(value: Any, where: str) -> tuple[TensorSpec, ...]:
    if not isinstance(value, list):
        raise ArtifactError(f"{where}: expected a list of tensors, found {value!r}")
    specs = []
    for index, item in enumerate(value):
        label = f"{where}[{index}]"
        mapping = _mapping(item, label)
        check_keys(mapping, ("name", "shape"), (), label, ArtifactError)
        shape = mapping["shape"]
        if not isinstance(shape, list):
            raise ArtifactError(f"{label}: expected a list of sizes, found {shape!r}")
        sizes = tuple(
            read_integer(size, f"{label}, shape", 1, ArtifactError) for size in shape
        )
        specs.append(
            TensorSpec(read_text(mapping["name"], label, ArtifactError), sizes)
        )
    read_names([spec.name for spec in specs], where, ArtifactError)
    return tuple(specs)


def _read_hashes(value: Any, where: str) -> dict[str, str]:
    mapping = _mapping(value, where)
    check_keys(mapping, MEMBERS, (), where, ArtifactError)
    return {name: read_text(mapping[name], where, ArtifactError) for name in MEMBERS}


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ArtifactError(f"{where}: expected a mapping, found {value!r}")
    return value
