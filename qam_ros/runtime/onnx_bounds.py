# SPDX-License-Identifier: Apache-2.0
"""Bounds on what a policy graph can ask for when it runs: memory, work, and errors that wait in data.

Every size must follow from the graph alone, so shapes, axes and indices are constants, and integers
are only those and the choice of an ArgMax. Then shape inference gives every shape, and nothing that a
robot observes can change a size or stop an operator. A hundred bytes of graph could otherwise ask for
gigabytes, or fail in the middle of a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from qam_ros.contract.errors import ArtifactError

MAX_TENSOR_BYTES: Final = 16 * 1024 * 1024
"""Largest intermediate tensor, counted with eight bytes a number.

A transposed weight may be larger: it is as large as the weight, and engines read it in place.
"""
MAX_TOTAL_BYTES: Final = 1024 * 1024 * 1024
"""Of all intermediate tensors, if an engine freed none; the largest policies here take a tenth."""
MAX_TRANSPOSED_BYTES: Final = 2 * 1024 * 1024 * 1024
"""Of all transposed weights. Guidance by ten critics of 4 x 1024 takes half of it."""
MAX_WORK: Final = 16 * 10**9
"""Multiplications for one chunk: about half a second on one core. The paper's policy takes 9 million."""
ELEMENT_WORK: Final = 16
"""What reading or writing one number counts, in multiplications of a matrix product."""
MAX_RANK: Final = 8
MAX_INDEX: Final = 2**31 - 1

_TYPE: Final = onnx.TensorProto
FLOATS: Final = (_TYPE.FLOAT, _TYPE.FLOAT16, _TYPE.BFLOAT16)
CONSTANTS: Final = (*FLOATS, _TYPE.INT64)
STATIC_OPERANDS: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {
        **dict.fromkeys(("Reshape", "Expand", "Squeeze", "Unsqueeze", "Split"), (1,)),
        **dict.fromkeys(("ReduceMean", "ReduceMin", "ReduceSum"), (1,)),
        "Slice": (1, 2, 3, 4),
    }
)
"""Inputs that decide a shape."""
SIDE_INPUTS: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {"Gemm": (2,), "LayerNormalization": (1, 2), "Clip": (1, 2)}
)
"""Inputs whose shape nobody checks before the operator runs."""

Array = npt.NDArray[Any]


def check_bounds(model: Any, where: str) -> None:
    """Refuse sizes that are not fixed or too large, and operators that could fail on some input.

    Args:
        model: a model that the ONNX checker accepts.
        where: file, for the messages.

    Raises:
        ArtifactError: names the tensor or operator and the limit.
    """
    constants = dict(_constants(model, where))
    _check_operands(model, constants, where)
    _check_ranks(model, constants, where)
    inferred = _infer(model, where)
    for value in (*model.graph.output, *model.graph.value_info):
        _check_claim(value, inferred, where)
    shapes = {name: array.shape for name, array in constants.items()}
    for value in (*model.graph.input, *inferred.values()):
        shapes[value.name] = static_shape(value) or ()
    _check_gathers(model, constants, shapes, where)
    _check_side_inputs(model, shapes, where)
    _check_totals(model, shapes, where)


def static_shape(value: Any) -> tuple[int, ...] | None:
    """Shape of a tensor's description; None unless every size is a number."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    if any(
        not size.HasField("dim_value") or size.dim_value < 0
        for size in tensor.shape.dim
    ):
        return None
    return tuple(int(size.dim_value) for size in tensor.shape.dim)


def _constants(model: Any, where: str) -> Iterator[tuple[str, Array]]:
    """Every constant by name, checked."""
    for tensor in model.graph.initializer:
        yield tensor.name, _read(tensor, tensor.name, where)
    for node in model.graph.node:
        if node.op_type == "Constant":
            if len(node.attribute) != 1:
                raise ArtifactError(
                    f"{where}: operator 'Constant' has {len(node.attribute)} values, expected 1"
                )
            name, attribute = node.output[0], node.attribute[0]
            if attribute.HasField("t"):
                yield name, _read(attribute.t, name, where)
            else:
                value = onnx.helper.get_attribute_value(attribute)
                yield name, _finite(np.asarray(value), name, where)


def _read(tensor: Any, name: str, where: str) -> Array:
    if tensor.data_type not in CONSTANTS:
        raise ArtifactError(
            f"{where}: constant '{name}' has type {_type_name(tensor.data_type)}, allowed are "
            f"{', '.join(map(_type_name, CONSTANTS))}"
        )
    _check_rank(name, len(tensor.dims), where)
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as problem:
        raise ArtifactError(
            f"{where}: constant '{name}' cannot be read: {problem}"
        ) from problem
    return _finite(array, name, where)


def _finite(array: Array, name: str, where: str) -> Array:
    if not np.isfinite(array).all():
        raise ArtifactError(f"{where}: constant '{name}' holds NaN or infinity")
    return array


def _check_operands(model: Any, constants: Mapping[str, Array], where: str) -> None:
    """Refuse shapes that data could choose, and numbers that overflow inside shape inference."""
    for node in model.graph.node:
        for index in STATIC_OPERANDS.get(node.op_type, ()):
            name = node.input[index] if index < len(node.input) else ""
            if not name:
                continue
            if name not in constants:
                raise ArtifactError(
                    f"{where}: operator '{node.op_type}' takes its sizes from '{name}', which is "
                    "computed; sizes must be constants"
                )
            sizes = constants[name]
            if sizes.size > MAX_RANK and node.op_type != "Split":
                raise ArtifactError(
                    f"{where}: sizes '{name}' of operator '{node.op_type}' are {sizes.size}, at "
                    f"most {MAX_RANK} dimensions are allowed"
                )
            worst = max((abs(int(size)) for size in sizes.flat), default=0)
            if node.op_type in ("Reshape", "Expand"):
                worst = math.prod(abs(int(size)) or 1 for size in sizes.flat)
            if worst > MAX_INDEX:
                raise ArtifactError(
                    f"{where}: size {worst} in '{name}' of operator '{node.op_type}' is too large; "
                    f"at most {MAX_INDEX} is allowed"
                )


def _check_ranks(model: Any, constants: Mapping[str, Array], where: str) -> None:
    """Bound the dimensions before shape inference writes them all out."""
    ranks = {name: array.ndim for name, array in constants.items()}
    for item in model.graph.input:
        ranks[item.name] = len(item.type.tensor_type.shape.dim)
        _check_rank(item.name, ranks[item.name], where)
    for node in model.graph.node:
        rank = max((ranks[name] for name in node.input if name), default=0)
        if node.op_type in ("Reshape", "Expand", "Unsqueeze") and len(node.input) > 1:
            length = constants[node.input[1]].size
            rank = length if node.op_type == "Reshape" else max(rank, length)
            rank += ranks[node.input[0]] * (node.op_type == "Unsqueeze")
        elif node.op_type == "Gather":
            rank = sum(ranks[name] for name in node.input)
        for name in node.output:
            ranks.setdefault(name, rank)
            _check_rank(name, rank, where)


def _check_rank(name: str, rank: int, where: str) -> None:
    if rank > MAX_RANK:
        raise ArtifactError(
            f"{where}: tensor '{name}' has {rank} dimensions, at most {MAX_RANK} are allowed"
        )


def _infer(model: Any, where: str) -> dict[str, Any]:
    """Descriptions of all computed tensors, from the inputs and constants alone."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        bare = onnx.shape_inference.infer_shapes(
            bare, check_type=True, strict_mode=True, data_prop=False
        )
    except (
        *(onnx.shape_inference.InferenceError, onnx.checker.ValidationError),
        *(ValueError, RuntimeError, MemoryError),
    ) as problem:
        raise ArtifactError(
            f"{where}: the graph is inconsistent: {problem}"
        ) from problem
    inferred = {
        item.name: item for item in (*bare.graph.value_info, *bare.graph.output)
    }
    for node in model.graph.node:
        allowed = (
            CONSTANTS
            if node.op_type == "Constant"
            else (_TYPE.INT64,)
            if node.op_type == "ArgMax"
            else FLOATS
        )
        for name in node.output:
            if name not in inferred or static_shape(inferred[name]) is None:
                raise ArtifactError(f"{where}: tensor '{name}' has no fixed shape")
            kind = inferred[name].type.tensor_type.elem_type
            if kind not in allowed:
                raise ArtifactError(
                    f"{where}: tensor '{name}' of operator '{node.op_type}' has type "
                    f"{_type_name(kind)}; allowed are {', '.join(map(_type_name, allowed))}"
                )
    return inferred


def _check_claim(value: Any, inferred: Mapping[str, Any], where: str) -> None:
    """Refuse a shape or type that the graph states and its nodes do not give."""
    found = inferred.get(value.name)
    if found is None or value.type != found.type:
        given = None if found is None else static_shape(found)
        raise ArtifactError(
            f"{where}: tensor '{value.name}' is said to have shape {static_shape(value)}, its nodes "
            f"give {given}"
        )


def _check_gathers(
    model: Any,
    constants: Mapping[str, Array],
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
) -> None:
    """Refuse an index that could lie outside: the node would fail on some observations only."""
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type != "Gather":
            continue
        data, index = node.input
        length = shapes[data][_axis(node)] if shapes[data] else 0
        maker = makers.get(index)
        if index in constants:
            values = constants[index]
            low, high = int(values.min(initial=0)), int(values.max(initial=0))
        elif maker is not None and maker.op_type == "ArgMax":
            low, high = 0, shapes[maker.input[0]][_axis(maker)] - 1
        else:
            raise ArtifactError(
                f"{where}: operator 'Gather' takes its index from '{index}'; allowed are constants "
                "and the output of an ArgMax"
            )
        if low < -length or high >= length:
            raise ArtifactError(
                f"{where}: operator 'Gather' takes element {low if low < -length else high} of "
                f"'{data}', which has {length}"
            )


def _check_side_inputs(
    model: Any, shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Refuse biases, scales and limits of another shape, at which shape inference does not look."""
    for node in model.graph.node:
        for index in SIDE_INPUTS.get(node.op_type, ()):
            name = node.input[index] if index < len(node.input) else ""
            if not name:
                continue
            found, expected = shapes[name], _side_shape(node, shapes)
            fits = (
                _spreads(found, expected)
                if node.op_type == "Gemm"
                else found == expected
            )
            if not fits:
                raise ArtifactError(
                    f"{where}: input '{name}' of operator '{node.op_type}' has shape {found}, it has to fit "
                    f"{expected}",
                    found=found,
                    expected=expected,
                )


def _side_shape(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """What a Gemm's bias spreads over, or the shape of a normalisation's scale or a Clip's limit."""
    if node.op_type == "Gemm":
        return shapes[node.output[0]]
    if node.op_type == "Clip":
        return ()
    axis = next((int(item.i) for item in node.attribute if item.name == "axis"), -1)
    return shapes[node.input[0]][axis:]


def _spreads(shape: tuple[int, ...], over: tuple[int, ...]) -> bool:
    """Whether a tensor can be repeated to fill another one."""
    ends = zip(reversed(shape), reversed(over), strict=False)
    return len(shape) <= len(over) and all(one in (1, size) for one, size in ends)


def _axis(node: Any) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "axis"), 0)


def _check_totals(
    model: Any, shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
    inputs = {item.name for item in model.graph.input}
    total, transposed, work = 0, 0, 0
    for node in model.graph.node:
        of_weight = node.op_type == "Transpose" and node.input[0] in inputs
        for name in node.output:
            size = math.prod(shapes[name])
            if 8 * size > MAX_TENSOR_BYTES and not of_weight:
                raise ArtifactError(
                    f"{where}: tensor '{name}' of shape {shapes[name]} is too large; at most "
                    f"{MAX_TENSOR_BYTES} bytes are allowed, eight a number"
                )
            transposed += 4 * size * of_weight
            total += 4 * size * (not of_weight)
            work += ELEMENT_WORK * size + _depth(node, shapes) * size
        work += ELEMENT_WORK * sum(math.prod(shapes[name]) for name in _read_by(node))
    for what, found, limit in (
        ("bytes of intermediate tensors", total, MAX_TOTAL_BYTES),
        ("bytes of transposed weights", transposed, MAX_TRANSPOSED_BYTES),
        ("multiplications for one chunk", work, MAX_WORK),
    ):
        if found > limit:
            raise ArtifactError(
                f"{where}: {found} {what}, at most {limit} are allowed; export a smaller policy",
                found=found,
                limit=limit,
            )


def _depth(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Multiplications per number of a matrix product."""
    if node.op_type not in ("MatMul", "Gemm"):
        return 0
    first = shapes[node.input[0]]
    turned = any(item.name == "transA" and item.i for item in node.attribute)
    return first[0 if turned else -1] if first else 1


def _read_by(node: Any) -> list[str]:
    """Inputs that a node reads number by number; matrix products are counted by their depth."""
    if node.op_type in ("MatMul", "Gemm", "Transpose", "Gather"):
        return []
    return [name for name in node.input if name]


def _type_name(kind: int) -> str:
    return next(
        (name for name, value in _TYPE.DataType.items() if value == kind), f"{kind}"
    )
