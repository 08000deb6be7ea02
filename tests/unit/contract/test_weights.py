# SPDX-License-Identifier: Apache-2.0
"""Weights as bytes: round trip and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from qam_ros.contract import weights as module
from qam_ros.contract.errors import ArtifactError
from qam_ros.contract.weights import decode_weights, encode_weights

SHAPES = {"b/weight": (2, 3), "a/bias": (3,)}


def tensors() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        name: generator.normal(size=shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def test_weights_survive_in_the_order_that_is_asked_for() -> None:
    weights = tensors()
    decoded = decode_weights(encode_weights(weights), SHAPES, "blob")
    assert list(decoded) == list(SHAPES)
    for name, tensor in weights.items():
        np.testing.assert_array_equal(decoded[name], tensor)


@pytest.mark.parametrize("cut", [1, 30, 100])
def test_truncated_blob_is_refused(cut: int) -> None:
    with pytest.raises(
        ArtifactError, match=r"update 4: not a readable safetensors blob"
    ):
        decode_weights(encode_weights(tensors())[:-cut], SHAPES, "update 4")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_tensor_that_is_not_finite_is_named(value: float) -> None:
    weights = tensors()
    weights["a/bias"][1] = value
    with pytest.raises(
        ArtifactError, match=r"update 4: 'a/bias' holds 1 values that are NaN"
    ) as caught:
        decode_weights(encode_weights(weights), SHAPES, "update 4")
    assert caught.value.details["name"] == "a/bias"


def test_missing_and_unknown_tensors_are_named() -> None:
    weights = tensors()
    with pytest.raises(ArtifactError, match=r"tensor 'c' is missing"):
        decode_weights(encode_weights(weights), {**SHAPES, "c": (1,)}, "x")
    with pytest.raises(ArtifactError, match=r"unknown tensor 'a/bias'"):
        decode_weights(encode_weights(weights), {"b/weight": (2, 3)}, "x")


def test_oversize_blob_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WEIGHT_BYTES", 10)
    with pytest.raises(ArtifactError, match=r"x: \d+ bytes, at most 10 are read"):
        decode_weights(encode_weights(tensors()), SHAPES, "x")
