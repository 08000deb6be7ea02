# SPDX-License-Identifier: Apache-2.0
"""Checks on a policy graph before anything runs it: self-contained, known operators, bounded.

Nothing is executed and no session is made. What the graph claims of its own tensors is not believed:
see ``onnx_bounds``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from qam_ros.contract.artifact import MAX_GRAPH_BYTES
from qam_ros.contract.artifact_manifest import GraphSignature, TensorSpec
from qam_ros.contract.errors import ArtifactError, nearest
from qam_ros.runtime.onnx_bounds import check_bounds, static_shape

OPSETS: Final = range(18, 22)
"""Operator sets that the tested engines read; Gelu needs 20."""
IR_VERSIONS: Final = range(8, 11)
"""Versions of the file format that belong to those operator sets."""
OPERATORS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Min", "Max", "MatMul"), ()),
        **dict.fromkeys(("Exp", "Sqrt", "Cos", "Sin", "Clip", "Identity"), ()),
        **dict.fromkeys(("Erf", "Tanh", "Sigmoid", "Relu", "Softplus"), ()),
        **dict.fromkeys(("Slice", "Squeeze", "Unsqueeze", "Expand"), ()),
        **dict.fromkeys(
            ("ReduceMean", "ReduceMin", "ReduceSum"),
            ("keepdims", "noop_with_empty_axes"),
        ),
        "Gemm": ("alpha", "beta", "transA", "transB"),
        "Gelu": ("approximate",),
        "LayerNormalization": ("axis", "epsilon", "stash_type"),
        "Concat": ("axis",),
        "Split": ("axis", "num_outputs"),
        "Gather": ("axis",),
        "Reshape": ("allowzero",),
        "Cast": ("to", "saturate"),
        "Constant": ("value", "value_float", "value_floats", "value_int", "value_ints"),
        "ArgMax": ("axis", "keepdims", "select_last_index"),
        "Transpose": ("perm",),
    }
)
"""Operators with their attributes: no control flow, no state, no size that data can choose."""
MAX_NODES: Final = 5000
MAX_EDGES: Final = 50_000
"""Inputs and outputs of all nodes together."""
MAX_ATTRIBUTE: Final = 2**31 - 1
MAX_ATTRIBUTE_LENGTH: Final = 16
ORT_FORMAT: Final = b"ORTM"
"""At byte 4 it makes ONNX Runtime take the file for its own format, whatever else it is."""

_COMMON: Final = ("name", "doc_string", "metadata_props")
_FIELDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "ModelProto": (
            *("ir_version", "opset_import", "producer_name", "producer_version"),
            *("domain", "model_version", "graph", *_COMMON),
        ),
        "GraphProto": (
            *_COMMON,
            *("node", "initializer", "input", "output", "value_info"),
        ),
        "NodeProto": (*_COMMON, "input", "output", "op_type", "domain", "attribute"),
        "AttributeProto": (*_COMMON, "type", "f", "i", "s", "t", "floats", "ints"),
        "TensorProto": (
            *(*_COMMON, "dims", "data_type", "raw_data", "data_location"),
            *("float_data", "int32_data", "int64_data"),
        ),
    }
)
"""Parts that a policy needs; what is not listed is refused, so that nothing can be smuggled in."""
_REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "external_data": "it lies in another file; export one file",
        "functions": "function bodies and training graphs are not allowed",
        "training_info": "function bodies and training graphs are not allowed",
        "g": "a graph inside an operator is not allowed",
        "graphs": "a graph inside an operator is not allowed",
        "sparse_initializer": "sparse tensors are not allowed",
    }
)


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
    model = _parse(data, where)
    _check_versions(model, where)
    _check_nodes(model, where)
    for message in _messages(model):
        _check_fields(message, where)
    _check_signature(model, graph, where)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as problem:
        raise ArtifactError(
            f"{where}: the graph is inconsistent: {problem}"
        ) from problem
    check_bounds(model, where)
    return model


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    if len(data) > MAX_GRAPH_BYTES:
        raise ArtifactError(
            f"{where}: {len(data)} bytes, at most {MAX_GRAPH_BYTES} are read"
        )
    if data[4:8] == ORT_FORMAT:
        raise ArtifactError(
            f"{where}: marked as ONNX Runtime's own format, which no check here reads; "
            "export it again"
        )
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as problem:
        raise ArtifactError(
            f"{where}: not an ONNX model ({problem}); export it again"
        ) from problem
    known = onnx.ModelProto()
    known.CopyFrom(model)
    known.DiscardUnknownFields()
    if known.ByteSize() != model.ByteSize():
        raise ArtifactError(
            f"{where}: holds parts that onnx {onnx.__version__} does not know, an engine might; "
            "export it again"
        )
    return model


def _check_versions(model: Any, where: str) -> None:
    domains = [(item.domain, item.version) for item in model.opset_import]
    standard = [version for domain, version in domains if domain in ("", "ai.onnx")]
    if len(domains) != 1 or len(standard) != 1 or standard[0] not in OPSETS:
        raise ArtifactError(
            f"{where}: operator sets {domains[:5]}; expected the standard domain alone, version "
            f"{OPSETS.start} to {OPSETS.stop - 1}",
            found=domains,
        )
    if model.ir_version not in IR_VERSIONS:
        raise ArtifactError(
            f"{where}: file format (IR) {model.ir_version}; expected {IR_VERSIONS.start} to "
            f"{IR_VERSIONS.stop - 1}",
            found=model.ir_version,
        )


def _check_nodes(model: Any, where: str) -> None:
    nodes = model.graph.node
    if len(nodes) > MAX_NODES:
        raise ArtifactError(
            f"{where}: {len(nodes)} nodes, at most {MAX_NODES} are allowed"
        )
    edges = sum(len(node.input) + len(node.output) for node in nodes)
    if edges > MAX_EDGES:
        raise ArtifactError(
            f"{where}: its nodes have {edges} inputs and outputs, at most {MAX_EDGES} are allowed"
        )
    for node in nodes:
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            raise ArtifactError(
                f"{where}: operator '{node.op_type}' of domain '{node.domain}' is not allowed; "
                f"{nearest(node.op_type, OPERATORS)}",
                operator=node.op_type,
            )
        for attribute in node.attribute:
            _check_attribute(node, attribute, where)
        if node.op_type != "Split" and len(node.output) != 1:
            raise ArtifactError(
                f"{where}: operator '{node.op_type}' has {len(node.output)} outputs, expected 1"
            )


def _check_attribute(node: Any, attribute: Any, where: str) -> None:
    """Refuse unknown attributes, and numbers on which the checker itself would choke."""
    label = f"{where}: attribute '{attribute.name}' of operator '{node.op_type}'"
    if attribute.HasField("g") or attribute.graphs:
        raise ArtifactError(f"{label}: {_REASONS['g']}")
    if attribute.name not in OPERATORS[node.op_type]:
        raise ArtifactError(
            f"{label} is not allowed; {nearest(attribute.name, OPERATORS[node.op_type])}"
        )
    numbers = [attribute.i, *attribute.ints]
    length = max(len(attribute.ints), len(attribute.floats))
    if length > MAX_ATTRIBUTE_LENGTH:
        raise ArtifactError(
            f"{label} has {length} numbers, at most {MAX_ATTRIBUTE_LENGTH} are allowed"
        )
    if max(map(abs, numbers)) > MAX_ATTRIBUTE:
        raise ArtifactError(
            f"{label} is {max(numbers, key=abs)}, at most {MAX_ATTRIBUTE} is allowed"
        )
    if attribute.name == "num_outputs" and attribute.i != len(node.output):
        raise ArtifactError(
            f"{label} is {attribute.i}, the node has {len(node.output)}"
        )


def _messages(model: Any) -> Iterator[Any]:
    """Everything in the model that could hold what does not belong there."""
    yield model
    yield model.graph
    yield from model.graph.node
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            yield attribute
            if attribute.HasField("t"):
                yield attribute.t


def _check_fields(message: Any, where: str) -> None:
    kind = message.DESCRIPTOR.name
    if kind == "TensorProto" and (
        message.data_location == onnx.TensorProto.EXTERNAL or message.external_data
    ):
        raise ArtifactError(
            f"{where}: tensor '{message.name}': {_REASONS['external_data']}"
        )
    for field, _ in message.ListFields():
        if field.name not in _FIELDS[kind]:
            reason = _REASONS.get(field.name, "it is not part of the format")
            raise ArtifactError(
                f"{where}: {kind} holds '{field.name}': {reason}", field=field.name
            )


def _check_signature(model: Any, graph: GraphSignature, where: str) -> None:
    constants = {tensor.name for tensor in model.graph.initializer}
    for item in model.graph.input:
        if item.name in constants:
            raise ArtifactError(
                f"{where}: input '{item.name}' has a default; weights come from "
                "weights.safetensors alone"
            )
    found = {
        "inputs": [_spec(item) for item in model.graph.input],
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
    shape = static_shape(value)
    if shape is None or value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        return f"'{value.name}', which is not a float32 tensor of fixed shape"
    return TensorSpec(value.name, shape)
