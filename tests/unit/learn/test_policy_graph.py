# SPDX-License-Identifier: Apache-2.0
"""The exported graph computes the flow sampler of the trainer."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from qam_ros.contract.errors import ArtifactError
from qam_train import flow
from qam_train.networks import init_mlp, velocity_field
from qam_train.policy_graph import PolicySizes, build_policy_graph, split_first_layer

SIZES = PolicySizes(observation=7, action=2, chunk=3, flow_steps=4)


def make_net(*, layer_norm, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    widths = (SIZES.observation + SIZES.flat + 1, 24, 32, SIZES.flat)
    net = init_mlp("actor", widths, generator, layer_norm=layer_norm)
    for value in net.values():  # biases and norms away from 0 and 1
        value += 0.1 * torch.randn(value.shape, generator=generator)
    return {name: value.to(dtype) for name, value in net.items()}


def arrays(net):
    return {name.removeprefix("actor/"): value.numpy() for name, value in net.items()}


def make_inputs(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "observation": rng.normal(size=(1, SIZES.observation)).astype(np.float32) * 3,
        "noise": rng.normal(size=(1, SIZES.flat)).astype(np.float32),
        "observation_mean": rng.normal(size=SIZES.observation).astype(np.float32),
        "observation_std": rng.uniform(0.5, 2.0, SIZES.observation).astype(np.float32),
    }


def torch_chunk(net, inputs, dtype=torch.float32):
    values = {name: torch.tensor(value, dtype=dtype) for name, value in inputs.items()}
    s = (values["observation"] - values["observation_mean"]) / values["observation_std"]
    a = flow.integrate(
        velocity_field(net, "actor", s), values["noise"], SIZES.flow_steps
    )
    return a.clamp(-1, 1).reshape(1, SIZES.chunk, SIZES.action).numpy()


def run(model, feed):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)[0]


@pytest.mark.parametrize("layer_norm", [False, True])
def test_graph_equals_the_torch_sampler(layer_norm):
    net = make_net(layer_norm=layer_norm)
    weights = split_first_layer(arrays(net), SIZES)
    model = build_policy_graph(weights, SIZES)
    for seed in range(5):
        inputs = make_inputs(seed)
        # float32 rounding of four steps through nets of order one: a few 1e-7
        np.testing.assert_allclose(
            run(model, inputs | weights), torch_chunk(net, inputs), atol=2e-6
        )


def test_graph_clips_to_the_action_box():
    net = make_net(layer_norm=False)
    net["actor/2/bias"] = net["actor/2/bias"] + 10.0
    weights = split_first_layer(arrays(net), SIZES)
    chunk = run(build_policy_graph(weights, SIZES), make_inputs() | weights)
    assert chunk.shape == (1, SIZES.chunk, SIZES.action)
    np.testing.assert_array_equal(chunk, 1.0)


def test_one_graph_serves_other_weights():
    first, second = make_net(layer_norm=False), make_net(layer_norm=False)
    for value in second.values():
        value *= 0.5
    model = build_policy_graph(split_first_layer(arrays(first), SIZES), SIZES)
    weights = split_first_layer(arrays(second), SIZES)
    inputs = make_inputs()
    np.testing.assert_allclose(
        run(model, inputs | weights), torch_chunk(second, inputs), atol=2e-6
    )


def test_graph_is_static_and_holds_no_weights():
    net = make_net(layer_norm=False)
    weights = split_first_layer(arrays(net), SIZES)
    model = onnx.load_from_string(build_policy_graph(weights, SIZES))
    inputs = [value.name for value in model.graph.input]
    assert inputs == [
        "observation",
        "noise",
        "observation_mean",
        "observation_std",
        *weights,
    ]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert max(np.prod(tensor.dims) for tensor in model.graph.initializer) <= 3
    for value in (*model.graph.input, *model.graph.output):
        assert all(size.dim_value > 0 for size in value.type.tensor_type.shape.dim)


def test_wrong_sizes_are_named():
    net = arrays(make_net(layer_norm=False))
    with pytest.raises(
        ArtifactError, match=r"layer 0 .* expected weight \(15, 24\).* found \(14, 24\)"
    ):
        split_first_layer(
            net, PolicySizes(observation=8, action=2, chunk=3, flow_steps=4)
        )
    del net["1/bias"]
    with pytest.raises(ArtifactError, match="layer 1"):
        split_first_layer(net, SIZES)
