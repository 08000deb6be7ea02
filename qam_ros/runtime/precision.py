# SPDX-License-Identifier: Apache-2.0
"""Matrix products in lower precision: what a graph says, and what a CPU makes of it.

A graph exported with float16 or bfloat16 casts the two factors of a product down and its result up;
weights and everything between products stay float32. A GPU engine multiplies as the graph says. ONNX
Runtime on a CPU has no bfloat16 product and runs a float16 one as float32 between casts, so there the
casts are left out: more exact than asked for, and as fast as float32.
"""

from __future__ import annotations

from typing import Any, Final

import onnx
from onnx import TensorProto, helper

LOWER: Final = {
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
"""Precisions below float32 by name."""
PRODUCTS: Final = ("Gemm", "MatMul")


def float32_products(data: bytes) -> bytes:
    """The same graph with float32 products; a graph without lower precision comes back as it is.

    Args:
        data: a model that was checked.
    """
    model = onnx.load_model_from_string(data)
    lower = [node for node in model.graph.node if _target(node) in LOWER.values()]
    if not lower:
        return data
    for node in lower:
        node.attribute[0].i = TensorProto.FLOAT
    del model.graph.value_info[:]
    serialised: bytes = model.SerializeToString()
    return serialised


def rounded_products(data: bytes) -> bytes:
    """A float32 graph that rounds factors and results of products as an engine does.

    It sums in float32, as the tensor cores of a GPU. Run it without graph optimisation: ONNX Runtime
    takes out a cast down that is followed by a cast up.

    Args:
        data: a model that was checked.
    """
    model = onnx.load_model_from_string(data)
    casts = {node.output[0]: _target(node) for node in model.graph.node}
    nodes: list[Any] = []
    for node in model.graph.node:
        kind = casts.get(node.input[0]) if node.op_type in PRODUCTS else None
        if kind not in LOWER.values():
            nodes.append(node)
            continue
        factors = [f"{name}_up_{node.name}" for name in node.input]
        for name, up in zip(node.input, factors, strict=True):
            nodes.append(helper.make_node("Cast", [name], [up], to=TensorProto.FLOAT))
        full, attributes = f"{node.name}_full", node.attribute
        product = helper.make_node(node.op_type, factors, [full], name=node.name)
        product.attribute.extend(attributes)
        nodes += [product, helper.make_node("Cast", [full], list(node.output), to=kind)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    serialised: bytes = model.SerializeToString()
    return serialised


def _target(node: Any) -> int | None:
    """Type that a cast makes; None: another node."""
    return node.attribute[0].i if node.op_type == "Cast" else None
