# SPDX-License-Identifier: Apache-2.0
import time
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qam_ros.contract.artifact_manifest import GraphSignature, TensorSpec
from qam_ros.contract.errors import ArtifactError
from qam_ros.runtime.onnx_check import check_onnx
from qam_ros.runtime.sampler import OnnxSampler, WeightLayout, verify


def numpy_sampler(weights, observation, noise, steps=4):
    """The same flow in float64, layer by layer."""

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    w = {name: value.astype(np.float64) for name, value in weights.items()}
    s = (observation - w["observation_mean"]) / w["observation_std"]
    a = noise.astype(np.float64)
    for k in range(steps):
        x = s @ w["0/weight_observation"] + a @ w["0/weight_action"] + w["0/bias"]
        x = gelu(x + k / steps * w["0/weight_time"][0])
        a = a + (x @ w["1/weight"] + w["1/bias"]) / steps
    return np.clip(a, -1, 1)


def test_sampler_integrates_the_flow(artifact):
    sampler = OnnxSampler(artifact)
    golden = artifact.golden
    for observation, noise in zip(golden.observations, golden.noise, strict=True):
        expected = numpy_sampler(artifact.weights, observation, noise).reshape(3, 5)
        # float32 rounding through four steps
        np.testing.assert_allclose(
            sampler.sample(observation, noise), expected, atol=2e-6
        )


def test_sampling_returns_a_new_array_each_time(artifact):
    sampler, golden = OnnxSampler(artifact), artifact.golden
    first = sampler.sample(golden.observations[0], golden.noise[0])
    kept = first.copy()
    sampler.sample(golden.observations[1], golden.noise[1])
    np.testing.assert_array_equal(first, kept)


def test_loading_a_flat_buffer_equals_setting_the_tensors(artifact):
    golden = artifact.golden
    other = {name: value * np.float32(1.5) for name, value in artifact.weights.items()}
    one, two = OnnxSampler(artifact), OnnxSampler(artifact)
    one.set_weights(other)
    two.load(two.layout.pack(other))
    pair = golden.observations[0], golden.noise[0]
    assert one.sample(*pair).tobytes() == two.sample(*pair).tobytes()
    assert one.sample(*pair).tobytes() != OnnxSampler(artifact).sample(*pair).tobytes()


def test_layout_gives_every_tensor_back_on_a_cache_line():
    layout = WeightLayout({"a": (3, 5), "b": (7,), "c": (2, 2)})
    weights = {n: np.random.default_rng(0).random(s) for n, s in layout.shapes.items()}
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    flat = layout.pack(weights)
    for name, view in layout.views(flat).items():
        np.testing.assert_array_equal(view, weights[name])
        assert (view.ctypes.data - flat.ctypes.data) % 64 == 0


def test_verification_accepts_the_artifact_and_names_the_error_otherwise(artifact):
    assert verify(OnnxSampler(artifact), artifact) <= artifact.manifest.tolerance
    chunks = artifact.golden.chunks + np.float32(1e-3)
    wrong = replace(artifact, golden=replace(artifact.golden, chunks=chunks))
    with pytest.raises(ArtifactError, match=r"golden chunks come out 1\.00e-03 off"):
        verify(OnnxSampler(artifact), wrong)
    nan = np.full_like(chunks, np.nan)
    wrong = replace(artifact, golden=replace(artifact.golden, chunks=nan))
    with pytest.raises(ArtifactError):
        verify(OnnxSampler(artifact), wrong)


def test_swapping_weights_of_the_papers_size_takes_less_than_a_session(helpers):
    from qam_ros.contract.interface import load_interface

    artifact = helpers.artifact(load_interface("ur5e_2f85"), chunk=5, width=512)
    started = time.perf_counter()
    sampler = OnnxSampler(artifact)
    session_s = time.perf_counter() - started
    flat = sampler.layout.pack(artifact.weights)
    started = time.perf_counter()
    for _ in range(20):
        sampler.load(flat)
    assert (time.perf_counter() - started) / 20 < session_s


def signature(inputs, outputs):
    return GraphSignature(
        tuple(TensorSpec(n, tuple(s)) for n, s in inputs),
        tuple(TensorSpec(n, tuple(s)) for n, s in outputs),
    )


def make_model(nodes, constants=(), *, opset=20, domain="", **parts):
    x = helper.make_tensor_value_info(
        "x", TensorProto.FLOAT, parts.get("shape", [1, 4])
    )
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph(nodes, "g", [x], [y], list(constants))
    imports = [helper.make_opsetid(domain, opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


EXPECTED = signature([("x", (1, 4))], [("y", (1, 4))])
IDENTITY = helper.make_node("Identity", ["x"], ["y"])


def refuse(model, words, graph=EXPECTED):
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(ArtifactError, match=words):
        check_onnx(data, graph)


def test_a_graph_that_keeps_the_format_is_accepted():
    check_onnx(make_model([IDENTITY]).SerializeToString(), EXPECTED)


def test_bytes_that_are_no_model_are_refused():
    refuse(b"\xff\xff\xff\xff", "not an ONNX model")
    refuse(bytes(65 * 1024 * 1024), "at most 67108864")


def test_operators_off_the_list_are_refused_with_the_nearest():
    refuse(make_model([helper.make_node("Gelus", ["x"], ["y"])]), "did you mean 'Gelu'")
    refuse(
        make_model([helper.make_node("ConstantOfShape", ["x"], ["y"])]),
        "ConstantOfShape",
    )
    refuse(
        make_model([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")]),
        "com.microsoft",
    )


def test_old_new_and_custom_operator_sets_are_refused():
    refuse(make_model([IDENTITY], opset=17), "version 18 to 21")
    refuse(make_model([IDENTITY], opset=23), "version 18 to 21")
    refuse(make_model([IDENTITY], domain="com.microsoft", opset=1), "operator sets")


def test_too_many_nodes_are_refused():
    nodes = [helper.make_node("Identity", ["x"], [f"n{k}"]) for k in range(5001)]
    refuse(make_model([*nodes, IDENTITY]), "at most 5000")


def test_external_and_sparse_tensors_are_refused():
    tensor = onnx.numpy_helper.from_array(np.zeros((1, 4), np.float32), "c")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    node = helper.make_node("Add", ["x", "c"], ["y"])
    refuse(make_model([node], [tensor]), "lies in another file")
    model = make_model([IDENTITY])
    model.graph.sparse_initializer.add()
    refuse(model, "sparse")
    held = helper.make_node("Constant", [], ["c"], value=tensor)
    refuse(make_model([held, node]), "lies in another file")


def test_nested_graphs_and_functions_are_refused():
    inner = make_model([IDENTITY]).graph
    refuse(
        make_model([helper.make_node("Identity", ["x"], ["y"], body=inner)]), "graph"
    )
    model = make_model([IDENTITY])
    model.functions.add(name="f", domain="")
    refuse(model, "function bodies")


def test_another_signature_is_refused():
    model = make_model([IDENTITY])
    refuse(model, "first difference", signature([("z", (1, 4))], [("y", (1, 4))]))
    refuse(model, "the number", signature([("x", (1, 4))], []))
    refuse(make_model([IDENTITY], shape=["n", 4]), "fixed shape")


def test_broken_graphs_and_shapes_are_refused():
    refuse(
        make_model([helper.make_node("Identity", ["missing"], ["y"])]), "inconsistent"
    )
    big = onnx.numpy_helper.from_array(np.array([2**23, 4], np.int64), "size")
    nodes = [
        helper.make_node("Expand", ["x", "size"], ["e"]),
        helper.make_node("ReduceMean", ["e"], ["y"], keepdims=1),
    ]
    model = make_model(nodes, [big])
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    refuse(model, "too large", signature([("x", (1, 4))], [("y", (1, 1))]))


@pytest.mark.parametrize("source", ["x", "copy"])
def test_only_a_transposed_input_may_be_large(source):
    """A transposed weight is as large as the weight; a transposed intermediate is not bounded so."""
    shape = [1024, 4096]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy")
    y.type.tensor_type.shape.dim[0].dim_value = 1
    y.type.tensor_type.shape.dim[1].dim_value = 1
    axes = onnx.numpy_helper.from_array(np.array([0, 1], np.int64), "axes")
    nodes = [
        helper.make_node("Identity", ["x"], ["copy"]),
        helper.make_node("Transpose", [source], ["t"]),
        helper.make_node("ReduceMean", ["t", "axes"], ["y"], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes if source == "copy" else nodes[1:], "g", [x], [y], [axes]
    )
    imports = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    expected = signature([("x", shape)], [("y", (1, 1))])
    if source == "x":
        check_onnx(model.SerializeToString(), expected)
    else:
        refuse(model, "too large", expected)


def test_a_graph_that_onnx_runtime_refuses_is_named(artifact, monkeypatch):
    import onnxruntime

    def fail(*_args, **_settings):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(
        ArtifactError, match="ONNX Runtime refuses the graph: no kernel"
    ):
        OnnxSampler(artifact)
