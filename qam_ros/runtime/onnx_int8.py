# SPDX-License-Identifier: Apache-2.0
"""A policy on the CPU with int8 weights: for nets so wide that reading their weights takes the time.

The weights of every large layer are rounded here, on the robot, from the checked graph and weights:
blocks of 256 rows of a column share one float32 scale, and ONNX Runtime's MatMulNBits rounds what comes
in block by block, too. Constant weights are packed when a session is made, so new weights need a new
session, which takes tens of milliseconds: it is made on a thread of its own, and until it is there and
agrees with float32 the new weights run in float32. A tick waits for it only where a model is put into
bytes with the interpreter held, which is felt with nets far wider than the paper's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from qam_ros.contract.artifact import Artifact
from qam_ros.runtime.engines.library import EngineError
from qam_ros.runtime.precision import float32_products
from qam_ros.runtime.sampler import (
    BoundSession,
    Float32Array,
    OneChunk,
    OnnxSampler,
    open_session,
    sample_one_by_one,
)

TOLERANCE: Final = 0.05
"""Largest difference to the golden chunks that int8 may make, and to float32 after a swap; chunks lie
in [-1, 1]. That of bfloat16 products (qam_train/export.py); measured on trained nets: docs/deploy.md."""
SMALLEST: Final = 128
"""Layers with fewer rows or columns stay float32: rounding what comes in costs more than it saves."""
BLOCK: Final = (
    256  # rows that share a scale; smaller ones are slower and hardly more exact
)
SLOWEST: Final = 1.5
"""A CPU without kernels for 8-bit weights is tens of times slower than float32."""

logger = logging.getLogger(__name__)


class Int8Sampler:
    """Runs an artifact's graph with int8 weights in its large layers.

    Args:
        artifact: the policy.
        threads: inside an operator.

    Attributes:
        tolerance: largest error accepted on the golden chunks.
        refused: versions whose int8 chunks were off, which run in float32.

    Raises:
        EngineError: no layer is large enough, or this machine is not faster with int8.
        ArtifactError: the graph breaks the format.
    """

    def __init__(self, artifact: Artifact, threads: int = 1) -> None:
        self._plain = OnnxSampler(artifact, threads)
        self.layout = self._plain.layout
        self.tolerance = max(TOLERANCE, artifact.manifest.tolerance)
        self.refused = 0
        self._artifact, self._threads = artifact, threads
        self._graph = artifact.onnx_bytes
        if float32_products(self._graph) is not self._graph:
            raise EngineError(
                "this policy was exported with products in lower precision, which is for a GPU; export it "
                "in float32 for the backend onnx-int8"
            )
        self._reference: OnnxSampler | None = None
        self._cores = os.sched_getaffinity(0)
        self._changed = threading.Condition()
        self._wanted: Float32Array | None = None
        self._closed = False
        self._small: BoundSession | None = self._quantised(artifact.weights)
        self._check_speed(self._small)
        # Here and not at the first swap: starting a thread waits until it runs.
        self._worker = threading.Thread(target=self._work, name="int8", daemon=True)
        self._worker.start()

    @property
    def backend(self) -> str:
        """Name for reports; says so while new weights run in float32."""
        name = f"onnxruntime {onnxruntime.__version__}, int8 on the CPU"
        if self._small is not None:
            return name
        why = "until rounded" if self._wanted is not None else "int8 was refused"
        return f"{name} (float32: {why})"

    def sample(self, observation: Float32Array, noise: Float32Array) -> Float32Array:
        """Chunk (h, A) in [-1, 1], a new array, for an observation (O,) and noise (W,)."""
        small = self._small
        if small is None:
            return self._plain.sample(observation, noise)
        return small.sample(observation, noise)  # (h, A)

    def sample_all(
        self, observations: Float32Array, noise: Float32Array
    ) -> Float32Array:
        """Chunks (n, h, A) for observations (n, O) and noise (n, W), one by one."""
        return sample_one_by_one(self, observations, noise)

    def set_weights(self, weights: Mapping[str, Float32Array]) -> None:
        """Take tensors by name; all of them must be given."""
        self.load(self.layout.pack(weights))

    def load(self, flat: Float32Array) -> None:
        """Run a flat buffer (layout.size,) at once in float32, and in int8 as soon as it is rounded.

        Args:
            flat: as ``layout.pack`` made it; it must not change afterwards.
        """
        self._plain.load(flat)
        with self._changed:
            self._small = None
            self._wanted = flat
            self._changed.notify_all()

    def close(self) -> None:
        """Round no more weights; the thread ends after those it is at."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def settle(self, timeout_s: float) -> bool:
        """Wait until the newest weights are rounded or refused; whether they are. Not for a tick."""
        with self._changed:
            return self._changed.wait_for(lambda: self._wanted is None, timeout_s)

    def _work(self) -> None:
        """Round the newest weights, over and over."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._wanted is not None)
                flat = self._wanted
            if self._closed or flat is None:
                return
            self._make_ordinary()
            small = self._agreed(flat)
            with self._changed:
                if self._wanted is flat:  # else newer ones came meanwhile
                    self._small, self._wanted = small, None
                    self._changed.notify_all()

    def _make_ordinary(self) -> None:
        """Leave scheduling and cores of a control thread, which others of its process are given, too."""
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        with contextlib.suppress(OSError):  # a core was taken from the process
            os.sched_setaffinity(0, self._cores)

    def _agreed(self, flat: Float32Array) -> BoundSession | None:
        """A session of weights whose int8 chunks are near those of float32 on the probes."""
        golden = self._artifact.golden
        try:
            reference = self._reference = self._reference or OnnxSampler(self._artifact)
            reference.load(flat)
            exact = reference.sample_all(golden.observations, golden.noise)
            small = self._quantised(self.layout.views(flat))
            chunks = sample_one_by_one(small, golden.observations, golden.noise)
        except Exception as problem:  # noqa: BLE001 - the next weights need this thread
            self._refuse(f"cannot be rounded ({problem!r})")
            return None
        error = float(np.abs(chunks - exact).max())
        if not error <= self.tolerance:
            self._refuse(
                f"give chunks {error:.2e} off in int8 (allowed {self.tolerance:.0e})"
            )
            return None
        return small

    def _refuse(self, reason: str) -> None:
        self.refused += 1
        logger.warning("new weights %s: they run in float32", reason)

    def _quantised(self, weights: Mapping[str, Float32Array]) -> BoundSession:
        data, layers = int8_graph(self._graph, weights)
        if layers == 0:
            raise EngineError(
                f"no layer of this policy has {SMALLEST} rows and columns, int8 would make nothing faster; "
                "use the backend onnx"
            )
        session = open_session(data, self._threads)
        return BoundSession(session, self._artifact.manifest)

    def _check_speed(self, small: BoundSession) -> None:
        golden = self._artifact.golden
        pair = golden.observations[0], golden.noise[0]
        quick, plain = _seconds(small, *pair), _seconds(self._plain, *pair)
        if quick > SLOWEST * plain:
            raise EngineError(
                f"int8 takes {1e3 * quick:.2f} ms a chunk on this CPU, float32 {1e3 * plain:.2f} ms; use "
                "the backend onnx",
                found=quick,
                expected=plain,
            )


def int8_graph(data: bytes, weights: Mapping[str, Float32Array]) -> tuple[bytes, int]:
    """The graph with its weights as constants, those of the large layers as int8.

    Args:
        data: a model in float32 that was checked.
        weights: by name.

    Returns:
        The model, and how many weights were rounded.
    """
    model = onnx.load_model_from_string(data)
    graph = model.graph
    rounded: set[str] = set()
    for node in graph.node:
        if _is_large(node, weights):
            _replace(node, weights[node.input[1]].shape)
            rounded.add(node.input[1].removesuffix("_int8"))
    still_used = {name for node in graph.node for name in node.input}
    for value in list(graph.input):
        if value.name not in weights:
            continue
        graph.input.remove(value)
        if value.name in still_used:
            graph.initializer.append(
                numpy_helper.from_array(
                    np.ascontiguousarray(weights[value.name]), value.name
                )
            )
    for name in sorted(rounded):
        whole, scales = rounded_blocks(weights[name], _block(weights[name].shape[0]))
        graph.initializer.append(numpy_helper.from_array(whole, f"{name}_int8"))
        graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scale"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    del graph.value_info[:]
    serialised: bytes = model.SerializeToString()
    return serialised, len(rounded)


def rounded_blocks(weight: Float32Array, block: int) -> tuple[Any, Float32Array]:
    """A weight (K, N) as bytes about 128 (N, blocks, block), and their scales (N, blocks).

    w ~ scale (byte - 128), scale = largest magnitude of the block / 127.
    """
    rows, columns = weight.shape
    blocks = -(-rows // block)
    padded = np.zeros((columns, blocks * block), np.float32)
    padded[:, :rows] = weight.T
    parts = padded.reshape(columns, blocks, block)  # (N, blocks, block)
    scales = np.abs(parts).max(axis=-1) / 127.0  # (N, blocks)
    scales[scales == 0.0] = 1.0
    whole = np.rint(parts / scales[..., None]) + 128.0
    return whole.astype(np.uint8), scales.astype(np.float32)


def _block(rows: int) -> int:
    return BLOCK if rows >= BLOCK else SMALLEST


def _is_large(node: Any, weights: Mapping[str, Float32Array]) -> bool:
    """Whether a node is a plain product with a large weight and a bias of one row."""
    if node.op_type != "Gemm" or len(node.input) != 3 or node.input[1] not in weights:
        return False
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    if any(helper.get_attribute_value(a) != plain[a.name] for a in node.attribute):
        return False
    weight, bias = weights[node.input[1]], weights.get(node.input[2])
    one_row = bias is not None and bias.shape == weight.shape[1:]
    return one_row and min(weight.shape) >= SMALLEST


def _replace(node: Any, shape: tuple[int, ...]) -> None:
    """Make a Gemm a product with 8-bit weights; accuracy level 4: integers are multiplied."""
    x, weight, bias = node.input
    product = helper.make_node(
        "MatMulNBits",
        [x, f"{weight}_int8", f"{weight}_scale", "", "", bias],
        list(node.output),
        name=node.name,
        domain="com.microsoft",
        K=shape[0],
        N=shape[1],
        bits=8,
        block_size=_block(shape[0]),
        accuracy_level=4,
    )
    node.CopyFrom(product)


def _seconds(
    sampler: OneChunk, observation: Float32Array, noise: Float32Array
) -> float:
    """Shortest of ten chunks [s]; the first ones fill the caches."""
    times = [time.perf_counter()]
    for _ in range(10):
        sampler.sample(observation, noise)
        times.append(time.perf_counter())
    return float(np.diff(times).min())
