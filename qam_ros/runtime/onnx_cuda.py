# SPDX-License-Identifier: Apache-2.0
"""A policy on ONNX Runtime's CUDA provider, for a GPU without TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnxruntime

from qam_ros.contract.artifact import Artifact
from qam_ros.contract.errors import ArtifactError
from qam_ros.runtime.engines.library import EngineError
from qam_ros.runtime.onnx_check import check_onnx
from qam_ros.runtime.sampler import Float32Array, WeightLayout, sample_one_by_one

PROVIDER: Final = "CUDAExecutionProvider"
OPTIONS: Final = {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": "1"}
"""TF32 off: float32 means float32. The graph is captured at the first run and replayed after it."""


class OnnxCudaSampler:
    """Runs an artifact's graph on a GPU; every tensor has its place in device memory.

    Args:
        artifact: the policy.
        provider: execution provider of ONNX Runtime.
        device: kind of memory that the tensors are in.

    Raises:
        EngineError: this ONNX Runtime has no such provider, or it does not start.
        ArtifactError: the graph breaks the format.
    """

    def __init__(
        self, artifact: Artifact, provider: str = PROVIDER, device: str = "cuda"
    ) -> None:
        graph = artifact.manifest.graph
        check_onnx(artifact.onnx_bytes, graph)
        self.backend = f"onnxruntime {onnxruntime.__version__}, {provider}"
        self.layout = WeightLayout(graph.weight_shapes)
        self.tolerance = artifact.manifest.tolerance
        self._session = _session(artifact.onnx_bytes, provider)
        self._binding = self._session.io_binding()
        self._tensors: dict[str, Any] = {}
        for spec in (*graph.inputs, *graph.outputs):
            value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                spec.shape, np.float32, device, 0
            )
            self._tensors[spec.name] = value
            bind = (
                self._binding.bind_ortvalue_output
                if spec in graph.outputs
                else self._binding.bind_ortvalue_input
            )
            bind(spec.name, value)
        self.set_weights(artifact.weights)

    def set_weights(self, weights: Mapping[str, Float32Array]) -> None:
        """Copy tensors by name; all of them must be given."""
        for name in self.layout.shapes:
            self._tensors[name].update_inplace(np.ascontiguousarray(weights[name]))

    def load(self, flat: Float32Array) -> None:
        """Copy a flat buffer that ``layout.pack`` made, (layout.size,)."""
        self.set_weights(self.layout.views(flat))

    def sample(self, observation: Float32Array, noise: Float32Array) -> Float32Array:
        """Chunk (h, A) in [-1, 1], a new array, for an observation (O,) and noise (W,)."""
        self._tensors["observation"].update_inplace(observation[None])
        self._tensors["noise"].update_inplace(noise[None])
        self._session.run_with_iobinding(self._binding)
        chunk: Float32Array = self._tensors["chunk"].numpy()[0].copy()
        return chunk  # (h, A)

    def close(self) -> None:
        """There is no thread to let go of."""

    def sample_all(
        self, observations: Float32Array, noise: Float32Array
    ) -> Float32Array:
        """Chunks (n, h, A) for observations (n, O) and noise (n, W), one by one."""
        return sample_one_by_one(self, observations, noise)


def _session(data: bytes, provider: str) -> onnxruntime.InferenceSession:
    found = onnxruntime.get_available_providers()
    if provider not in found:
        raise EngineError(
            f"this onnxruntime {onnxruntime.__version__} has {', '.join(found)}, not {provider}; install "
            "onnxruntime-gpu in its place, or use the backend onnx",
            found=found,
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # a node that falls back to the CPU would copy to and fro in every step: refused, not hidden
    if provider == PROVIDER:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings = OPTIONS if provider == PROVIDER else {}
    try:
        session = onnxruntime.InferenceSession(
            data, options, providers=[(provider, settings)]
        )
    except Exception as problem:
        raise ArtifactError(
            f"policy.onnx: ONNX Runtime refuses the graph on {provider}: {problem}"
        ) from problem
    if provider not in session.get_providers():
        raise EngineError(
            f"{provider} is installed and does not start; is there a GPU, and do driver, CUDA and cuDNN fit "
            f"onnxruntime {onnxruntime.__version__}?"
        )
    return session
