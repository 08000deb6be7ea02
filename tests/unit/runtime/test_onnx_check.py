# SPDX-License-Identifier: Apache-2.0
"""Every graph that does not keep to the format is refused, with the reason, before anything runs."""

import time

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


def test_a_graph_that_keeps_the_format_is_accepted():
    check_onnx(make_model([IDENTITY]).SerializeToString(), EXPECTED)


def test_bytes_that_are_no_model_are_refused():
    refuse(b"\xff\xff\xff\xff", "not an ONNX model")
    refuse(b"", "operator sets")
    refuse(bytes(9 * 1024 * 1024), "at most 8388608")


def test_a_file_that_onnx_runtime_would_read_as_its_own_format_is_refused():
    """The same bytes are an ONNX model to the checks and an unchecked one to the engine."""
    import onnxruntime

    name = b"\x12\x86\x00" + b"?ORTM?"  # producer_name, its length in two bytes
    data = name + make_model([IDENTITY]).SerializeToString()
    assert onnx.load_model_from_string(data).producer_name == "?ORTM?"
    with pytest.raises(Exception, match="ORT model verification failed"):
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    refuse(data, "own format")


def test_parts_that_a_newer_onnx_may_know_are_refused():
    data = make_model([IDENTITY]).SerializeToString()
    refuse(data + b"\xfa\x3e\x03abc", "does not know")


def test_operators_off_the_list_are_refused_with_the_nearest():
    refuse(make_model([helper.make_node("Gelus", ["x"], ["y"])]), "did you mean 'Gelu'")
    for kind in ("ConstantOfShape", "Tile", "RandomNormal", "Loop", "If", "Range"):
        refuse(make_model([helper.make_node(kind, ["x"], ["y"])]), f"operator '{kind}'")
    refuse(
        make_model([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")]),
        "com.microsoft",
    )


def test_an_enormous_name_does_not_keep_the_check_busy():
    started = time.perf_counter()
    model = make_model([helper.make_node("G" * 4_000_000, ["x"], ["y"])])
    with pytest.raises(ArtifactError, match="is not allowed") as caught:
        check_onnx(model.SerializeToString(), EXPECTED)
    assert len(str(caught.value)) < 5000
    assert time.perf_counter() - started < 2.0  # seconds without the cut


def test_old_new_and_custom_operator_sets_are_refused():
    refuse(make_model([IDENTITY], opset=17), "version 18 to 21")
    refuse(make_model([IDENTITY], opset=23), "version 18 to 21")
    refuse(make_model([IDENTITY], domain="com.microsoft", opset=1), "operator sets")
    twice = make_model([IDENTITY])
    twice.opset_import.add(domain="", version=99)
    refuse(twice, "the standard domain alone")


@pytest.mark.parametrize("version", [3, 7, 11, 99])
def test_file_formats_of_other_operator_sets_are_refused(version):
    refuse(make_model([IDENTITY], ir_version=version), rf"\(IR\) {version}; expected 8")


def test_too_many_nodes_and_edges_are_refused():
    nodes = [helper.make_node("Identity", ["x"], [f"n{k}"]) for k in range(5001)]
    refuse(make_model([*nodes, IDENTITY]), "at most 5000")
    wide = helper.make_node("Concat", ["x"] * 50_000, ["y"], axis=0)
    refuse(make_model([wide]), "inputs and outputs, at most 50000")


def test_external_and_sparse_tensors_are_refused():
    tensor = constant("c", np.zeros((1, 4)), np.float32)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    node = helper.make_node("Add", ["x", "c"], ["y"])
    refuse(make_model([node], [tensor]), "lies in another file")
    model = make_model([IDENTITY])
    model.graph.sparse_initializer.add()
    refuse(model, "sparse")
    held = helper.make_node("Constant", [], ["c"], value=tensor)
    refuse(make_model([held, node]), "lies in another file")
    tensor.data_location = TensorProto.DEFAULT  # the location alone is enough
    refuse(make_model([node], [tensor]), "lies in another file")


def test_nested_graphs_and_functions_are_refused():
    inner = make_model([IDENTITY]).graph
    refuse(
        make_model([helper.make_node("Identity", ["x"], ["y"], body=inner)]), "graph"
    )
    hidden = helper.make_node("Concat", ["x"], ["y"], axis=0)
    hidden.attribute[0].g.CopyFrom(inner)  # beside the number that its type announces
    refuse(make_model([hidden]), "a graph inside an operator")
    model = make_model([IDENTITY])
    model.functions.add(name="f", domain="")
    refuse(model, "function bodies")
    model = make_model([IDENTITY])
    model.training_info.add()
    refuse(model, "training graphs")


def test_parts_that_a_policy_does_not_need_are_refused():
    model = make_model([IDENTITY])
    model.graph.quantization_annotation.add(tensor_name="x")
    refuse(model, "GraphProto holds 'quantization_annotation'")
    node = helper.make_node("Concat", ["x"], ["y"], axis=0)
    node.attribute[0].ref_attr_name = "outer"
    refuse(make_model([node]), "AttributeProto holds 'ref_attr_name'")
    texts = TensorProto(name="c", data_type=TensorProto.STRING, dims=[1])
    texts.string_data.append(b"a")
    refuse(make_model([IDENTITY], [texts]), "TensorProto holds 'string_data'")


def test_attributes_that_an_operator_does_not_have_are_refused():
    node = helper.make_node("Transpose", ["x"], ["y"], perms=[0, 1])
    refuse(make_model([node]), r"'perms' of operator 'Transpose'.*did you mean 'perm'")


@pytest.mark.parametrize("count", [3, 3_000_000_000])
def test_a_split_into_other_pieces_than_it_has_is_refused_at_once(count):
    """The ONNX checker counts up to the number it is told."""
    started = time.perf_counter()
    node = helper.make_node("Split", ["x"], ["y", "z"], num_outputs=count, axis=1)
    refuse(make_model([node]), "'num_outputs' of operator 'Split' is")
    assert time.perf_counter() - started < 2.0


def test_attributes_too_large_or_too_long_are_refused():
    node = helper.make_node("Transpose", ["x"], ["y"], perm=list(range(17)))
    refuse(make_model([node]), "has 17 numbers, at most 16")
    node = helper.make_node("Concat", ["x"], ["y"], axis=-(2**40))
    refuse(make_model([node]), "is -1099511627776, at most 2147483647")


def test_an_operator_with_more_outputs_than_it_needs_is_refused():
    node = helper.make_node("LayerNormalization", ["x", "s"], ["y", "mean", "std"])
    model = make_model([node], [constant("s", np.ones(4), np.float32)])
    refuse(model, "'LayerNormalization' has 3 outputs, expected 1")


def test_another_signature_is_refused():
    model = make_model([IDENTITY])
    refuse(model, "first difference", signature([("z", (1, 4))], [("y", (1, 4))]))
    refuse(model, "first difference", signature([("x", (1, 5))], [("y", (1, 4))]))
    refuse(model, "the number", signature([("x", (1, 4))], []))
    refuse(make_model([IDENTITY], shape=["n", 4]), "fixed shape")
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    refuse(model, "not a float32 tensor")


def test_an_input_with_a_default_is_refused():
    model = make_model([IDENTITY], [constant("x", np.ones((1, 4)), np.float32)])
    refuse(model, "input 'x' has a default")
    refuse(model, "input 'x' has a default", signature([], [("y", (1, 4))]))


def test_broken_graphs_are_refused():
    refuse(
        make_model([helper.make_node("Identity", ["missing"], ["y"])]), "inconsistent"
    )
    refuse(make_model([IDENTITY, IDENTITY]), "inconsistent")
    refuse(make_model([helper.make_node("Add", ["x"], ["y"])]), "inconsistent")
    refuse(make_model([helper.make_node("Constant", [], ["y"])]), "Constant")


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
