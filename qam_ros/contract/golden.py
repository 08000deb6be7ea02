# SPDX-License-Identifier: Apache-2.0
"""Golden probes: observations and noise with the chunks that every backend must give for them."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qam_ros.contract.artifact_manifest import GOLDEN_PROBES, ArtifactManifest
from qam_ros.contract.errors import ArtifactError, check_keys, check_shape
from qam_ros.contract.files import read_npz


@dataclass(frozen=True, eq=False)
class Golden:
    """Probes on which every backend must give the same chunks.

    Args:
        observations: (64, O) float32.
        noise: (64, W) float32.
        chunks: (64, h, A) float32, in [-1, 1].
    """

    observations: npt.NDArray[np.float32]
    noise: npt.NDArray[np.float32]
    chunks: npt.NDArray[np.float32]


def write_golden(golden: Golden) -> bytes:
    """Npz bytes of the probes; ``read_golden`` reads them back."""
    stream = io.BytesIO()
    np.savez(
        stream,
        observations=golden.observations,
        noise=golden.noise,
        chunks=golden.chunks,
    )
    return stream.getvalue()


def read_golden(data: bytes, limit: int, where: str) -> Golden:
    """Probes from npz bytes; shapes are checked by ``check_golden``.

    Args:
        data: the npz file.
        limit: largest size after decompression [bytes].
        where: file, for the message.

    Raises:
        ArtifactError: not an npz, too large, or other arrays inside.
    """
    arrays = read_npz(data, limit, where, ArtifactError)
    check_keys(arrays, ("observations", "noise", "chunks"), (), where, ArtifactError)
    return Golden(**arrays)


def check_golden(golden: Golden, manifest: ArtifactManifest, where: str) -> None:
    """Refuse probes that do not fit the manifest, or chunks that are not finite in the box.

    Raises:
        ArtifactError: names the array, its shape and the expected one.
    """
    action, chunk = manifest.interface.action_size, manifest.chunk_length
    shapes = {
        "observations": (GOLDEN_PROBES, manifest.interface.observation_size),
        "noise": (GOLDEN_PROBES, manifest.graph.noise_width),
        "chunks": (GOLDEN_PROBES, chunk, action),
    }
    for name, shape in shapes.items():
        array = getattr(golden, name)
        check_shape(name, array, shape, where, ArtifactError)
        if array.dtype != np.float32:
            raise ArtifactError(
                f"{where}: '{name}' has type {array.dtype}, expected float32"
            )
        if not np.isfinite(array).all():
            raise ArtifactError(
                f"{where}: '{name}' holds NaN or infinity; export again"
            )
    if np.abs(golden.chunks).max() > 1.0:
        raise ArtifactError(
            f"{where}: 'chunks' leave [-1, 1]; the graph must clip its output"
        )
