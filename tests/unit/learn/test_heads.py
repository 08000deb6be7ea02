# SPDX-License-Identifier: Apache-2.0
"""Every method becomes an artifact that the robot's own software runs like the agent."""

import dataclasses

import numpy as np
import pytest
import torch

from qam_ros.contract.artifact import read_artifact
from qam_ros.contract.artifact_manifest import BEST_OF, HEADS
from qam_ros.contract.errors import ArtifactError
from qam_ros.contract.weights import encode_weights
from qam_ros.runtime.engines.tensorrt import find_library
from qam_ros.runtime.sampler import OnnxSampler, verify
from qam_ros.runtime.update_parts import GOLDEN_NAME, split_update
from qam_ros.runtime.updates import PolicyUpdates
from qam_train.agents.common import Normaliser
from qam_train.agents.registry import METHODS
from qam_train.config import FlowConfig, NetworkConfig
from qam_train.deployed import (
    behaviour_of,
    build_policy,
    choosing,
    in_double,
    like_artifact,
    policy_chunks,
    policy_weights,
    rounding,
)
from qam_train.deployment import BestOf
from qam_train.export import MAX_TOLERANCE, TOLERANCE, Provenance, export_artifact
from qam_train.graphs.policy import DRAWS
from qam_train.networks import net
from qam_train.probes import clearest_noise, draw_probes

PROVENANCE = Provenance(run_id="run-1", dataset_hash="ab" * 32)
SMALL = {
    "chunk": 3,
    "critics": 3,
    "batch_size": 16,
    "flow_steps": 4,
    "diffusion_steps": 4,
    "time_code": 8,
    "noise": 0.2,
    "actor": NetworkConfig((24, 20), layer_norm=True),
    "critic": NetworkConfig((24, 16), layer_norm=True),
}
ALONE = sorted(METHODS)
CHOOSING = sorted(
    name
    for name, method in METHODS.items()
    if issubclass(method.config, FlowConfig) and name != "flow_bc"
)
CASES = [
    *((name, 1 if name in CHOOSING else None) for name in ALONE),
    *((name, 5) for name in CHOOSING),
]
PRECISIONS = ("float32", "float16", "bfloat16")
CLONING = sorted(name for name in METHODS if METHODS[name].agent.cloned_net)


def make_agent(name, best_of=None, **changes):
    """Agent of a method away from its start: biases, norms and last layers too."""
    kind = METHODS[name].config
    known = {field.name for field in dataclasses.fields(kind)}
    numbers = {k: v for k, v in (SMALL | changes).items() if k in known}
    numbers |= {} if best_of is None else {"best_of": best_of}
    generator = torch.Generator().manual_seed(0)
    normaliser = Normaliser(
        5 + torch.randn(2, generator=generator), 2 + torch.rand(2, generator=generator)
    )
    agent = METHODS[name].agent.init(kind(**numbers), 2, 2, generator, normaliser)
    shift(agent, 0.1, seed=1)
    return agent


@torch.no_grad()
def shift(agent, amount, seed):
    generator = torch.Generator().manual_seed(seed)
    for value in agent.parameters.values():
        value.add_(amount * torch.randn(value.shape, generator=generator))


def settle(agent, data):
    """Train a little: QSM divides by sqrt(alpha_hat_k) in every step, which a trained predictor cancels.

    Until then rounding grows a hundredfold, and the artifact gets a wider tolerance.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        batch = agent.draw_batch(data, generator)
        agent.update(batch, agent.draw_noise(16, generator), 3e-3)


@pytest.fixture
def exported(interface, dataset, tmp_path):
    """Exports an agent and reads the artifact back."""

    def export(agent):
        path = tmp_path / f"{agent.algorithm}.zip"
        export_artifact(agent, interface, dataset, path, PROVENANCE)
        return read_artifact(path)

    return export


@pytest.mark.parametrize(("name", "best_of"), CASES)
def test_robot_acts_like_the_agent_and_swaps_its_weights(
    name, best_of, exported, offline
):
    agent = make_agent(name, best_of)
    if name == "qsm":
        settle(agent, offline)
    artifact = exported(agent)
    manifest, golden = artifact.manifest, artifact.golden
    assert (manifest.algorithm, manifest.head) == (name, agent.deployment().head)
    assert manifest.graph.noise_width == (best_of or 1) * agent.noise_width
    assert (np.abs(golden.chunks) < 1).mean() > 0.1  # the box does not hide the rest
    assert golden.chunks.std(0).min() > 0.01
    sampler = OnnxSampler(artifact)
    assert manifest.tolerance == TOLERANCE
    assert verify(sampler, artifact) <= TOLERANCE

    shift(agent, 0.01, seed=2)
    chunks = policy_chunks(agent, golden.observations, golden.noise)
    blob = encode_weights({**policy_weights(agent), GOLDEN_NAME: chunks})
    updates = PolicyUpdates(artifact, OnnxSampler(artifact), robot="base", budget=2.0)
    parts = split_update(blob, run_id="online", version=2, parent_version=1)
    offers = [updates.receive(part) for part in parts]
    candidate = updates.judge(offers[-1])
    assert candidate.version == 2, candidate
    sampler.load(candidate.flat)
    swapped = sampler.sample_all(golden.observations, golden.noise)
    np.testing.assert_allclose(swapped, chunks, atol=TOLERANCE)
    assert np.abs(swapped - golden.chunks).max() > 1e-3


def test_every_head_is_in_the_format_and_every_one_is_used():
    heads = {kind.head for kind in DRAWS}
    assert heads == set(HEADS)
    used = {make_agent(n, 1 if n in CHOOSING else None).deployment() for n in ALONE}
    assert {plan.head for plan in used} == heads
    assert make_agent("ifql").deployment().head == f"{BEST_OF}flow"
    assert make_agent("ifql").deployment().candidates == 32


@pytest.mark.parametrize("name", CLONING)
def test_behaviour_flow_is_exported_alone(name, exported):
    agent = make_agent(name)
    behaviour = behaviour_of(agent)
    artifact = exported(behaviour)
    assert (artifact.manifest.algorithm, artifact.manifest.head) == ("flow_bc", "flow")
    clone = net(behaviour.parameters, "slow")
    source = net(agent.parameters, agent.cloned_net)
    assert [v.data_ptr() for v in clone.values()] == [
        v.data_ptr() for v in source.values()
    ]


@pytest.mark.parametrize("name", ["fawac", "fbrac", "rql", "rebrac"])
def test_method_without_a_behaviour_flow_says_so(name):
    with pytest.raises(
        ArtifactError, match=f"'{name}' has no behaviour flow of its own"
    ):
        behaviour_of(make_agent(name))


@pytest.mark.parametrize("name", CHOOSING)
def test_any_flow_method_is_exported_as_best_of_many_by_some_critics(name, exported):
    agent = make_agent(name)
    chooser = choosing(agent, 4, 2)
    plan = chooser.deployment()
    assert isinstance(plan, BestOf)
    assert plan.candidates == 4
    assert len(chooser.constant[f"{plan.critic}/0/weight"]) == 2
    artifact = exported(chooser)
    shapes = artifact.manifest.graph.weight_shapes
    assert shapes["critic/0/weight_observation"][0] == 2
    assert artifact.manifest.graph.noise_width == 4 * agent.noise_width

    again = like_artifact(agent, artifact.manifest.graph)
    weights = policy_weights(again)
    assert {n: v.shape for n, v in weights.items()} == shapes
    for key, value in weights.items():
        np.testing.assert_array_equal(value, artifact.weights[key])
    chunks = policy_chunks(again, artifact.golden.observations, artifact.golden.noise)
    np.testing.assert_array_equal(chunks, artifact.golden.chunks)


def test_agent_that_fits_its_artifact_is_taken_as_it_is(exported):
    for name in ("qam", "ifql", "cgql"):
        agent = make_agent(name, 2)
        assert like_artifact(agent, exported(agent).manifest.graph) is agent


def test_fewer_critics_see_later_training():
    agent = make_agent("qam")
    chooser = choosing(agent, 3, 1)
    shift(agent, 0.1, seed=5)
    for key, value in policy_weights(choosing(agent, 3, 1)).items():
        np.testing.assert_array_equal(policy_weights(chooser)[key], value)


def test_choices_that_cannot_be_are_refused():
    with pytest.raises(ArtifactError, match="'rlpd' acts with one candidate"):
        choosing(make_agent("rlpd"), 4)
    with pytest.raises(ArtifactError, match="'flow_bc' has no critic to choose with"):
        choosing(make_agent("flow_bc"), 4)
    with pytest.raises(
        ArtifactError, match="4 critics asked for, its policy asks 3; give --critics 1"
    ):
        choosing(make_agent("qam"), 4, 4)
    with pytest.raises(ArtifactError, match="2 critics asked for, its policy asks 0"):
        choosing(make_agent("qam"), 1, 2)


def test_artifact_of_another_method_is_named(exported):
    edited = exported(make_agent("qam_edit")).manifest.graph
    five = exported(make_agent("qam", 5)).manifest.graph
    with pytest.raises(ArtifactError, match=r"takes 30 numbers .* multiple of 12"):
        like_artifact(make_agent("qam_edit"), five)
    noise = np.zeros((3, edited.noise_width), np.float32)
    with pytest.raises(
        ArtifactError, match=r"method 'qam' \(flow\): takes 6 numbers .* given are 12"
    ):
        policy_chunks(make_agent("qam"), np.zeros((3, 2), np.float32), noise)


def test_probes_of_a_choosing_policy_have_a_clear_choice(dataset):
    agent = make_agent("ifql", 8)
    observations, noise = draw_probes(dataset, 8 * agent.noise_width, seed=0)
    clear = clearest_noise(agent, observations, noise, seed=0)

    def leads(noise):
        s = agent.normaliser(torch.as_tensor(observations))
        z = torch.as_tensor(noise).unflatten(-1, (8, -1)).transpose(0, 1)
        first, second = agent.rank(s, agent.policy(s, z)).topk(2, 0).values
        return (first - second).detach().numpy()

    assert (leads(clear) >= leads(noise)).all()
    assert leads(clear).min() > leads(noise).min()
    plain = make_agent("qam")
    assert clearest_noise(plain, observations, noise, seed=0) is noise


def test_noise_of_a_deterministic_policy_without_noise_is_read_and_changes_nothing(
    exported,
):
    artifact = exported(make_agent("rebrac", noise=0.0))
    golden, sampler = artifact.golden, OnnxSampler(artifact)
    assert artifact.manifest.graph.noise_width == 6
    np.testing.assert_array_equal(
        sampler.sample_all(golden.observations, golden.noise),
        sampler.sample_all(golden.observations, -golden.noise),
    )


@pytest.mark.parametrize("name", ["qam_edit", "cgql", "dsrl", "dac"])
def test_graph_is_as_close_to_double_precision_as_torch(name, exported):
    agent = make_agent(name)
    artifact = exported(agent)
    golden, sampler = artifact.golden, OnnxSampler(artifact)
    exact = policy_chunks(in_double(agent), golden.observations, golden.noise)
    own = np.abs(golden.chunks - exact).max()
    found = sampler.sample_all(golden.observations, golden.noise)
    error = np.abs(found - exact).max()
    assert 0 < own < TOLERANCE
    assert error < 5 * own


def test_policy_that_magnifies_rounding_is_exported_with_its_own_tolerance(exported):
    agent = make_agent("qsm", diffusion_steps=10)
    artifact = exported(agent)
    golden, tolerance = artifact.golden, artifact.manifest.tolerance
    own = rounding(agent, golden.observations, golden.noise)
    assert own > TOLERANCE
    assert tolerance == min(4 * own, MAX_TOLERANCE)
    assert verify(OnnxSampler(artifact), artifact) <= tolerance


@pytest.mark.trt
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "best_of"), CASES)
def test_tensorrt_parses_and_builds_every_head(name, best_of, precision):
    """Needs no GPU with TensorRT-RTX, which builds ahead of time."""
    policy = build_policy(make_agent(name, best_of, noise=0.0), precision)
    assert len(find_library().build(policy.onnx)) > 1000


PAPER = {
    "chunk": 5,
    "critics": 10,
    "flow_steps": 10,
    "diffusion_steps": 10,
    "actor": NetworkConfig((512, 512, 512, 512)),
    "critic": NetworkConfig((512, 512, 512, 512)),
}
ONE_OF_EACH = {
    "flow": ("qam", None),
    "one_step": ("fql", None),
    "edited_flow": ("qam_edit", None),
    "noise_policy_flow": ("dsrl", None),
    "guided_flow": ("cgql", None),
    "gaussian": ("rlpd", None),
    "deterministic": ("rebrac", None),
    "diffusion": ("dac", None),
    "best_of_flow": ("qam", 8),
}


@pytest.mark.trt
@pytest.mark.parametrize("head", ONE_OF_EACH)
def test_tensorrt_builds_every_head_at_published_size(head):
    """Nets 4 x 512, ten critics, ten steps."""
    name, best_of = ONE_OF_EACH[head]
    policy = build_policy(make_agent(name, best_of, **PAPER))
    assert policy.head == head
    assert len(find_library().build(policy.onnx)) > 1000
