# SPDX-License-Identifier: Apache-2.0
"""Policy artifacts: a directory or one zip file. Format: docs/formats/artifact.md.

    manifest.yaml        what it is, and the sha256 of the rest
    policy.onnx          (observation, noise, statistics, weights...) -> chunk
    weights.safetensors  statistics and weights, inputs of that graph
    golden.npz           64 probe observations and noises with the chunks they must give

Reading checks sizes, names and hashes before anything is parsed. It does not run the graph: whether
the chunks come out as they must is checked where the policy is loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from qam_ros.contract.archives import UNREADABLE, open_archive, read_entry
from qam_ros.contract.artifact_manifest import (
    ARTIFACT_VERSION,
    GOLDEN_PROBES,
    MEMBERS,
    ArtifactManifest,
    GraphSignature,
    TensorSpec,
    check_graph,
    read_manifest,
    write_manifest,
)
from qam_ros.contract.errors import ArtifactError, check_keys
from qam_ros.contract.files import (
    atomic_directory,
    atomic_file,
    read_bounded,
    write_file,
)
from qam_ros.contract.golden import Golden, check_golden, read_golden, write_golden
from qam_ros.contract.reading import dump_yaml, parse_yaml
from qam_ros.contract.robot_interface import RobotInterface
from qam_ros.contract.weights import (
    MAX_WEIGHT_BYTES,
    Weights,
    decode_weights,
    encode_weights,
)

__all__ = [
    "ARTIFACT_VERSION",
    "GOLDEN_PROBES",
    "Artifact",
    "ArtifactManifest",
    "Golden",
    "GraphSignature",
    "TensorSpec",
    "Weights",
    "read_artifact",
    "write_artifact",
]

MANIFEST: Final = "manifest.yaml"
WEIGHTS: Final = "weights.safetensors"
MAX_GRAPH_BYTES: Final = 8 * 1024 * 1024
"""Of policy.onnx: weights are not in it; parsing takes up to fifty times the size."""
MAX_MEMBER_BYTES: Final = 64 * 1024 * 1024
"""Of the files without a limit of their own."""
MAX_MANIFEST_BYTES: Final = 512 * 1024
"""Ten times the longest so far; reading YAML takes seconds per megabyte."""
_LIMITS: Final = {MANIFEST: MAX_MANIFEST_BYTES, "policy.onnx": MAX_GRAPH_BYTES}
_FILES: Final = (MANIFEST, *MEMBERS)
_ZIP_DATE: Final = (1980, 1, 1, 0, 0, 0)  # equal contents give equal files


@dataclass(frozen=True, eq=False)
class Artifact:
    """A policy artifact in memory.

    Args:
        manifest: what it says of itself.
        onnx_bytes: policy.onnx.
        weights: statistics and weights by name, in the order of the graph's inputs.
        golden: probes and expected chunks.
    """

    manifest: ArtifactManifest
    onnx_bytes: bytes
    weights: Weights
    golden: Golden

    @property
    def interface(self) -> RobotInterface:
        """The robot interface the policy was trained for."""
        return self.manifest.interface


def write_artifact(
    path: str | Path,
    manifest: ArtifactManifest,
    onnx_bytes: bytes,
    weights: Mapping[str, npt.NDArray[Any]],
    golden: Golden,
    *,
    replace: bool = False,
) -> ArtifactManifest:
    """Write an artifact, whole or not at all.

    Args:
        path: a directory, or a file that ends in .zip.
        manifest: what to say; its ``sha256`` is filled in here.
        onnx_bytes: the policy graph.
        weights: statistics and weights, exactly the graph's inputs after observation and noise.
        golden: probes and the chunks that were computed for them.
        replace: take the place of what is at ``path``.

    Returns:
        The manifest as written.

    Raises:
        ArtifactError: the path exists, or a part contradicts the manifest.
    """
    target = Path(path)
    check_graph(manifest, str(target))
    shapes = manifest.graph.weight_shapes
    check_keys(weights, tuple(shapes), (), str(target), ArtifactError, "weight")
    blob = encode_weights({name: weights[name] for name in shapes})
    decode_weights(blob, shapes, f"{target}, weights")
    check_golden(golden, manifest, f"{target}, golden")
    members = {
        "policy.onnx": onnx_bytes,
        WEIGHTS: blob,
        "golden.npz": write_golden(golden),
    }
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    complete = dataclasses.replace(manifest, sha256=hashes)
    text = dump_yaml(write_manifest(complete), f"{target}, manifest", ArtifactError)
    read_manifest(
        parse_yaml(text, f"{target}, manifest", ArtifactError), f"{target}, manifest"
    )
    members = {MANIFEST: text.encode("utf-8"), **members}
    for name, data in members.items():
        _check_size(name, len(data), f"{target}, {name}")
    if target.suffix == ".zip":
        with atomic_file(target, ArtifactError, replace=replace) as temporary:
            write_file(temporary, _zip_bytes(members))
    else:
        with atomic_directory(target, ArtifactError, replace=replace) as temporary:
            for name, data in members.items():
                write_file(temporary / name, data)
    return complete


def read_artifact(path: str | Path) -> Artifact:
    """Read an artifact after checking sizes, names and hashes.

    Args:
        path: its directory or zip file.

    Raises:
        ArtifactError: missing, oversize, damaged, newer than this program, with files or paths that
            do not belong, or with parts that contradict the manifest.
    """
    source = Path(path)
    try:
        if source.is_dir():
            members = _read_directory(source)
        elif source.is_file():
            members = _read_zip(source)
        else:
            raise ArtifactError(
                f"{source}: no such artifact; check the path", path=str(source)
            )
    except OSError as problem:
        raise ArtifactError(
            f"{source}: cannot be read: {problem}", path=str(source)
        ) from problem
    try:
        text = members[MANIFEST].decode("utf-8")
    except UnicodeDecodeError as problem:
        raise ArtifactError(
            f"{source}, {MANIFEST}: not a text ({problem})"
        ) from problem
    where = f"{source}, {MANIFEST}"
    manifest = read_manifest(parse_yaml(text, where, ArtifactError), where)
    for name in MEMBERS:
        found = hashlib.sha256(members[name]).hexdigest()
        if found != manifest.sha256[name]:
            raise ArtifactError(
                f"{source}, {name}: sha256 is {found}, the manifest says {manifest.sha256[name]}; "
                "the file is truncated or was changed, export or copy the artifact again",
                file=name,
                found=found,
                expected=manifest.sha256[name],
            )
    weights = decode_weights(
        members[WEIGHTS], manifest.graph.weight_shapes, f"{source}, {WEIGHTS}"
    )
    golden = read_golden(
        members["golden.npz"], MAX_MEMBER_BYTES, f"{source}, golden.npz"
    )
    check_golden(golden, manifest, f"{source}, golden.npz")
    return Artifact(manifest, members["policy.onnx"], weights, golden)


def _read_directory(directory: Path) -> dict[str, bytes]:
    entries = itertools.islice(directory.iterdir(), len(_FILES) + 1)
    names = sorted(entry.name for entry in entries)
    check_keys(dict.fromkeys(names), _FILES, (), str(directory), ArtifactError, "file")
    return {
        name: read_bounded(directory / name, _limit(name), ArtifactError)
        for name in _FILES
    }


def _read_zip(file: Path) -> dict[str, bytes]:
    try:
        with open_archive(file, str(file), ArtifactError) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            for name in entries:
                _check_name(name, file)
            check_keys(entries, _FILES, (), str(file), ArtifactError, "file")
            for name, entry in entries.items():
                _check_size(name, entry.file_size, f"{file}, {name}")
            return {name: read_entry(archive, entries[name]) for name in _FILES}
    except UNREADABLE as problem:
        raise ArtifactError(
            f"{file}: not a readable zip file ({problem}); it is truncated or damaged, "
            "export or copy it again",
            path=str(file),
        ) from problem


def _check_name(name: str, file: Path) -> None:
    if "/" in name or "\\" in name or ".." in name:
        raise ArtifactError(
            f"{file}: member '{name}' leads out of the artifact; an artifact holds only "
            f"{', '.join(_FILES)}; do not use this file",
            member=name,
        )


def _limit(member: str) -> int:
    if member == WEIGHTS:
        return MAX_WEIGHT_BYTES
    return min(_LIMITS.get(member, MAX_MEMBER_BYTES), MAX_MEMBER_BYTES)


def _check_size(member: str, size: int, where: str) -> None:
    limit = _limit(member)
    if size > limit:
        raise ArtifactError(
            f"{where}: {size} bytes, at most {limit} are allowed",
            found=size,
            limit=limit,
        )


def _zip_bytes(members: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_DATE), data)
    return stream.getvalue()
