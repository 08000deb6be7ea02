# SPDX-License-Identifier: Apache-2.0
"""A sampler by the name of its backend."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qam_ros.contract.artifact import Artifact
from qam_ros.contract.errors import ConfigError, nearest
from qam_ros.runtime.engines.cache import EngineCache, default_folder, engine_key
from qam_ros.runtime.engines.cuda import CudaDevice
from qam_ros.runtime.engines.library import Device, EngineError, EngineLibrary
from qam_ros.runtime.engines.sampler import EngineSampler
from qam_ros.runtime.engines.tensorrt import find_library
from qam_ros.runtime.onnx_check import check_onnx
from qam_ros.runtime.onnx_cuda import OnnxCudaSampler
from qam_ros.runtime.onnx_int8 import Int8Sampler
from qam_ros.runtime.sampler import OnnxSampler, Sampler, verify

BACKENDS: Final = ("onnx", "onnx-int8", "onnx-cuda", "tensorrt")


@dataclass(frozen=True)
class Machine:
    """Where engines are built, kept and run.

    Args:
        library: finds the engine library, or says why there is none.
        device: opens the GPU, or says why there is none.
        folder: of the cache; None: the user's own.
    """

    library: Callable[[], EngineLibrary] = find_library
    device: Callable[[], Device] = CudaDevice
    folder: Path | None = None

    @classmethod
    def of(cls, folder: str) -> Machine:
        """This machine with a folder of engines; "" is the user's own."""
        return cls(folder=Path(folder) if folder else None)

    @property
    def cache(self) -> EngineCache:
        """Engines of this user."""
        return EngineCache(self.folder or default_folder(os.environ))


@dataclass(frozen=True)
class Compiled:
    """What came of compiling an artifact.

    Args:
        library: module and version.
        gpu: name of the GPU; "" where nothing was kept.
        engine_bytes: size of the engine.
        build_s: time of the build [s]; 0 where it was there already.
        largest_error: against the golden chunks; None where nothing ran.
        tolerance: of the artifact.
        engine: path in the cache; "" where nothing was kept.
    """

    library: str
    gpu: str
    engine_bytes: int
    build_s: float
    largest_error: float | None
    tolerance: float
    engine: str


def open_sampler(
    artifact: Artifact,
    backend: str = "onnx",
    *,
    threads: int = 1,
    machine: Machine | None = None,
    replay: bool = True,
) -> Sampler:
    """Sampler of an artifact; whether it gives the golden chunks is for ``verify`` to say.

    Args:
        artifact: the policy.
        backend: one of BACKENDS.
        threads: inside an operator, on the CPU.
        machine: where engines are kept and run; None: here.
        replay: of a captured CUDA graph, for tensorrt.

    Raises:
        ConfigError: no such backend.
        EngineError: the backend is not installed, there is no GPU, or no engine has been compiled.
        ArtifactError: the graph breaks the format.
    """
    if backend == "onnx":
        return OnnxSampler(artifact, threads)
    if backend == "onnx-int8":
        return Int8Sampler(artifact, threads)
    if backend == "onnx-cuda":
        return OnnxCudaSampler(artifact)
    if backend != "tensorrt":
        raise ConfigError(f"no backend '{backend}'; {nearest(backend, BACKENDS)}")
    machine = machine or Machine()
    library, device = machine.library(), machine.device()
    key = engine_key(artifact.onnx_bytes, library.name, library.version, device.gpu)
    engine = machine.cache.find(key)
    if engine is None:
        raise EngineError(
            f"no engine of this policy for {key.library} on {device.gpu.name} (driver "
            f"{device.gpu.driver}) in {machine.cache.folder}; run qam compile on this machine first",
            key=key,
        )
    return _engine_sampler(artifact, library, device, engine, replay=replay)


def compile_engine(
    artifact: Artifact,
    machine: Machine,
    *,
    rebuild: bool = False,
    replay: bool = True,
) -> Compiled:
    """Build an engine into the cache, load it from there and run the golden probes.

    Args:
        artifact: the policy.
        machine: library, GPU and cache.
        rebuild: even where the cache has one.
        replay: of a captured CUDA graph.

    Raises:
        EngineError: library or GPU are missing, the build fails, or the cache is not private.
        ArtifactError: the graph breaks the format, or the golden chunks come out wrong; then the
            engine is discarded.
    """
    check_onnx(artifact.onnx_bytes, artifact.manifest.graph)
    library, device, cache = machine.library(), machine.device(), machine.cache
    key = engine_key(artifact.onnx_bytes, library.name, library.version, device.gpu)
    build_s = 0.0
    if rebuild or cache.find(key) is None:
        cache.discard(key)
        started = time.perf_counter()
        built = library.build(artifact.onnx_bytes)
        build_s = time.perf_counter() - started
        cache.store(key, built, build_s)
    engine = cache.find(key)
    if engine is None:
        raise EngineError(f"{cache.folder}: the engine went away while it was built")
    try:
        sampler = _engine_sampler(artifact, library, device, engine, replay=replay)
        error = verify(sampler, artifact)
    except Exception:
        cache.discard(key)
        raise
    return Compiled(
        library=key.library,
        gpu=device.gpu.name,
        engine_bytes=len(engine),
        build_s=build_s,
        largest_error=error,
        tolerance=artifact.manifest.tolerance,
        engine=str(cache.folder / f"{key.name}.engine"),
    )


def try_build(artifact: Artifact, library: EngineLibrary) -> Compiled:
    """Parse and build without a GPU, keep nothing; TensorRT-RTX can, TensorRT cannot.

    Raises:
        EngineError: the graph is not understood, or no engine comes out.
        ArtifactError: the graph breaks the format.
    """
    check_onnx(artifact.onnx_bytes, artifact.manifest.graph)
    started = time.perf_counter()
    engine = library.build(artifact.onnx_bytes)
    build_s = time.perf_counter() - started
    name = f"{library.name} {library.version}"
    tolerance = artifact.manifest.tolerance
    return Compiled(name, "", len(engine), build_s, None, tolerance, "")


def _engine_sampler(
    artifact: Artifact,
    library: EngineLibrary,
    device: Device,
    engine: bytes,
    *,
    replay: bool,
) -> EngineSampler:
    name = f"{library.name} {library.version} on {device.gpu.name}"
    return EngineSampler(artifact, library.load(engine), device, name, replay=replay)
