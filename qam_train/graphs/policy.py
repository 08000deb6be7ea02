# SPDX-License-Identifier: Apache-2.0
"""The whole policy graph: statistics, candidates, head, choice, chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from qam_ros.contract.artifact import GraphSignature, TensorSpec
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
from qam_train.graphs.builder import Builder, Nets, PolicySizes, Precision
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
class Policy:
    """A policy graph and its inputs, ready for an artifact.

    Attributes:
        onnx: the serialised model: no external data, no constant that depends on the weights.
        weights: statistics and weights by name, the inputs after observation and noise, in order.
        head: how a chunk is made.
        steps: of the sampler.
        noise_width: W, numbers of noise per chunk.
        sizes: of observation, action and chunk.
    """

    onnx: bytes
    weights: Weights
    head: str
    steps: int
    noise_width: int
    sizes: PolicySizes

    @property
    def signature(self) -> GraphSignature:
        """Inputs and outputs of the graph."""
        sizes = self.sizes
        inputs = (
            TensorSpec("observation", (1, sizes.observation)),
            TensorSpec("noise", (1, self.noise_width)),
            *(TensorSpec(name, value.shape) for name, value in self.weights.items()),
        )
        chunk = TensorSpec("chunk", (1, sizes.chunk, sizes.action))
        return GraphSignature(inputs, (chunk,))


def build_graph(
    plan: Deployment,
    nets: Nets,
    sizes: PolicySizes,
    precision: Precision = "float32",
) -> Policy:
    """Write the graph of a policy.

    Inputs: observation (1, O), noise (1, W), observation_mean (O,), observation_std (O,), then one
    per weight tensor; output: chunk (1, H, A) in [-1, 1]. Of the arrays only names and shapes enter
    the model.

    Args:
        plan: what is computed.
        nets: statistics, and the tensors of all nets that the policy reads.
        sizes: sizes of the policy.
        precision: of the matrix products of actors and flows; all else is float32.

    Raises:
        ArtifactError: a tensor is missing or does not fit the sizes.
    """
    build = _written(plan, nets, sizes, precision)
    width = plan.noise_width(sizes.flat)
    model = build.serialised(width)
    return Policy(model, build.weights, plan.head, plan.steps, width, sizes)


def graph_weights(plan: Deployment, nets: Nets, sizes: PolicySizes) -> Weights:
    """Weights as build_graph gives them, for a graph that is there already."""
    return _written(plan, nets, sizes).weights


def _written(
    plan: Deployment,
    nets: Nets,
    sizes: PolicySizes,
    precision: Precision = "float32",
) -> Builder:
    build = Builder(nets, sizes, precision)
    mean, std = build.statistics()
    s = build.div(build.sub("observation", mean), std)
    chunk = _chunk(build, plan, s)
    build.reshape(chunk, [1, sizes.chunk, sizes.action], "chunk")
    return build


def _chunk(build: Builder, plan: Deployment, s: str) -> str:
    """Flat chunk (1, D)."""
    if not isinstance(plan, BestOf):
        return DRAWS[type(plan)](build, plan, s, "noise")
    one, count = plan.policy, plan.candidates
    noise = build.reshape("noise", [count, one.noise_width(build.sizes.flat)])
    candidates = DRAWS[type(one)](build, one, s, noise)
    critic = Critic(build, plan.critic, s, timed=plan.told is not None)
    return choose(build, critic, candidates, count, plan.score, plan.told or 0.0)
