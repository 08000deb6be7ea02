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
