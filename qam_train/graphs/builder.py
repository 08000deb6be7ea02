# SPDX-License-Identifier: Apache-2.0
"""Nodes, constants and weight inputs of one graph while it is written.

Every method returns the name of its result. Shapes are static: s is (1, O), candidates are rows
(R, D), an ensemble is a leading axis. Only common operators of opset 20 occur.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from qam_ros.contract.errors import ArtifactError
from qam_ros.contract.weights import Weights
from qam_ros.runtime.precision import LOWER

OPSET = 20  # the first with Gelu(approximate="tanh")
IR_VERSION = (
    9  # the one that belongs to opset 20: every ONNX Runtime that knows Gelu reads it
)
STATISTICS = ("observation_mean", "observation_std")

Nets = Mapping[str, npt.NDArray[np.float32]]
"""Statistics, and tensors of nets by 'net/layer/kind'."""
Precision = Literal["float32", "float16", "bfloat16"]
Number = str | float
"""Name of a tensor, or a constant."""


@dataclass(frozen=True)
class PolicySizes:
    """Static sizes of a policy.

    Attributes:
        observation: observation size O.
        action: action size A.
        chunk: actions per chunk H.
    """

    observation: int
    action: int
    chunk: int

    @property
    def flat(self) -> int:
        """Width of a flattened chunk, D = H*A."""
        return self.chunk * self.action


class Builder:
    """Collects what a graph is made of.

    Args:
        nets: arrays the weight inputs are taken from.
        sizes: sizes of the policy.
        precision: of the matrix products of actors and flows: float32, float16 or bfloat16.

    Attributes:
        weights: weight inputs so far, in the order of the graph's inputs.
    """

    def __init__(
        self, nets: Nets, sizes: PolicySizes, precision: Precision = "float32"
    ) -> None:
        self.nets = nets
        self.sizes = sizes
        self._lower = LOWER.get(precision)
        self._cast: dict[str, str] = {}
        self.weights: Weights = {}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, bytes], onnx.TensorProto] = {}

    def weight(self, name: str, value: npt.NDArray[Any]) -> str:
        """Weight input; one that is there already stays as it is."""
        if name not in self.weights:
            self.weights[name] = np.ascontiguousarray(value, dtype=np.float32)
        return name

    def statistics(self) -> tuple[str, str]:
        """Weight inputs observation_mean and observation_std."""
        mean, std = (self.weight(name, self.nets[name]) for name in STATISTICS)
        return mean, std

    def constant(self, value: npt.ArrayLike) -> str:
        """Constant array; equal ones are one."""
        array = np.asarray(value)
        key = (f"{array.dtype}{array.shape}", array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = numpy_helper.from_array(array, name)
        return self._constants[key].name

    def op(
        self, kind: str, inputs: Sequence[Number], output: str = "", **attributes: Any
    ) -> str:
        """One node; numbers among its inputs become float32 constants."""
        name = output or f"{kind.lower()}_{len(self._nodes)}"
        names = [
            x if isinstance(x, str) else self.constant(np.float32(x)) for x in inputs
        ]
        self._nodes.append(
            helper.make_node(kind, names, [name], name=name, **attributes)
        )
        return name

    def add(self, x: Number, y: Number) -> str:
        """X + y."""
        return self.op("Add", [x, y])

    def affine(self, x: str, weight: str, bias: str) -> str:
        """X W + b; in lower precision the factors are rounded and so is their product, not the sum with b."""
        if self._lower is None:
            return self.op("Gemm", [x, weight, bias])
        product = self.op("MatMul", [self._lowered(x), self._lowered(weight)])
        return self.add(self.op("Cast", [product], to=TensorProto.FLOAT), bias)

    def _lowered(self, name: str) -> str:
        """A tensor in lower precision; cast once, however often it is read."""
        if name not in self._cast:
            self._cast[name] = self.op("Cast", [name], to=self._lower)
        return self._cast[name]

    def sub(self, x: Number, y: Number) -> str:
        """X - y."""
        return self.op("Sub", [x, y])

    def mul(self, x: Number, y: Number) -> str:
        """X y."""
        return self.op("Mul", [x, y])

    def div(self, x: Number, y: Number) -> str:
        """X / y."""
        return self.op("Div", [x, y])

    def clip(self, x: str, low: float = -1.0, high: float = 1.0) -> str:
        """X inside [low, high]."""
        return self.op("Clip", [x, low, high])

    def mean(self, x: str, axis: int, *, keepdims: bool = True) -> str:
        """Mean along one axis."""
        axes = self.constant(np.asarray([axis], np.int64))
        return self.op("ReduceMean", [x, axes], keepdims=int(keepdims))

    def reshape(self, x: str, shape: Sequence[int], output: str = "") -> str:
        """X in another shape; -1 stands for what is left."""
        return self.op(
            "Reshape", [x, self.constant(np.asarray(shape, np.int64))], output
        )

    def split(self, x: str, sizes: Sequence[int], axis: int = -1) -> list[str]:
        """Pieces of the given sizes along an axis."""
        if len(sizes) == 1:
            return [x]
        first = len(self._nodes)
        names = [f"split_{first}_{index}" for index in range(len(sizes))]
        inputs = [x, self.constant(np.asarray(sizes, np.int64))]
        self._nodes.append(
            helper.make_node("Split", inputs, names, name=f"split_{first}", axis=axis)
        )
        return names

    def serialised(self, noise_width: int) -> bytes:
        """The whole model: inputs observation, noise and the weights; output chunk.

        Raises:
            ArtifactError: the shapes of the weights do not fit each other.
        """
        sizes = self.sizes
        shapes: dict[str, tuple[int, ...]] = {
            "observation": (1, sizes.observation),
            "noise": (1, noise_width),
            **{name: value.shape for name, value in self.weights.items()},
        }
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in shapes.items()
        ]
        chunk = (1, sizes.chunk, sizes.action)
        output = helper.make_tensor_value_info("chunk", TensorProto.FLOAT, chunk)
        graph = helper.make_graph(
            self._nodes, "policy", inputs, [output], list(self._constants.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="qam_train",
        )
        try:
            onnx.checker.check_model(model, full_check=True)
        except onnx.shape_inference.InferenceError as problem:
            raise ArtifactError(
                f"the nets do not fit each other: {problem}"
            ) from problem
        data: bytes = model.SerializeToString()
        return data
