# SPDX-License-Identifier: Apache-2.0
"""What is asked of an engine library and of a GPU, and nothing more: the boundary of our code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qam_ros.contract.errors import QamError

Bytes = npt.NDArray[np.uint8]


class EngineError(QamError):
    """An engine cannot be built, found, trusted or run on this machine."""


@dataclass(frozen=True)
class Gpu:
    """What an engine is bound to besides the library.

    Args:
        name: as the driver reports it.
        capability: compute capability, e.g. '8.7'.
        driver: release of the driver and the CUDA version it offers.
    """

    name: str
    capability: str
    driver: str


class Engine(Protocol):
    """A loaded engine whose tensors have fixed addresses."""

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Inputs and outputs: name -> shape; all float32."""

    def bind(self, name: str, address: int) -> None:
        """Give a tensor its device memory, a multiple of 256 bytes."""

    def enqueue(self, stream: int) -> None:
        """Put one execution on a stream; returns before it ran."""


class EngineLibrary(Protocol):
    """Builds engines from ONNX and loads them."""

    @property
    def name(self) -> str:
        """Module, e.g. 'tensorrt'."""

    @property
    def version(self) -> str:
        """Version of the module."""

    def build(self, onnx_bytes: bytes) -> bytes:
        """Serialised engine of a graph."""

    def load(self, engine: bytes) -> Engine:
        """An engine that this library built; loading one from a stranger runs his code."""


class Device(Protocol):
    """One GPU and one stream on it."""

    @property
    def gpu(self) -> Gpu:
        """What it is."""

    @property
    def stream(self) -> int:
        """Handle of the stream."""

    def enter(self) -> None:
        """Make the device current in the calling thread."""

    def allocate(self, size: int) -> int:
        """Device memory [bytes], aligned to 256 bytes; freed with the device."""

    def pinned(self, size: int) -> Bytes:
        """Host memory [bytes] that the device reads without a copy in between."""

    def upload(self, address: int, source: npt.NDArray[Any]) -> None:
        """Copy pinned host memory to the device, on the stream."""

    def download(self, target: npt.NDArray[Any], address: int) -> None:
        """Copy device memory to pinned host memory, on the stream."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what work puts on the stream; the result puts it there again in one call."""

    def synchronise(self) -> None:
        """Wait until the stream is empty."""
