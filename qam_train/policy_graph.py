# SPDX-License-Identifier: Apache-2.0
"""The flow sampler as one static ONNX graph whose weights and statistics are inputs.

    c    = ((s - mean) / std) W_s + b_0                            once per chunk
    a   <- a + h f(c, a, k h),   k = 0 .. n-1,   h = 1/n           unrolled
    chunk = clip(a, -1, 1)

The first layer reads [s, a, t] and is kept as three tensors, so that the observation product is
formed once and not n times (exact up to the order of the sum). The Euler state is float32, noise is
an input, shapes are static, and only common operators of opset 20 occur. Weights are inputs: a
fine-tuned policy is other numbers for the same graph and needs no new session.

This module knows neither torch nor an agent: it takes named arrays and sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from qam_ros.contract.errors import ArtifactError

OPSET = 20  # the first with Gelu(approximate="tanh")
IR_VERSION = (
    9  # the one that belongs to opset 20: every ONNX Runtime that knows Gelu reads it
)
LAYER_NORM_EPSILON = 1e-6  # as qam_train.networks

Weights = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class PolicySizes:
    """Static sizes of a policy graph.

    Attributes:
        observation: observation size O.
        action: action size A.
        chunk: actions per chunk H.
        flow_steps: Euler steps n.
    """

    observation: int
    action: int
    chunk: int
    flow_steps: int

    @property
    def flat(self) -> int:
        """Width of a flattened chunk, H*A."""
        return self.chunk * self.action


def split_first_layer(
    net: Mapping[str, npt.NDArray[np.float32]], sizes: PolicySizes
) -> Weights:
    """Turn the tensors of a velocity net into the weight inputs of its graph, in graph order.

    Args:
        net: tensors by 'layer/kind', weights as (in, out): '0/weight' (O + H*A + 1, width), '0/bias',
            ..., with 'norm_scale' and 'norm_shift' where a hidden layer is normalised.
        sizes: sizes of the policy.

    Returns:
        Float32 arrays by input name; the first weight is split into 'weight_observation',
        'weight_action' and 'weight_time'.

    Raises:
        ArtifactError: when a tensor is missing or does not fit the sizes.
    """
    _check_net(net, sizes)
    weights: Weights = {}
    for layer in range(_depth(net)):
        weight = net[f"{layer}/weight"]
        if layer == 0:
            rows = sizes.observation
            weights["0/weight_observation"] = weight[:rows]
            weights["0/weight_action"] = weight[rows:-1]
            weights["0/weight_time"] = weight[-1:]
        else:
            weights[f"{layer}/weight"] = weight
        for kind in ("bias", "norm_scale", "norm_shift"):
            if f"{layer}/{kind}" in net:
                weights[f"{layer}/{kind}"] = net[f"{layer}/{kind}"]
    return {
        name: np.ascontiguousarray(value, dtype=np.float32)
        for name, value in weights.items()
    }


def _depth(net: Mapping[str, npt.NDArray[np.float32]]) -> int:
    layers = 0
    while f"{layers}/weight" in net:
        layers += 1
    return layers


def _check_net(net: Mapping[str, npt.NDArray[np.float32]], sizes: PolicySizes) -> None:
    layers = _depth(net)
    if layers == 0:
        raise ArtifactError(
            f"expected a velocity net with '0/weight', found {sorted(net)}"
        )
    width_in = sizes.observation + sizes.flat + 1
    for layer in range(layers):
        weight, bias = net[f"{layer}/weight"], net.get(f"{layer}/bias")
        last = layer == layers - 1
        width_out = sizes.flat if last else weight.shape[-1]
        if (
            weight.shape != (width_in, width_out)
            or bias is None
            or bias.shape != (width_out,)
        ):
            raise ArtifactError(
                f"layer {layer} of the velocity net: expected weight {(width_in, width_out)} and bias "
                f"{(width_out,)}, found {weight.shape} and {None if bias is None else bias.shape}; "
                f"sizes are observation {sizes.observation}, chunk {sizes.chunk} x action {sizes.action}"
            )
        width_in = width_out


@dataclass
class _Builder:
    """Collects nodes and constants; every method returns the name of its result."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def op(
        self, kind: str, inputs: list[str], output: str = "", **attributes: Any
    ) -> str:
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, inputs, [name], name=name, **attributes)
        )
        return name

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def build_policy_graph(
    weights: Mapping[str, npt.NDArray[np.float32]], sizes: PolicySizes
) -> bytes:
    """Build the sampler graph for weight inputs as split_first_layer names them.

    Inputs: observation (1, O), noise (1, H*A), observation_mean (O,), observation_std (O,), then one
    per weight tensor; output: chunk (1, H, A) in [-1, 1]. Only names and shapes of weights are read.

    Returns:
        The serialised model: no external data, no initialiser that depends on the weights.
    """
    build = _Builder()
    layers = 1 + max(int(name.split("/")[0]) for name in weights)
    h = 1.0 / sizes.flow_steps
    centred = build.op("Sub", ["observation", "observation_mean"])
    s = build.op("Div", [centred, "observation_std"])
    of_s = build.op("Gemm", [s, "0/weight_observation", "0/bias"])
    step = build.constant("step", np.float32(h))
    a = "noise"
    for k in range(sizes.flow_steps):
        bias = of_s
        if k > 0:
            t = build.constant(f"time_{k}", np.float32(k * h))
            bias = build.op("Add", [of_s, build.op("Mul", ["0/weight_time", t])])
        x = build.op("Gemm", [a, "0/weight_action", bias])
        for layer in range(1, layers):
            x = _activate(build, weights, layer - 1, x)
            x = build.op("Gemm", [x, f"{layer}/weight", f"{layer}/bias"])
        # not folded into the Gemm's alpha: ONNX Runtime's one-row kernel takes alpha = 1 only (6 %)
        a = build.op("Add", [a, build.op("Mul", [x, step])])
    low, high = (
        build.constant("low", np.float32(-1)),
        build.constant("high", np.float32(1)),
    )
    clipped = build.op("Clip", [a, low, high])
    shape = build.constant(
        "chunk_shape", np.asarray([1, sizes.chunk, sizes.action], np.int64)
    )
    build.op("Reshape", [clipped, shape], "chunk")
    return _finish(build, weights, sizes)


def _activate(
    build: _Builder, weights: Mapping[str, npt.NDArray[np.float32]], layer: int, x: str
) -> str:
    """GELU (tanh form), then LayerNorm where the layer has one (official order)."""
    x = build.op("Gelu", [x], approximate="tanh")
    if f"{layer}/norm_scale" not in weights:
        return x
    names = [x, f"{layer}/norm_scale", f"{layer}/norm_shift"]
    return build.op("LayerNormalization", names, axis=-1, epsilon=LAYER_NORM_EPSILON)


def _finish(
    build: _Builder, weights: Mapping[str, npt.NDArray[np.float32]], sizes: PolicySizes
) -> bytes:
    shapes: dict[str, tuple[int, ...]] = {
        "observation": (1, sizes.observation),
        "noise": (1, sizes.flat),
        "observation_mean": (sizes.observation,),
        "observation_std": (sizes.observation,),
        **{name: tuple(value.shape) for name, value in weights.items()},
    }
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    chunk = (1, sizes.chunk, sizes.action)
    output = helper.make_tensor_value_info("chunk", TensorProto.FLOAT, chunk)
    graph = helper.make_graph(
        build.nodes, "flow_policy", inputs, [output], build.constants
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="qam_train",
    )
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data
