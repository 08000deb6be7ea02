# SPDX-License-Identifier: Apache-2.0
"""Checks on a policy graph before anything runs it: small, static, self-contained, known operators."""

from __future__ import annotations

from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from qam_ros.contract.artifact import MAX_MEMBER_BYTES
from qam_ros.contract.artifact_manifest import GraphSignature, TensorSpec
from qam_ros.contract.errors import ArtifactError, nearest

OPSETS: Final = range(18, 22)
"""Operator sets that the tested engines read; Gelu needs 20."""
OPERATORS: Final = frozenset(
    {
        *(
            "MatMul",
            "Gemm",
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Exp",
            "Sqrt",
            "Min",
            "Max",
            "Clip",
        ),
        *("Gelu", "Erf", "Tanh", "Sigmoid", "Relu", "Softplus", "LayerNormalization"),
        *("Cos", "Sin"),
        *(
            "Concat",
            "Split",
            "Slice",
            "Gather",
            "Reshape",
            "Squeeze",
            "Unsqueeze",
            "Expand",
        ),
        *(
            "Cast",
            "Constant",
            "Identity",
            "ReduceMean",
            "ReduceMin",
            "ReduceSum",
            "ArgMax",
            "Transpose",
        ),
    }
)
"""Operators without control flow, without state and without a size that data can choose freely."""
MAX_TENSOR_BYTES: Final = 16 * 1024 * 1024
"""Largest intermediate tensor: a few bytes of graph can otherwise ask for gigabytes at run time.

A transposed weight may be larger: it is as large as the weight, and engines read it in place.
"""
MAX_NODES: Final = 5000


def check_onnx(
    data: bytes, graph: GraphSignature, where: str = "policy.onnx"
) -> onnx.ModelProto:
    """Refuse a graph that does not keep to the artifact format.

    Args:
        data: the serialised model.
        graph: inputs and outputs that the manifest announces.
        where: file, for the messages.

    Returns:
        The parsed model.

    Raises:
        ArtifactError: says what was found and what is allowed.
    """
    if len(data) > MAX_MEMBER_BYTES:
        raise ArtifactError(
            f"{where}: {len(data)} bytes, at most {MAX_MEMBER_BYTES} are read"
        )
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as problem:
        raise ArtifactError(
            f"{where}: not an ONNX model ({problem}); export it again"
        ) from problem
    _check_opset(model, where)
    _check_nodes(model, where)
    _check_tensors(model, where)
    _check_signature(model, graph, where)
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(
            model, strict_mode=True, data_prop=True
        )
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as problem:
        raise ArtifactError(
            f"{where}: the graph is inconsistent: {problem}"
        ) from problem
    _check_static(inferred, where)
    return model


def _check_opset(model: Any, where: str) -> None:
    domains = {item.domain: item.version for item in model.opset_import}
    custom = [domain for domain in domains if domain not in ("", "ai.onnx")]
    versions = [version for domain, version in domains.items() if domain not in custom]
    if custom or len(versions) != 1 or versions[0] not in OPSETS:
        raise ArtifactError(
            f"{where}: operator sets {domains}; expected the standard domain alone, version "
            f"{OPSETS.start} to {OPSETS.stop - 1}",
            found=domains,
        )
    if model.functions or model.training_info:
        raise ArtifactError(
            f"{where}: function bodies and training graphs are not allowed"
        )


def _check_nodes(model: Any, where: str) -> None:
    if len(model.graph.node) > MAX_NODES:
        raise ArtifactError(
            f"{where}: {len(model.graph.node)} nodes, at most {MAX_NODES} are allowed"
        )
    for node in model.graph.node:
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            raise ArtifactError(
                f"{where}: operator '{node.op_type}' of domain '{node.domain}' is not allowed; "
                f"{nearest(node.op_type, OPERATORS)}",
                operator=node.op_type,
            )
        if any(item.type in (5, 10) for item in node.attribute):  # GRAPH, GRAPHS
            raise ArtifactError(
                f"{where}: operator '{node.op_type}' holds a graph of its own"
            )


def _check_tensors(model: Any, where: str) -> None:
    if model.graph.sparse_initializer:
        raise ArtifactError(f"{where}: sparse initializers are not allowed")
    constants = [
        item.t
        for node in model.graph.node
        for item in node.attribute
        if item.HasField("t")
    ]
    for tensor in (*model.graph.initializer, *constants):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ArtifactError(
                f"{where}: tensor '{tensor.name}' lies in another file; export one file"
            )


def _check_signature(model: Any, graph: GraphSignature, where: str) -> None:
    constants = {tensor.name for tensor in model.graph.initializer}
    found = {
        "inputs": [
            _spec(item) for item in model.graph.input if item.name not in constants
        ],
        "outputs": [_spec(item) for item in model.graph.output],
    }
    for kind, expected in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        if found[kind] != list(expected):
            wrong = [
                f"{have} against {want}"
                for have, want in zip(found[kind], expected, strict=False)
                if have != want
            ]
            raise ArtifactError(
                f"{where}: {len(found[kind])} {kind}, the manifest has {len(expected)}; first "
                f"difference (found against manifest): {wrong[0] if wrong else 'the number'}",
                found=found[kind],
                expected=expected,
            )


def _spec(value: Any) -> TensorSpec | str:
    shape = _static_shape(value)
    if shape is None or value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        return f"'{value.name}', which is not a float32 tensor of fixed shape"
    return TensorSpec(value.name, shape)


def _static_shape(value: Any) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    if any(
        not size.HasField("dim_value") or size.dim_value < 0
        for size in tensor.shape.dim
    ):
        return None
    return tuple(int(size.dim_value) for size in tensor.shape.dim)


def _check_static(model: Any, where: str) -> None:
    inputs = {item.name for item in model.graph.input}
    shapes = {
        item.name: item for item in (*model.graph.value_info, *model.graph.output)
    }
    for node in model.graph.node:
        for name in node.output:
            shape = _static_shape(shapes[name]) if name in shapes else None
            if shape is None:
                raise ArtifactError(f"{where}: tensor '{name}' has no fixed shape")
            size = 8
            for length in shape:
                size *= length
            of_weight = node.op_type == "Transpose" and node.input[0] in inputs
            if size > MAX_TENSOR_BYTES and not of_weight:
                raise ArtifactError(
                    f"{where}: tensor '{name}' of shape {shape} is too large; at most "
                    f"{MAX_TENSOR_BYTES} bytes are allowed"
                )
