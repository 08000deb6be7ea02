# SPDX-License-Identifier: Apache-2.0
"""Weights as bytes: one safetensors blob of float32 tensors, checked by name and shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from qam_ros.contract.errors import ArtifactError, check_keys, check_shape

Weights = dict[str, npt.NDArray[np.float32]]
"""Float32 tensors by name, statistics included."""

MAX_WEIGHT_BYTES: Final = 256 * 1024 * 1024
"""Ten critics of 4 x 1024 that an artifact may carry take half of it."""
MAX_HEADER_BYTES: Final = 1024 * 1024
"""Of the list of tensors: ten thousand, where a policy has some dozen."""


def encode_weights(weights: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Safetensors blob of float32 tensors; ``decode_weights`` reads it back.

    Args:
        weights: tensors by name.

    Raises:
        ArtifactError: a tensor is not float32.
    """
    for name, tensor in weights.items():
        if tensor.dtype != np.float32:
            raise ArtifactError(
                f"weights: '{name}' has type {tensor.dtype}, expected float32"
            )
    # safetensors writes the memory as it lies: a transposed view would come out scrambled
    return save(
        {name: np.ascontiguousarray(tensor) for name, tensor in weights.items()}
    )


def decode_weights(
    data: bytes, shapes: Mapping[str, tuple[int, ...]], where: str
) -> Weights:
    """Tensors of a safetensors blob, in the order of ``shapes``.

    Args:
        data: the blob.
        shapes: every tensor that must be there, and its shape; no other may be.
        where: file or message, for the errors.

    Raises:
        ArtifactError: too large, truncated, a tensor missing, unknown, of another shape or type, or
            holding NaN or infinity.
    """
    if len(data) > MAX_WEIGHT_BYTES:
        raise ArtifactError(
            f"{where}: {len(data)} bytes, at most {MAX_WEIGHT_BYTES} are read",
            found=len(data),
        )
    header = int.from_bytes(data[:8], "little")
    if header > MAX_HEADER_BYTES:
        raise ArtifactError(
            f"{where}: not a readable safetensors blob (its list of tensors takes {header} bytes, at "
            f"most {MAX_HEADER_BYTES} are read); it is truncated or damaged",
            found=header,
        )
    try:
        tensors = load(data)
    except (
        SafetensorError,
        LookupError,
        ValueError,
        TypeError,
        OverflowError,
    ) as problem:
        raise ArtifactError(
            f"{where}: not a readable safetensors blob ({problem}); it is truncated or damaged"
        ) from problem
    check_keys(tensors, tuple(shapes), (), where, ArtifactError, "tensor")
    for name, shape in shapes.items():
        tensor = tensors[name]
        check_shape(name, tensor, shape, where, ArtifactError)
        if tensor.dtype != np.float32:
            raise ArtifactError(
                f"{where}: '{name}' has type {tensor.dtype}, expected float32"
            )
        if not np.isfinite(tensor).all():
            bad = int((~np.isfinite(tensor)).sum())
            raise ArtifactError(
                f"{where}: '{name}' holds {bad} values that are NaN or infinite; "
                "the training diverged, go back to an earlier version",
                name=name,
            )
    return {name: tensors[name] for name in shapes}
