# SPDX-License-Identifier: Apache-2.0
"""A policy on ONNX Runtime: observation and noise in, an action chunk out.

Weights are inputs of the graph, bound once to one flat float32 buffer: changing them is a copy into
that buffer, a tenth of a millisecond, while a new session would cost tens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from qam_ros.contract.artifact import Artifact
from qam_ros.contract.artifact_manifest import ArtifactManifest
from qam_ros.contract.errors import ArtifactError
from qam_ros.runtime.onnx_check import check_onnx
from qam_ros.runtime.precision import float32_products

Float32Array = npt.NDArray[np.float32]

ALIGNMENT: Final = 64
"""Each tensor starts at a multiple of so many floats: 256 bytes, as engines on a GPU ask."""


class OneChunk(Protocol):
    """Anything that makes a chunk."""

    def sample(self, observation: Float32Array, noise: Float32Array) -> Float32Array:
        """Chunk (h, A) for an observation (O,) and noise (W,)."""


class Sampler(OneChunk, Protocol):
    """Anything that makes chunks with exchangeable weights.

    Attributes:
        backend: name of what runs the graph, with its version, for reports.
        layout: of the buffer that load takes.
        tolerance: largest error accepted on the golden chunks.
    """

    @property
    def backend(self) -> str:
        """What runs the graph."""

    layout: WeightLayout
    tolerance: float

    def load(self, flat: Float32Array) -> None:
        """Take other weights, packed by the artifact's ``WeightLayout``."""

    def set_weights(self, weights: Mapping[str, Float32Array]) -> None:
        """Take tensors by name; all of them must be given."""

    def sample_all(
        self, observations: Float32Array, noise: Float32Array
    ) -> Float32Array:
        """Chunks (n, h, A) for observations (n, O) and noise (n, W), one by one."""

    def close(self) -> None:
        """Let go of threads; nothing else may be called afterwards."""


class WeightLayout:
    """Where each weight tensor lies in one flat float32 buffer.

    Args:
        shapes: name -> shape, in the order of the graph's inputs.

    Attributes:
        starts: name -> first float of each.
        size: floats in the buffer.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self.starts: dict[str, int] = {}
        end = 0
        for name, shape in self.shapes.items():
            self.starts[name] = end
            end += -(-int(np.prod(shape)) // ALIGNMENT) * ALIGNMENT
        self.size = end

    def views(self, flat: Float32Array) -> dict[str, Float32Array]:
        """Tensors by name, as views into the buffer (size,)."""
        return {
            name: flat[start : start + int(np.prod(self.shapes[name]))].reshape(
                self.shapes[name]
            )
            for name, start in self.starts.items()
        }

    def pack(self, weights: Mapping[str, Float32Array]) -> Float32Array:
        """One flat buffer (size,) with a copy of all tensors."""
        flat = np.zeros(self.size, dtype=np.float32)
        for name, view in self.views(flat).items():
            view[...] = weights[name]
        return flat


class BoundSession:
    """A session whose inputs and output are bound once to buffers of its own.

    Args:
        session: of an artifact's graph.
        manifest: of the artifact.
        weights: further inputs by name; they must live as long. None: they are constants.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        manifest: ArtifactManifest,
        weights: Mapping[str, Float32Array] | None = None,
    ) -> None:
        sizes = manifest.interface.observation_size, manifest.interface.action_size
        self._session = session
        self._observation = np.zeros((1, sizes[0]), np.float32)
        self._noise = np.zeros((1, manifest.graph.noise_width), np.float32)
        self._chunk = np.zeros((1, manifest.chunk_length, sizes[1]), np.float32)
        self._binding = session.io_binding()
        ends = {"observation": self._observation, "noise": self._noise}
        for name, array in (ends | dict(weights or {})).items():
            self._binding.bind_input(
                name, "cpu", 0, np.float32, array.shape, array.ctypes.data
            )
        self._binding.bind_output(
            "chunk", "cpu", 0, np.float32, self._chunk.shape, self._chunk.ctypes.data
        )

    def sample(self, observation: Float32Array, noise: Float32Array) -> Float32Array:
        """Chunk (h, A) in [-1, 1], a new array, for an observation (O,) and noise (W,)."""
        self._observation[0] = observation
        self._noise[0] = noise
        self._session.run_with_iobinding(self._binding)
        chunk: Float32Array = self._chunk[0].copy()
        return chunk  # (h, A)


class OnnxSampler:
    """Runs an artifact's graph on the CPU; every buffer is bound once.

    Args:
        artifact: the policy.
        threads: threads inside an operator; one is best for small networks on a busy robot.

    Raises:
        ArtifactError: the graph breaks the format, or ONNX Runtime refuses it.
    """

    def __init__(self, artifact: Artifact, threads: int = 1) -> None:
        manifest = artifact.manifest
        check_onnx(artifact.onnx_bytes, manifest.graph)
        self.backend = f"onnxruntime {onnxruntime.__version__} on the CPU"
        self.layout = WeightLayout(manifest.graph.weight_shapes)
        self.tolerance = manifest.tolerance
        self._flat = _aligned(self.layout.size)
        self._bound = BoundSession(
            open_session(float32_products(artifact.onnx_bytes), threads),
            manifest,
            self.layout.views(self._flat),
        )
        self.set_weights(artifact.weights)

    def set_weights(self, weights: Mapping[str, Float32Array]) -> None:
        """Copy tensors by name into the buffer; all of them must be given."""
        for name, view in self.layout.views(self._flat).items():
            view[...] = weights[name]

    def load(self, flat: Float32Array) -> None:
        """Copy a flat buffer that ``layout.pack`` made, (layout.size,)."""
        self._flat[:] = flat

    def sample(self, observation: Float32Array, noise: Float32Array) -> Float32Array:
        """Turn an observation and noise into an action chunk.

        Args:
            observation: (O,), as the robot interface scales it.
            noise: (W,), standard normal.

        Returns:
            (h, A) in [-1, 1], a new array.
        """
        return self._bound.sample(observation, noise)  # (h, A)

    def close(self) -> None:
        """There is no thread to let go of."""

    def sample_all(
        self, observations: Float32Array, noise: Float32Array
    ) -> Float32Array:
        """Chunks (n, h, A) for observations (n, O) and noise (n, W), one by one."""
        return sample_one_by_one(self, observations, noise)


def sample_one_by_one(
    sampler: OneChunk, observations: Float32Array, noise: Float32Array
) -> Float32Array:
    """Chunks (n, h, A) for observations (n, O) and noise (n, W)."""
    return np.stack(
        [sampler.sample(s, z) for s, z in zip(observations, noise, strict=True)]
    )


def verify(sampler: Sampler, artifact: Artifact) -> float:
    """Run the golden probes with the artifact's own weights, which also warms the session up.

    Returns:
        Largest absolute difference to the expected chunks.

    Raises:
        ArtifactError: it exceeds the sampler's tolerance, or the graph fails when it runs.
    """
    golden = artifact.golden
    try:
        chunks = sampler.sample_all(golden.observations, golden.noise)
    except Exception as problem:
        raise ArtifactError(
            f"policy.onnx: the graph fails on {sampler.backend} when it runs: {problem}"
        ) from problem
    error = float(np.abs(chunks - golden.chunks).max())
    if not error <= sampler.tolerance:
        raise ArtifactError(
            f"policy.onnx: the golden chunks come out {error:.2e} off on {sampler.backend}, at most "
            f"{sampler.tolerance:.2e} are allowed; export the policy again, install the version it was "
            "exported with, or use the backend onnx",
            found=error,
            expected=sampler.tolerance,
        )
    return error


def _aligned(size: int) -> Float32Array:
    """Zeros (size,) whose memory starts at a multiple of ALIGNMENT."""
    buffer = np.zeros(size + ALIGNMENT, dtype=np.float32)
    start = -(buffer.ctypes.data // 4) % ALIGNMENT
    return buffer[start : start + size]


def open_session(data: bytes, threads: int) -> onnxruntime.InferenceSession:
    """A session on the CPU.

    Raises:
        ArtifactError: ONNX Runtime refuses the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    # A spinning thread would eat the core that the guard needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Never its own format, which the checks do not read.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"]
        )
    except Exception as problem:
        raise ArtifactError(
            f"policy.onnx: ONNX Runtime refuses the graph: {problem}"
        ) from problem
