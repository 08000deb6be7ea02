# SPDX-License-Identifier: Apache-2.0
"""A policy on a compiled engine: one replay of a CUDA graph per chunk.

Observation, noise, weights and chunk have fixed places in device memory; the copies in and out are
part of the graph. New weights are one copy on the same stream, so they count from the next chunk on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qam_ros.contract.artifact import Artifact
from qam_ros.runtime.engines.library import Device, Engine, EngineError
from qam_ros.runtime.sampler import (
    Float32Array,
    WeightLayout,
    sample_one_by_one,
)


class EngineSampler:
    """Runs an engine of an artifact's graph.

    Args:
        artifact: the policy.
        engine: built from exactly this graph.
        device: the GPU it was built on.
        name: of the backend, for reports.
        replay: capture the execution once and replay it; False enqueues it anew each time, for a
            driver or an engine that cannot be captured.

    Raises:
        EngineError: the engine has other tensors than the graph, or cannot be captured.
    """

    def __init__(
        self,
        artifact: Artifact,
        engine: Engine,
        device: Device,
        name: str,
        *,
        replay: bool = True,
    ) -> None:
        graph = artifact.manifest.graph
        expected = {spec.name: spec.shape for spec in (*graph.inputs, *graph.outputs)}
        if engine.tensors != expected:
            different = sorted(set(engine.tensors.items()) ^ set(expected.items()))
            raise EngineError(
                f"the engine has other tensors than the graph, first {different[0]}; run qam compile "
                "--rebuild"
            )
        self.backend = name
        self.layout = WeightLayout(graph.weight_shapes)
        self.tolerance = artifact.manifest.tolerance
        self._engine, self._device = engine, device
        ends = WeightLayout(
            {k: v for k, v in expected.items() if k not in self.layout.shapes}
        )
        device.enter()
        self._flat, self._weights = self._memory(self.layout)
        self._ends, self._ends_address = self._memory(ends)
        views = ends.views(self._ends)
        self._observation, self._noise = views["observation"][0], views["noise"][0]
        self._chunk = views["chunk"][0]
        places = {n: self._weights + 4 * k for n, k in self.layout.starts.items()}
        places |= {n: self._ends_address + 4 * k for n, k in ends.starts.items()}
        for tensor, address in places.items():
            engine.bind(tensor, address)
        self._in = self._ends[: ends.starts["chunk"]]
        self._out = self._ends[ends.starts["chunk"] :]
        self._out_address = places["chunk"]
        self.set_weights(artifact.weights)
        self._tick = self._enqueue
        self._tick()  # engines compile or choose kernels at their first run, which is not captured
        device.synchronise()
        if replay:
            self._tick = device.capture(self._enqueue)

    def _memory(self, layout: WeightLayout) -> tuple[Float32Array, int]:
        """Pinned buffer and device memory of one layout."""
        host: Any = self._device.pinned(4 * layout.size).view(np.float32)
        return host, self._device.allocate(4 * layout.size)

    def _enqueue(self) -> None:
        self._device.upload(self._ends_address, self._in)
        self._engine.enqueue(self._device.stream)
        self._device.download(self._out, self._out_address)

    def set_weights(self, weights: Mapping[str, Float32Array]) -> None:
        """Copy tensors by name; all of them must be given."""
        self.load(self.layout.pack(weights))

    def load(self, flat: Float32Array) -> None:
        """Copy a flat buffer that ``layout.pack`` made, (layout.size,)."""
        self._device.enter()
        self._flat[:] = flat
        self._device.upload(self._weights, self._flat)
        self._device.synchronise()  # the pinned buffer may be filled again

    def sample(self, observation: Float32Array, noise: Float32Array) -> Float32Array:
        """Chunk (h, A) in [-1, 1], a new array, for an observation (O,) and noise (W,)."""
        self._device.enter()
        self._observation[:] = observation
        self._noise[:] = noise
        self._tick()
        self._device.synchronise()
        chunk: Float32Array = self._chunk.copy()
        return chunk  # (h, A)

    def close(self) -> None:
        """There is no thread to let go of."""

    def sample_all(
        self, observations: Float32Array, noise: Float32Array
    ) -> Float32Array:
        """Chunks (n, h, A) for observations (n, O) and noise (n, W), one by one."""
        return sample_one_by_one(self, observations, noise)
