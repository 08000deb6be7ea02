# SPDX-License-Identifier: Apache-2.0
"""The whole policy graph: statistics, candidates, head, choice, chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from qam_ros.contract.weights import Weights
from qam_train.deployment import (
    BestOf,
    Deployment,
    DeterministicActor,
    EditedFlow,
    FlowPolicy,
    GaussianActor,
    GuidedFlow,
    NoisePolicyFlow,
    OneStep,
    ReverseDiffusion,
    Single,
)
from qam_train.graphs.actors import (
    deterministic,
    edited_flow,
    gaussian,
    noise_policy_flow,
    one_step,
)
from qam_train.graphs.builder import Builder, Nets, PolicySizes
from qam_train.graphs.critic import Critic, choose
from qam_train.graphs.diffusion import reverse_diffusion
from qam_train.graphs.flow import flow
from qam_train.graphs.guided import guided_flow

Draw = Callable[[Builder, Any, str, str], str]
"""(graph, policy, s (1, O), noise (R, W)) -> chunks (R, D) in [-1, 1]."""

DRAWS: Mapping[type[Single], Draw] = MappingProxyType(
    {
        FlowPolicy: flow,
        OneStep: one_step,
        GaussianActor: gaussian,
        DeterministicActor: deterministic,
        EditedFlow: edited_flow,
        NoisePolicyFlow: noise_policy_flow,
        GuidedFlow: guided_flow,
        ReverseDiffusion: reverse_diffusion,
    }
)


@dataclass(frozen=True, eq=False)
class PolicyGraph:
    """A policy graph and its inputs.

    Attributes:
        onnx: the serialised model: no external data, no constant that depends on the weights.
        weights: statistics and weights by name, the inputs after observation and noise, in order.
        noise_width: W, numbers of noise per chunk.
    """

    onnx: bytes
    weights: Weights
    noise_width: int


def build_policy_graph(
    policy: Deployment, nets: Nets, sizes: PolicySizes
) -> PolicyGraph:
    """Write the graph of a policy.

    Inputs: observation (1, O), noise (1, W), observation_mean (O,), observation_std (O,), then one
    per weight tensor; output: chunk (1, H, A) in [-1, 1]. Of the arrays only names and shapes enter
    the model.

    Args:
        policy: what is computed.
        nets: statistics, and the tensors of all nets that the policy reads.
        sizes: sizes of the policy.

    Raises:
        ArtifactError: a tensor is missing or does not fit the sizes.
    """
    build = _written(policy, nets, sizes)
    width = policy.noise_width(sizes.flat)
    return PolicyGraph(build.serialised(width), build.weights, width)


def graph_weights(policy: Deployment, nets: Nets, sizes: PolicySizes) -> Weights:
    """Weights as build_policy_graph gives them, for a graph that is there already."""
    return _written(policy, nets, sizes).weights


def _written(policy: Deployment, nets: Nets, sizes: PolicySizes) -> Builder:
    build = Builder(nets, sizes)
    mean, std = build.statistics()
    s = build.div(build.sub("observation", mean), std)
    chunk = _chunk(build, policy, s)
    build.reshape(chunk, [1, sizes.chunk, sizes.action], "chunk")
    return build


def _chunk(build: Builder, policy: Deployment, s: str) -> str:
    """Flat chunk (1, D)."""
    if not isinstance(policy, BestOf):
        return DRAWS[type(policy)](build, policy, s, "noise")
    one, count = policy.policy, policy.candidates
    noise = build.reshape("noise", [count, one.noise_width(build.sizes.flat)])
    candidates = DRAWS[type(one)](build, one, s, noise)
    critic = Critic(build, policy.critic, s, timed=policy.told is not None)
    return choose(build, critic, candidates, count, policy.score, policy.told or 0.0)
