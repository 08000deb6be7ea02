# SPDX-License-Identifier: Apache-2.0
"""Graphs compute what the trainer's functions compute; every method is in test_heads.py."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from qam_ros.contract.errors import ArtifactError
from qam_train import critic, flow, networks
from qam_train.deployment import BestOf, FlowPolicy, GaussianActor, OneStep
from qam_train.graphs import mlp
from qam_train.graphs.builder import IR_VERSION, OPSET, Builder, PolicySizes
from qam_train.graphs.critic import Critic, choose
from qam_train.graphs.policy import build_graph
from qam_train.networks import init_head, init_mlp, velocity_field

SIZES = PolicySizes(observation=7, action=2, chunk=3)
STEPS = 4
FLOW = FlowPolicy("fast", STEPS)


def perturbed(net, seed=3):
    """Biases and norms away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    return {
        n: v + 0.1 * torch.randn(v.shape, generator=generator) for n, v in net.items()
    }


def make_net(name, sizes, *, layer_norm=False, members=None):
    generator = torch.Generator().manual_seed(3)
    return perturbed(
        init_mlp(name, sizes, generator, layer_norm=layer_norm, members=members)
    )


def flow_net(name="fast", *, layer_norm=False):
    sizes = (SIZES.observation + SIZES.flat + 1, 24, 32, SIZES.flat)
    return make_net(name, sizes, layer_norm=layer_norm)


def arrays(net, inputs=None):
    inputs = make_inputs() if inputs is None else inputs
    statistics = {n: v for n, v in inputs.items() if n.startswith("observation_")}
    return statistics | {name: value.numpy() for name, value in net.items()}


def make_inputs(seed=0, noise=SIZES.flat):
    rng = np.random.default_rng(seed)
    return {
        "observation": rng.normal(size=(1, SIZES.observation)).astype(np.float32) * 3,
        "noise": rng.normal(size=(1, noise)).astype(np.float32),
        "observation_mean": rng.normal(size=SIZES.observation).astype(np.float32),
        "observation_std": rng.uniform(0.5, 2.0, SIZES.observation).astype(np.float32),
    }


def normalised(inputs):
    values = {name: torch.tensor(value) for name, value in inputs.items()}
    return (values["observation"] - values["observation_mean"]) / values[
        "observation_std"
    ]


def torch_chunk(net, inputs, name="fast"):
    field = velocity_field(net, name, normalised(inputs))
    a = flow.sample(field, torch.tensor(inputs["noise"]), STEPS)
    return a.reshape(1, SIZES.chunk, SIZES.action).numpy()


def run(model, feed):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)[0]


def run_policy(policy, inputs):
    return run(policy.onnx, inputs | policy.weights)


def run_part(build, output, shape, **feed):
    """Run the nodes of a builder up to one tensor."""
    given = feed | build.weights
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, v.shape)
        for n, v in given.items()
    ]
    wanted = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
    constants = list(build._constants.values())
    graph = helper.make_graph(build._nodes, "part", inputs, [wanted], constants)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    return run(model.SerializeToString(), given)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_graph_equals_the_torch_sampler(layer_norm):
    net = flow_net(layer_norm=layer_norm)
    for seed in range(5):
        inputs = make_inputs(seed)
        policy = build_graph(FLOW, arrays(net, inputs), SIZES)
        # float32 rounding of four steps through nets of order one: a few 1e-7
        np.testing.assert_allclose(
            run_policy(policy, inputs), torch_chunk(net, inputs), atol=2e-6
        )


def test_residual_flow_adds_its_base():
    nets = flow_net() | flow_net("slow", layer_norm=True)
    policy = build_graph(FlowPolicy("fast", STEPS, "slow"), arrays(nets), SIZES)
    inputs = make_inputs()
    s = normalised(inputs)
    both = flow.added(velocity_field(nets, "fast", s), velocity_field(nets, "slow", s))
    expected = flow.sample(both, torch.tensor(inputs["noise"]), STEPS)
    np.testing.assert_allclose(
        run_policy(policy, inputs).reshape(1, -1), expected, atol=2e-6
    )


def test_graph_clips_to_the_action_box():
    net = flow_net()
    net["fast/2/bias"] = net["fast/2/bias"] + 10.0
    chunk = run_policy(build_graph(FLOW, arrays(net), SIZES), make_inputs())
    assert chunk.shape == (1, SIZES.chunk, SIZES.action)
    np.testing.assert_array_equal(chunk, 1.0)


def test_one_graph_serves_other_weights_and_nets_of_other_names():
    first, second = flow_net(), flow_net("slow")
    for value in second.values():
        value *= 0.5
    policy = build_graph(FLOW, arrays(first), SIZES)
    other = build_graph(FlowPolicy("slow", STEPS), arrays(second), SIZES)
    assert policy.onnx == other.onnx
    inputs = make_inputs()
    np.testing.assert_allclose(
        run(policy.onnx, inputs | other.weights),
        torch_chunk(second, inputs, "slow"),
        atol=2e-6,
    )


def test_graph_is_static_and_holds_no_weights():
    policy = build_graph(FLOW, arrays(flow_net()), SIZES)
    model = onnx.load_from_string(policy.onnx)
    inputs = [value.name for value in model.graph.input]
    assert inputs == ["observation", "noise", *policy.weights]
    assert inputs[2:6] == [
        "observation_mean",
        "observation_std",
        "0/weight_observation",
        "0/weight_action",
    ]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert max(np.prod(tensor.dims) for tensor in model.graph.initializer) <= STEPS
    for value in (*model.graph.input, *model.graph.output):
        assert all(size.dim_value > 0 for size in value.type.tensor_type.shape.dim)
    assert [spec.name for spec in policy.signature.inputs] == inputs


def test_wrong_sizes_are_named():
    net = arrays(flow_net())
    with pytest.raises(
        ArtifactError,
        match=r"layer 0 of net 'fast': expected weight \(15, 24\).* found \(14, 24\)",
    ):
        build_graph(FLOW, net, PolicySizes(observation=8, action=2, chunk=3))
    del net["fast/1/bias"]
    with pytest.raises(ArtifactError, match="layer 1"):
        build_graph(FLOW, net, SIZES)
    with pytest.raises(ArtifactError, match="expected a net 'slow'"):
        build_graph(FlowPolicy("slow", STEPS), net, SIZES)
    short = make_net("one", (SIZES.observation + SIZES.flat, 24, SIZES.flat - 1))
    with pytest.raises(ArtifactError, match=r"an output of 6 numbers, found 5"):
        build_graph(OneStep("one"), arrays(short), SIZES)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("timed", [False, True])
def test_critic_and_its_gradient_are_those_of_automatic_differentiation(
    layer_norm, timed
):
    rows, members = 4, 3
    sizes = (SIZES.observation + SIZES.flat + timed, 24, 16, 1)
    net = make_net("critic", sizes, layer_norm=layer_norm, members=members)
    build = Builder(arrays(net), SIZES)
    q = Critic(build, "critic", "s", timed=timed)
    values, gradient = q.values("a", 0.25), q.gradient("a", 0.25)
    rng = np.random.default_rng(0)
    s = rng.normal(size=(1, SIZES.observation)).astype(np.float32)
    a = rng.normal(size=(rows, SIZES.flat)).astype(np.float32)

    def ensemble(a):
        time = [a.new_full((rows, 1), 0.25)] if timed else []
        return critic.ensemble(
            net, "critic", torch.tensor(s).expand(rows, -1), torch.cat([a, *time], -1)
        )

    expected = critic.action_gradient(ensemble, torch.tensor(a), float("inf"))
    # float32 rounding of gradients of order one, through a norm
    np.testing.assert_allclose(
        run_part(build, gradient, (rows, SIZES.flat), s=s, a=a), expected, atol=2e-6
    )
    np.testing.assert_allclose(
        run_part(build, values, (members, rows, 1), s=s, a=a)[..., 0],
        ensemble(torch.tensor(a)),
        atol=2e-6,
    )


@pytest.mark.parametrize("score", ["mean", "min"])
def test_choice_is_the_candidate_with_the_highest_score(score):
    sizes = (SIZES.observation + SIZES.flat, 16, 1)
    net = make_net("critic", sizes, members=3)
    rng = np.random.default_rng(0)
    s = rng.normal(size=(1, SIZES.observation)).astype(np.float32)
    chosen = set()
    for _ in range(8):
        a = rng.normal(size=(5, SIZES.flat)).astype(np.float32)
        build = Builder(arrays(net), SIZES)
        q = Critic(build, "critic", "s", timed=False)
        name = choose(build, q, "a", 5, score, 0.0)
        values = critic.ensemble(
            net, "critic", torch.tensor(s).expand(5, -1), torch.tensor(a)
        )
        scores = values.mean(0) if score == "mean" else values.amin(0)
        best = int(scores.argmax())
        chosen.add(best)
        found = run_part(build, name, (1, SIZES.flat), s=s, a=a)
        np.testing.assert_array_equal(found[0], a[best])
    assert len(chosen) > 1


def test_mish_is_that_of_torch_at_every_size():
    build = Builder({}, SIZES)
    x = np.linspace(-120.0, 120.0, 4001, dtype=np.float32)[None]
    found = run_part(build, mlp.mish(build, "x"), x.shape, x=x)
    expected = networks.mish(torch.tensor(x).double()).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_standard_deviations_are_bounded_as_in_training():
    generator = torch.Generator().manual_seed(0)
    outputs = {"mean": SIZES.flat, "log_std": SIZES.flat}
    net = init_head("actor", SIZES.observation, (16,), outputs, generator)
    net["actor/mean/0/weight"] *= 0.0
    net["actor/log_std/0/bias"] += torch.tensor([9.0, 9.0, 9.0, -50.0, -50.0, -50.0])
    policy = build_graph(GaussianActor("actor"), arrays(net), SIZES)
    inputs = make_inputs() | {"noise": np.full((1, SIZES.flat), 0.01, np.float32)}
    chunk = run_policy(policy, inputs).ravel()
    np.testing.assert_allclose(chunk[:3], np.tanh(0.01 * np.exp(2.0)), rtol=1e-5)
    np.testing.assert_allclose(chunk[3:], 0.01 * np.exp(-20.0), rtol=1e-5)


def test_candidates_share_the_observation_products():
    net = flow_net() | make_net(
        "critic", (SIZES.observation + SIZES.flat, 16, 1), members=2
    )
    few, many = (
        onnx.load_from_string(
            build_graph(BestOf(FLOW, n, "critic"), arrays(net), SIZES).onnx
        )
        for n in (2, 32)
    )
    assert len(few.graph.node) == len(many.graph.node)
