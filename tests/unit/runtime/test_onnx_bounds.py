# SPDX-License-Identifier: Apache-2.0
"""No graph can ask for more memory or work than allowed, or fail on some observations only."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qam_ros.contract.artifact_manifest import GraphSignature, TensorSpec
from qam_ros.contract.errors import ArtifactError
from qam_ros.runtime.onnx_check import check_onnx


def signature(inputs, outputs):
    return GraphSignature(
        tuple(TensorSpec(n, tuple(s)) for n, s in inputs),
        tuple(TensorSpec(n, tuple(s)) for n, s in outputs),
    )


def describe(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def make_model(nodes, constants=(), *, opset=20, domain="", claims=(), **parts):
    x = describe("x", parts.get("shape", [1, 4]))
    y = describe("y", parts.get("out", [1, 4]))
    graph = helper.make_graph(
        nodes, "g", [x], [y], list(constants), value_info=list(claims)
    )
    imports = [helper.make_opsetid(domain, opset)]
    return helper.make_model(
        graph, opset_imports=imports, ir_version=parts.get("ir_version", 9)
    )


def constant(name, value, kind=np.int64):
    return numpy_helper.from_array(np.array(value, kind), name)


EXPECTED = signature([("x", (1, 4))], [("y", (1, 4))])
IDENTITY = helper.make_node("Identity", ["x"], ["y"])


def added(*nodes, constants=(), of="m", **parts):
    """A model that adds what the nodes make, reduced to one number, to its input."""
    tail = [
        helper.make_node("ReduceMean", [of], ["mean"], keepdims=0),
        helper.make_node("Add", ["x", "mean"], ["y"]),
    ]
    return make_model([*nodes, *tail], constants, **parts)


def refuse(model, words, graph=EXPECTED):
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(ArtifactError, match=words):
        check_onnx(data, graph)


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        (
            [helper.make_node("Expand", ["x", "size"], ["m"])],
            [constant("size", [2**21, 4])],
        ),
        (
            [
                helper.make_node("Reshape", ["wide", "size"], ["m"]),
                helper.make_node("Add", ["x", "x"], ["unused"]),
            ],
            [constant("size", [2**31 - 1]), constant("wide", [0.0], np.float32)],
        ),
        (
            [
                helper.make_node("Expand", ["x", "rows"], ["r"]),
                helper.make_node("Transpose", ["r"], ["t"]),
                helper.make_node("MatMul", ["r", "t"], ["m"]),
            ],
            [constant("rows", [4096, 4])],
        ),
        (
            [
                helper.make_node("Expand", ["x", "rows"], ["r"]),
                helper.make_node("Concat", ["r"] * 64, ["m"], axis=0),
            ],
            [constant("rows", [32768, 4])],
        ),
        (
            [
                helper.make_node("Expand", ["x", "rows"], ["r"]),
                helper.make_node("Gather", ["r", "index"], ["m"], axis=0),
            ],
            [constant("rows", [1, 4]), constant("index", np.zeros((900, 900)))],
        ),
        (
            [
                helper.make_node("Expand", ["x", "rows"], ["r"]),
                helper.make_node("Transpose", ["r"], ["t"]),
                helper.make_node("Add", ["wide", "high"], ["m"]),
            ],
            [
                constant("rows", [4, 4]),
                constant("wide", np.zeros((1, 2048)), np.float32),
                constant("high", np.zeros((2048, 1)), np.float32),
            ],
        ),
    ],
    ids=["Expand", "Reshape", "MatMul", "Concat", "Gather", "broadcast"],
)
def test_a_few_bytes_that_ask_for_gigabytes_are_refused(nodes, constants):
    refuse(added(*nodes, constants=constants), "too large|inconsistent")


def test_sizes_that_overflow_inside_shape_inference_are_refused_before_it():
    node = helper.make_node("Reshape", ["x", "size"], ["m"])
    product = [2**30, 2**30, 16, -1]  # 0 in 64 bits, by which inference divides
    model = added(node, constants=[constant("size", product)])
    refuse(model, "in 'size' of operator 'Reshape' is too large")


def test_ranks_that_grow_with_every_node_are_refused():
    nodes, last = [], "x"
    for k in range(2):
        nodes.append(helper.make_node("Unsqueeze", [last, "axes"], [f"u{k}"]))
        last = f"u{k}"
    model = added(*nodes, of=last, constants=[constant("axes", [0, 1, 2, 3])])
    refuse(model, "'u1' has 12 dimensions, at most 8")


def test_a_size_that_data_chooses_is_refused_whatever_the_graph_claims():
    """ONNX keeps a claimed shape where it cannot infer one; at run time the data decides."""
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Squeeze", ["whole", "axes"], ["size"]),
        helper.make_node("Expand", ["one", "size"], ["m"]),
    ]
    constants = [constant("axes", [0]), constant("one", 1.0, np.float32)]
    claims = [
        describe("m", [1, 1, 1, 1]),
        describe("size", [4], TensorProto.INT64),
    ]
    model = added(*nodes, constants=constants, claims=claims)
    assert onnx.checker.check_model(model, full_check=True) is None
    refuse(model, "takes its sizes from 'size', which is computed")


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Reshape", ["x", "c"], ["y"]),
        helper.make_node("Slice", ["x", "k", "c"], ["y"]),
        helper.make_node("ReduceSum", ["x", "c"], ["y"]),
    ],
    ids=lambda node: node.op_type,
)
def test_every_operand_that_decides_a_shape_must_be_a_constant(node):
    maker = helper.make_node("ArgMax", ["x"], ["c"], axis=0, keepdims=0)
    model = make_model([maker, node], [constant("k", [0])])
    refuse(model, f"operator '{node.op_type}' takes its sizes from 'c'")


def test_a_shape_that_the_graph_only_claims_is_refused():
    claims = [describe("m", [7])]
    node = helper.make_node("Identity", ["x"], ["m"])
    refuse(
        added(node, claims=claims), r"'m' is said to have shape \(7,\).*give \(1, 4\)"
    )
    claims = [describe("nowhere", [7])]
    refuse(make_model([IDENTITY], claims=claims), "'nowhere' is said to have shape")
    expected = signature([("x", (1, 4))], [("y", (1, 5))])
    refuse(make_model([IDENTITY], out=[1, 5]), r"'y' is said to have shape", expected)


def test_integers_that_are_computed_are_refused():
    """Dividing them by zero or casting to them would fail on some observations only."""
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Div", ["i", "i"], ["q"]),
        helper.make_node("Cast", ["q"], ["y"], to=TensorProto.FLOAT),
    ]
    refuse(
        make_model(nodes), "'i' of operator 'Cast' has type INT64; allowed are FLOAT"
    )
    nodes = [
        helper.make_node("Div", ["one", "zero"], ["q"]),
        helper.make_node("Cast", ["q"], ["m"], to=TensorProto.FLOAT),
    ]
    folded = [constant("one", [1]), constant("zero", [0])]
    refuse(added(*nodes, constants=folded), "'q' of operator 'Div' has type INT64")


def test_an_index_that_may_lie_outside_is_refused():
    scores = constant("scores", np.zeros((1, 9)), np.float32)
    choose = [
        helper.make_node("Add", ["x", "one"], ["more"]),
        helper.make_node("Concat", ["more", "scores"], ["row"], axis=1),
        helper.make_node("ArgMax", ["row"], ["best"], axis=1, keepdims=0),
        helper.make_node("Gather", ["x", "best"], ["m"], axis=1),
    ]
    constants = [scores, constant("one", 1.0, np.float32)]
    model = added(*choose, constants=constants)
    refuse(model, "takes element 12 of 'x', which has 4")
    node = helper.make_node("Gather", ["x", "k"], ["m"], axis=1)
    for outside in (4, -5):
        model = added(node, constants=[constant("k", [outside])])
        refuse(model, f"takes element {outside} of 'x', which has 4")
    check_onnx(
        added(node, constants=[constant("k", [-4, 3])]).SerializeToString(), EXPECTED
    )


def test_an_index_of_an_unchecked_origin_is_refused():
    nodes = [
        helper.make_node("ArgMax", ["x"], ["best"], axis=1, keepdims=0),
        helper.make_node("Gather", ["x", "best"], ["one"], axis=1),
        helper.make_node("Gather", ["x", "one"], ["m"], axis=1),
    ]
    refuse(added(*nodes), "takes its index from 'one'|inconsistent")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_constants_that_are_not_finite_are_refused(value):
    node = helper.make_node("Add", ["x", "c"], ["y"])
    model = make_model([node], [constant("c", value, np.float32)])
    refuse(model, "constant 'c' holds NaN or infinity")
    held = helper.make_node("Constant", [], ["c"], value_float=float(value))
    refuse(make_model([held, node]), "constant 'c' holds NaN or infinity")


def test_constants_of_other_types_or_sizes_are_refused():
    node = helper.make_node("Cast", ["c"], ["m"], to=TensorProto.FLOAT)
    model = added(node, constants=[constant("c", [1.0], np.float64)])
    refuse(model, "constant 'c' has type DOUBLE, allowed are FLOAT, FLOAT16, BFLOAT16")
    short = constant("c", [1.0], np.float32)
    short.dims[:] = [2**33]
    add = helper.make_node("Add", ["x", "c"], ["y"])
    refuse(make_model([add], [short]), "inconsistent|cannot be read")
    many = constant("c", np.ones((1,) * 9), np.float32)
    refuse(make_model([add], [many]), "'c' has 9 dimensions, at most 8")


def test_half_precision_inside_is_accepted():
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.BFLOAT16),
        helper.make_node("Add", ["h", "h"], ["s"]),
        helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT),
    ]
    check_onnx(make_model(nodes).SerializeToString(), EXPECTED)


def test_many_small_requests_are_refused_together():
    """A thousand tensors below the limit of one are twelve gigabytes."""
    nodes = [
        helper.make_node("Expand", ["one", "size"], [f"e{k}"]) for k in range(1000)
    ]
    constants = [constant("size", [2_000_000]), constant("one", [1.0], np.float32)]
    model = added(*nodes, of="e0", constants=constants)
    refuse(model, r"8\d{9} bytes of intermediate tensors, at most 1073741824")


def test_work_without_end_is_refused():
    shape = (1400, 1400)
    nodes, last = [], "w"
    for k in range(10):
        nodes.append(helper.make_node("MatMul", [last, "w"], [f"p{k}"]))
        last = f"p{k}"
    weight = constant("w", np.zeros(shape), np.float32)
    model = added(*nodes, of=last, constants=[weight])
    refuse(model, "multiplications for one chunk, at most 16000000000|at most 8388608")
    expected = signature([("x", shape)], [("y", (1, 1))])
    nodes = [helper.make_node("MatMul", ["x", "x"], ["p0"])]
    for k in range(9):
        nodes.append(helper.make_node("MatMul", [f"p{k}", "x"], [f"p{k + 1}"]))
    nodes.append(helper.make_node("ReduceMean", ["p9"], ["y"], keepdims=1))
    model = make_model(nodes, shape=shape, out=(1, 1))
    refuse(model, "multiplications for one chunk, at most 16000000000", expected)


@pytest.mark.parametrize(("source", "count"), [("x", 1), ("copy", 1), ("x", 200)])
def test_only_a_transposed_input_may_be_large(source, count):
    """A transposed weight is as large as the weight; a transposed intermediate is not bounded so."""
    shape = (1024, 4096)
    nodes = [helper.make_node("Identity", ["x"], ["copy"])] * (source == "copy")
    nodes += [
        helper.make_node("Transpose", [source], [f"t{k}"], perm=[1, 0])
        for k in range(count)
    ]
    nodes.append(helper.make_node("ReduceMean", ["t0", "axes"], ["y"], keepdims=1))
    model = make_model(nodes, [constant("axes", [0, 1])], shape=shape, out=(1, 1))
    expected = signature([("x", shape)], [("y", (1, 1))])
    if source == "copy":
        refuse(model, "too large", expected)
    elif count > 1:
        refuse(model, "3355443200 bytes of transposed weights, at most", expected)
    else:
        check_onnx(model.SerializeToString(), expected)


@pytest.mark.parametrize(
    ("node", "constants", "words"),
    [
        (
            helper.make_node("Gemm", ["x", "w", "c"], ["y"]),
            {"w": (4, 4), "c": (3,)},
            r"'c' of operator 'Gemm' has shape \(3,\), .* \(1, 4\)",
        ),
        (
            helper.make_node("Gemm", ["x", "w", "c"], ["y"]),
            {"w": (4, 4), "c": (2, 4)},
            r"'c' of operator 'Gemm' has shape \(2, 4\)",
        ),
        (
            helper.make_node("Gemm", ["x", "w", "c"], ["y"]),
            {"w": (4, 4), "c": (1, 1, 4)},
            r"'c' of operator 'Gemm' has shape \(1, 1, 4\)",
        ),
        (
            helper.make_node("LayerNormalization", ["x", "w"], ["y"]),
            {"w": (3,)},
            r"'w' of operator 'LayerNormalization' has shape \(3,\), .* \(4,\)",
        ),
        (
            helper.make_node("LayerNormalization", ["x", "w", "c"], ["y"], axis=-1),
            {"w": (4,), "c": (1,)},
            r"'c' of operator 'LayerNormalization' has shape \(1,\)",
        ),
        (
            helper.make_node("Clip", ["x", "w", "c"], ["y"]),
            {"w": (), "c": (4,)},
            r"'c' of operator 'Clip' has shape \(4,\), .* \(\)",
        ),
    ],
)
def test_bias_scale_or_limit_that_does_not_fit_is_refused_before_it_runs(
    node, constants, words
):
    """Shape inference does not look at these inputs; ONNX Runtime fails on them when it runs."""
    made = [constant(n, np.ones(s), np.float32) for n, s in constants.items()]
    refuse(make_model([node], made), words)


@pytest.mark.parametrize("shape", [(4,), (1,), (1, 4), (1, 1), ()])
def test_bias_that_spreads_over_the_rows_is_accepted(shape):
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"])
    made = [constant("w", np.ones((4, 4)), np.float32)]
    made.append(constant("c", np.ones(shape), np.float32))
    check_onnx(make_model([node], made).SerializeToString(), EXPECTED)
