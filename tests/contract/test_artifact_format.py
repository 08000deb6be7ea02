# SPDX-License-Identifier: Apache-2.0
"""Policy artifacts: round trip, the committed sample, and every damage with its message."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from qam_ros.contract.artifact import (
    Artifact,
    Golden,
    TensorSpec,
    read_artifact,
    write_artifact,
)
from qam_ros.contract.errors import ArtifactError
from qam_ros.contract.interface import RobotInterface


@pytest.fixture
def sample(data: Path) -> Artifact:
    return read_artifact(data / "artifact_v1")


def rewrite(path: Path, sample: Artifact, **changes: Any) -> None:
    parts = {
        "manifest": sample.manifest,
        "onnx_bytes": sample.onnx_bytes,
        "weights": sample.weights,
        "golden": sample.golden,
    }
    write_artifact(path, **{**parts, **changes})


@pytest.mark.parametrize("name", ["artifact_v1", "artifact_v1.zip"])
def test_sample_of_format_1_still_loads_with_its_meaning(
    data: Path, interface: RobotInterface, samples: ModuleType, name: str
) -> None:
    loaded = read_artifact(data / name)
    expected = samples.sample_manifest(interface)
    assert loaded.interface == interface
    assert dataclasses.replace(loaded.manifest, sha256={}) == expected
    assert loaded.manifest.control_period_s == 0.1
    assert list(loaded.weights) == ["observation_mean", "observation_std", "gain"]
    for key, tensor in samples.sample_weights().items():
        np.testing.assert_array_equal(loaded.weights[key], tensor)
    np.testing.assert_array_equal(loaded.golden.chunks, samples.sample_golden().chunks)


def test_golden_chunks_of_the_sample_come_out_of_its_graph(data: Path) -> None:
    onnxruntime = pytest.importorskip(
        "onnxruntime", reason="onnxruntime is not installed"
    )
    sample = read_artifact(data / "artifact_v1.zip")
    session = onnxruntime.InferenceSession(
        sample.onnx_bytes, providers=["CPUExecutionProvider"]
    )
    assert [item.name for item in session.get_inputs()] == [
        spec.name for spec in sample.manifest.graph.inputs
    ]
    for index in range(64):
        inputs = {
            "observation": sample.golden.observations[index : index + 1],
            "noise": sample.golden.noise[index : index + 1],
            **sample.weights,
        }
        (chunk,) = session.run(["chunk"], inputs)
        np.testing.assert_allclose(
            chunk[0], sample.golden.chunks[index], atol=sample.manifest.tolerance
        )


@pytest.mark.parametrize("name", ["copy", "copy.zip"])
def test_artifact_survives_writing_and_reading(
    tmp_path: Path, sample: Artifact, name: str
) -> None:
    rewrite(tmp_path / name, sample)
    again = read_artifact(tmp_path / name)
    assert again.manifest == sample.manifest
    assert again.onnx_bytes == sample.onnx_bytes
    for key, tensor in sample.weights.items():
        np.testing.assert_array_equal(again.weights[key], tensor)
    for field in dataclasses.fields(Golden):
        np.testing.assert_array_equal(
            getattr(again.golden, field.name), getattr(sample.golden, field.name)
        )


@pytest.mark.parametrize(
    ("head", "width"), [("edited_flow", 12), ("best_of_diffusion", 600)]
)
def test_other_heads_and_widths_of_noise_survive_writing_and_reading(
    tmp_path: Path, sample: Artifact, head: str, width: int
) -> None:
    changes = _noise((1, width))(sample)
    manifest = dataclasses.replace(changes["manifest"], head=head)
    golden = dataclasses.replace(sample.golden, noise=np.ones((64, width), np.float32))
    rewrite(tmp_path / "a.zip", sample, manifest=manifest, golden=golden)
    again = read_artifact(tmp_path / "a.zip")
    assert (again.manifest.head, again.manifest.graph.noise_width) == (head, width)
    np.testing.assert_array_equal(again.golden.noise, golden.noise)


def test_zip_files_of_equal_contents_are_equal(
    tmp_path: Path, sample: Artifact
) -> None:
    rewrite(tmp_path / "a.zip", sample)
    rewrite(tmp_path / "b.zip", sample)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_transposed_weights_are_written_as_they_read(
    tmp_path: Path, sample: Artifact
) -> None:
    turned = np.asfortranarray(sample.weights["gain"])
    rewrite(tmp_path / "a", sample, weights={**sample.weights, "gain": turned})
    np.testing.assert_array_equal(read_artifact(tmp_path / "a").weights["gain"], turned)


@pytest.mark.parametrize("name", ["a", "a.zip"])
def test_existing_artifact_is_kept_unless_replaced(
    tmp_path: Path, sample: Artifact, name: str
) -> None:
    rewrite(tmp_path / name, sample)
    newer = dataclasses.replace(sample.manifest, policy_version=9)
    with pytest.raises(
        ArtifactError, match=r"already exists; remove it or choose another path"
    ):
        rewrite(tmp_path / name, sample, manifest=newer)
    assert read_artifact(tmp_path / name).manifest.policy_version == 3
    rewrite(tmp_path / name, sample, manifest=newer, replace=True)
    assert read_artifact(tmp_path / name).manifest.policy_version == 9
    assert [path.name for path in tmp_path.iterdir()] == [name]


Change = Callable[[Artifact], dict[str, Any]]


def _weights(**changes: np.ndarray) -> Change:
    return lambda sample: {"weights": {**sample.weights, **changes}}


def _golden(**changes: np.ndarray) -> Change:
    return lambda sample: {"golden": dataclasses.replace(sample.golden, **changes)}


def _graph(**changes: Any) -> Change:
    def change(sample: Artifact) -> dict[str, Any]:
        graph = dataclasses.replace(sample.manifest.graph, **changes)
        return {"manifest": dataclasses.replace(sample.manifest, graph=graph)}

    return change


def _noise(shape: tuple[int, ...]) -> Change:
    def change(sample: Artifact) -> dict[str, Any]:
        first, _, *rest = sample.manifest.graph.inputs
        inputs = (first, TensorSpec("noise", shape), *rest)
        return _graph(inputs=inputs)(sample)

    return change


CONTRADICTIONS: dict[str, tuple[Change, str]] = {
    "weight of another shape": (
        _weights(gain=np.zeros((6, 4), np.float32)),
        r"'gain' has shape \(6, 4\), expected \(4, 6\)",
    ),
    "unknown weight": (
        _weights(gian=np.zeros((4, 6), np.float32)),
        r"unknown weight 'gian'; did you mean 'gain'",
    ),
    "double precision weight": (
        _weights(gain=np.zeros((4, 6))),
        r"'gain' has type float64, expected float32",
    ),
    "NaN weight": (
        _weights(gain=np.full((4, 6), np.nan, np.float32)),
        r"'gain' holds 24 values that are NaN or infinite",
    ),
    "too few probes": (
        _golden(noise=np.zeros((63, 6), np.float32)),
        r"'noise' has shape \(63, 6\), expected \(64, 6\)",
    ),
    "NaN chunk": (
        _golden(chunks=np.full((64, 2, 3), np.nan, np.float32)),
        r"'chunks' holds NaN",
    ),
    "chunk out of the box": (
        _golden(chunks=np.full((64, 2, 3), 1.5, np.float32)),
        r"'chunks' leave \[-1, 1\]; the graph must clip",
    ),
    "chunk length that is not the graph's": (
        lambda sample: {
            "manifest": dataclasses.replace(sample.manifest, chunk_length=5)
        },
        r"chunks of 5 needs .*'chunk': \(1, 5, 3\)",
    ),
    "head that is not known": (
        lambda sample: {"manifest": dataclasses.replace(sample.manifest, head="folw")},
        r"head 'folw' is not known; did you mean 'flow'",
    ),
    "more noise than a chunk may take": (
        _noise((1, 65_537)),
        r"noise of shape \(1, 65537\), expected \(1, 1\) to \(1, 65536\)",
    ),
    "noise of two chunks": (_noise((2, 6)), r"noise of shape \(2, 6\), expected"),
    "probes with less noise than the graph takes": (
        _noise((1, 12)),
        r"'noise' has shape \(64, 6\), expected \(64, 12\)",
    ),
    "inputs in another order": (
        _graph(inputs=(TensorSpec("noise", (1, 6)), TensorSpec("observation", (1, 4)))),
        r"the graph's inputs start with \['noise', 'observation'\]",
    ),
    "output of another name": (
        _graph(outputs=(TensorSpec("action", (1, 2, 3)),)),
        r"the graph has .*'action'.* needs .*'chunk': \(1, 2, 3\)",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_artifact_that_contradicts_itself_is_not_written(
    tmp_path: Path, sample: Artifact, case: str
) -> None:
    change, message = CONTRADICTIONS[case]
    with pytest.raises(ArtifactError, match=message):
        rewrite(tmp_path / "a", sample, **change(sample))
    assert list(tmp_path.iterdir()) == []
