# SPDX-License-Identifier: Apache-2.0
"""A GPU through the CUDA driver, which every machine with a GPU has: no further package is needed.

Memory, copies, one stream and graph capture of libcuda, called with ctypes. Handles are integers, as
TensorRT takes them; its runtime shares the device's primary context.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from qam_ros.runtime.engines.library import Bytes, EngineError, Gpu

LIBRARY: Final = "libcuda.so.1"
DRIVER: Final = Path("/sys/module/nvidia/version")
NON_BLOCKING: Final = 1  # does not wait for the default stream
THREAD_LOCAL: Final = 1  # other threads may call CUDA during a capture
MAJOR, MINOR = 75, 76  # attributes: compute capability


class CudaDevice:
    """The first GPU that is visible.

    Raises:
        EngineError: no driver, no GPU, or a call of the driver fails.
    """

    def __init__(self) -> None:
        try:
            self._cuda = ctypes.CDLL(LIBRARY)
        except OSError as problem:
            raise EngineError(
                f"no GPU: {LIBRARY} of the NVIDIA driver does not load ({problem}); install the driver, "
                "or use the backend onnx, which needs none"
            ) from problem
        self._call("cuInit", 0)
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._device, self._context = device, context
        self.enter()
        self._call("cuStreamCreate", ctypes.byref(stream), NON_BLOCKING)
        self.stream = int(stream.value or 0)
        self.gpu = self._describe()

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(code, ctypes.byref(text))
            words = (text.value or b"unknown").decode()
            raise EngineError(f"CUDA driver: {name} failed: {words} ({code})")

    def _describe(self) -> Gpu:
        name, numbers = ctypes.create_string_buffer(256), []
        self._call("cuDeviceGetName", name, len(name), self._device)
        for attribute in (MAJOR, MINOR):
            number = ctypes.c_int()
            target = ctypes.byref(number)
            self._call("cuDeviceGetAttribute", target, attribute, self._device)
            numbers.append(number.value)
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        release = DRIVER.read_text().strip() if DRIVER.is_file() else "unknown"
        return Gpu(
            name=name.value.decode(),
            capability=f"{numbers[0]}.{numbers[1]}",
            driver=f"{release}, CUDA {version.value // 1000}.{version.value % 1000 // 10}",
        )

    def enter(self) -> None:
        """Make the device current in the calling thread."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """Device memory [bytes]; it lives as long as the process."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def pinned(self, size: int) -> Bytes:
        """Host memory [bytes] of fixed place; it lives as long as the process."""
        pointer = ctypes.c_void_p()
        self._call("cuMemHostAlloc", ctypes.byref(pointer), ctypes.c_size_t(size), 0)
        memory = (ctypes.c_uint8 * size).from_address(int(pointer.value or 0))
        array: Bytes = np.ctypeslib.as_array(memory)
        array[:] = 0
        return array

    def upload(self, address: int, source: npt.NDArray[Any]) -> None:
        """Copy to the device, on the stream."""
        self._call(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(address),
            ctypes.c_void_p(source.ctypes.data),
            ctypes.c_size_t(source.nbytes),
            ctypes.c_void_p(self.stream),
        )

    def download(self, target: npt.NDArray[Any], address: int) -> None:
        """Copy from the device, on the stream."""
        self._call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(target.ctypes.data),
            ctypes.c_uint64(address),
            ctypes.c_size_t(target.nbytes),
            ctypes.c_void_p(self.stream),
        )

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record work as a CUDA graph; its replay is one call of the driver."""
        stream = ctypes.c_void_p(self.stream)
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)
        try:
            work()
        finally:
            self._call("cuStreamEndCapture", stream, ctypes.byref(graph))
        flags = ctypes.c_uint64(0)
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, flags)
        return lambda: self._call("cuGraphLaunch", ready, stream)

    def synchronise(self) -> None:
        """Wait until the stream is empty."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(self.stream))
