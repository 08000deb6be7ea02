# SPDX-License-Identifier: Apache-2.0
"""TensorRT 10.3 to 11 and TensorRT-RTX through one code path.

Networks are strongly typed and no precision flag is touched: what is computed in which precision
stands in the graph. That is the only way of TensorRT 11 and of RTX, and TensorRT 10 knows it too.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import Any, Final

from qam_ros.runtime.engines.library import EngineError

MODULES: Final = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
OLDEST, NEWEST = (10, 3), (12, 0)  # of tensorrt; RTX counts its versions otherwise
HOW: Final = (
    "install TensorRT >= 10.3 < 12 (JetPack has it; elsewhere pip install tensorrt) or TensorRT-RTX "
    "(pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings), or use the backend onnx"
)


class TensorRT:
    """An imported member of the TensorRT family.

    Args:
        module: tensorrt, tensorrt_rtx or tensorrt_rtx_bindings.

    Raises:
        EngineError: a version outside 10.3 <= version < 12.
    """

    def __init__(self, module: Any) -> None:
        self._trt = module
        self.name = str(module.__name__)
        self.version = str(module.__version__)
        number = tuple(int(part) for part in re.findall(r"\d+", self.version)[:2])
        if self.name == "tensorrt" and not OLDEST <= number < NEWEST:
            raise EngineError(
                f"tensorrt {self.version} is installed, expected >= 10.3 < 12",
                found=self.version,
            )
        self._logger = module.Logger(module.Logger.ERROR)

    def build(self, onnx_bytes: bytes) -> bytes:
        """Serialised engine; TF32 is off, so that float32 means float32.

        Raises:
            EngineError: the graph is not understood, or no engine comes out.
        """
        trt = self._trt
        builder = trt.Builder(self._logger)
        kinds = trt.NetworkDefinitionCreationFlag
        typed = getattr(kinds, "STRONGLY_TYPED", None)  # implied where it is gone
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse(onnx_bytes):
            found = [parser.get_error(k).desc() for k in range(parser.num_errors)]
            raise EngineError(
                f"policy.onnx: {self.name} {self.version} does not read the graph: {'; '.join(found)}"
            )
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(
                f"policy.onnx: {self.name} {self.version} builds no engine of the graph; its reasons "
                "are on the error output above"
            )
        return bytes(plan)

    def load(self, engine: bytes) -> LoadedEngine:
        """Deserialise an engine that the cache vouches for.

        Raises:
            EngineError: the library refuses it, or a tensor is not float32.
        """
        runtime = self._trt.Runtime(self._logger)
        loaded = runtime.deserialize_cuda_engine(engine)
        context = None if loaded is None else loaded.create_execution_context()
        if context is None:
            raise EngineError(
                f"{self.name} {self.version} refuses the engine it built; run qam compile --rebuild"
            )
        return LoadedEngine(self._trt, runtime, loaded, context)


class LoadedEngine:
    """An engine with one execution context.

    Args:
        trt: the module.
        runtime: what deserialised it; must live as long.
        engine: the engine.
        context: its context.
    """

    def __init__(self, trt: Any, runtime: Any, engine: Any, context: Any) -> None:
        self._runtime, self._engine, self._context = runtime, engine, context
        names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
        other = [n for n in names if engine.get_tensor_dtype(n) != trt.DataType.FLOAT]
        if other:
            raise EngineError(
                f"the engine's tensors {other} are not float32; export again"
            )
        self.tensors = {n: tuple(map(int, engine.get_tensor_shape(n))) for n in names}

    def bind(self, name: str, address: int) -> None:
        """Fix the address of a tensor."""
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f"the engine refuses memory for tensor '{name}'")

    def enqueue(self, stream: int) -> None:
        """Put one execution on the stream."""
        if not self._context.execute_async_v3(stream):
            raise EngineError("the engine does not run; its reasons are on stderr")


def find_library() -> TensorRT:
    """The first usable member of the family; a broken one does not hide those after it.

    Raises:
        EngineError: none is installed, or none of those installed can be used; names each with its reason.
    """
    reasons: list[str] = []
    for name in MODULES:
        spec = importlib.util.find_spec(name)
        if spec is None:
            continue
        if spec.origin is None:
            places = ", ".join(spec.submodule_search_locations or ())
            reasons.append(f"{name} is a folder ({places}), not a module")
            continue
        try:
            return TensorRT(importlib.import_module(name))
        except (ImportError, OSError) as problem:
            reasons.append(f"{name} does not load: {problem}")
        except AttributeError as problem:
            reasons.append(f"{name} is another module ({spec.origin}): {problem}")
        except EngineError as problem:
            reasons.append(str(problem))
    if reasons:
        raise EngineError(
            f"no usable TensorRT on this machine: {'; '.join(reasons)}; {HOW}"
        )
    raise EngineError(f"no TensorRT on this machine: {HOW}")
