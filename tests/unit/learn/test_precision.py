# SPDX-License-Identifier: Apache-2.0
"""Products in lower precision: what the graph says, what it costs, what a CPU makes of it."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from qam_ros.contract.artifact import Artifact, read_artifact
from qam_ros.contract.errors import ArtifactError
from qam_ros.runtime.precision import LOWER, float32_products, rounded_products
from qam_ros.runtime.sampler import OnnxSampler, verify
from qam_train import export
from qam_train.deployed import build_policy, choosing
from qam_train.export import Provenance, export_artifact
from qam_train.rounded import largest_rounded_error

PROVENANCE = Provenance(run_id="run-1", dataset_hash="ab" * 32)
LOW = pytest.mark.parametrize("precision", LOWER)


@pytest.fixture
def exported(agent, interface, dataset, tmp_path):
    """Exports the agent in a precision: what was written, and the artifact read back."""

    def write(precision):
        path = tmp_path / f"{precision}.zip"
        result = export_artifact(
            agent, interface, dataset, path, PROVENANCE, precision=precision
        )
        return result, read_artifact(path)

    return write


def types_of(data):
    """Element type of every tensor, and the nodes."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data))
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    return {v.name: v.type.tensor_type.elem_type for v in values}, model.graph.node


@LOW
def test_only_products_are_in_lower_precision(precision, agent):
    types, nodes = types_of(build_policy(agent, precision).onnx)
    lower = [node for node in nodes if types[node.output[0]] == LOWER[precision]]
    assert {node.op_type for node in lower} == {"Cast", "MatMul"}
    products = [node for node in nodes if node.op_type in ("Gemm", "MatMul")]
    assert products
    assert all(types[x] == LOWER[precision] for n in products for x in n.input)
    ends = [n for n in types if n == "chunk" or "/" in n or n.startswith("observation")]
    assert {types[name] for name in ends} == {TensorProto.FLOAT}
    # every weight is cast once, not once per step
    casts = [n.input[0] for n in nodes if n.op_type == "Cast" and "/" in n.input[0]]
    assert len(casts) == len(set(casts))


@LOW
def test_critics_stay_in_float32(precision, agent):
    plain = build_policy(choosing(agent, 4)).weights
    types, nodes = types_of(build_policy(choosing(agent, 4), precision).onnx)
    for node in nodes:
        critics = [x for x in node.input if x.startswith("critic/")]
        assert all(x in plain and types[node.output[0]] == 1 for x in critics)


@LOW
def test_exported_error_is_bounded_and_recorded(precision, exported):
    result, artifact = exported(precision)
    error, manifest = result.rounded_error, artifact.manifest
    assert 1e-5 < error < export.BOUNDS[precision]
    assert manifest.evaluation["precision"] == precision
    assert manifest.evaluation["precision_error"] == error
    expected = min(export.ROUNDING_FACTOR * error, export.BOUNDS[precision])
    assert manifest.tolerance == pytest.approx(expected)
    # a CPU multiplies in float32
    assert verify(OnnxSampler(artifact), artifact) <= export.TOLERANCE


def test_float16_is_closer_than_bfloat16_and_both_than_nothing(exported):
    errors = [exported(precision)[0].rounded_error for precision in LOWER]
    assert 4 * errors[0] < errors[1]  # three more bits of mantissa
    float32, artifact = exported("float32")
    assert float32.rounded_error == float32.largest_error <= export.TOLERANCE
    assert artifact.manifest.tolerance == export.TOLERANCE
    assert largest_rounded_error(artifact) <= export.TOLERANCE


def test_error_beyond_the_bound_is_refused(exported, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "BOUNDS", {"bfloat16": 1e-6})
    with pytest.raises(
        ArtifactError, match=r"bfloat16 products change .* at most 1e-06"
    ):
        exported("bfloat16")
    assert not (tmp_path / "bfloat16.zip").exists()


def product_graph(kind):
    """Y = X W with both factors and the result in lower precision."""
    nodes = [
        helper.make_node("Cast", ["x"], ["xl"], to=kind),
        helper.make_node("Cast", ["w"], ["wl"], to=kind),
        helper.make_node("MatMul", ["xl", "wl"], ["yl"], name="product"),
        helper.make_node("Cast", ["yl"], ["y"], to=TensorProto.FLOAT),
    ]
    shapes = {"x": [1, 40], "w": [40, 8], "y": [1, 8]}
    x, w, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    graph = helper.make_graph(nodes, "g", [x, w], [y])
    imports = [helper.make_opsetid("", 20)]
    return helper.make_model(
        graph, opset_imports=imports, ir_version=9
    ).SerializeToString()


def run(data, feed):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    return onnxruntime.InferenceSession(data, options).run(None, feed)[0]


def rounded(x, precision):
    """To the nearest number with 11 or 8 bits of mantissa, ties to even."""
    if precision == "float16":
        return x.astype(np.float16).astype(np.float32)
    bits = x.astype(np.float32).view(np.uint32)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    return (bits & 0xFFFF0000).astype(np.uint32).view(np.float32)


@LOW
def test_rounded_products_round_as_the_format_says(precision):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(1, 40)).astype(np.float32)
    w = generator.normal(size=(40, 8)).astype(np.float32)
    data = product_graph(LOWER[precision])
    found = run(rounded_products(data), {"x": x, "w": w})
    exact = rounded(x, precision) @ rounded(w, precision)
    # the order of the sum may carry a result over to the neighbouring number
    step = 2.0 ** (-10 if precision == "float16" else -7)
    np.testing.assert_allclose(found, rounded(exact, precision), rtol=step)
    np.testing.assert_array_equal(found, rounded(found, precision))
    full = run(float32_products(data), {"x": x, "w": w})
    np.testing.assert_allclose(full, x @ w, rtol=1e-5, atol=1e-6)


def test_float32_graph_is_left_as_it_is(agent):
    data = build_policy(agent).onnx
    assert float32_products(data) is data


@LOW
def test_graph_on_the_cpu_is_the_one_of_float32(precision, exported):
    low, full = exported(precision)[1], exported("float32")[1]
    golden = full.golden
    same = Artifact(full.manifest, low.onnx_bytes, full.weights, golden)
    np.testing.assert_allclose(
        OnnxSampler(same).sample_all(golden.observations, golden.noise),
        OnnxSampler(full).sample_all(golden.observations, golden.noise),
        atol=2e-6,  # a product and a sum against one Gemm
    )
