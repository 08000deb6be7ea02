# SPDX-License-Identifier: Apache-2.0
"""The deployed part of an agent: its policy graph, statistics and weights, and the chunks it gives itself.

An agent may be exported as it acts, or as the best of N by some of its critics (choosing), or its
behaviour flow alone (behaviour_of): each is an agent again, which shares its tensors.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qam_ros.contract.artifact import GraphSignature
from qam_ros.contract.errors import ArtifactError
from qam_ros.contract.weights import Weights
from qam_train.agents.base import Agent
from qam_train.agents.common import Normaliser
from qam_train.agents.flow_bc import FlowBCAgent
from qam_train.agents.registry import find_method
from qam_train.deployment import BestOf, Deployment
from qam_train.graphs.builder import Nets, PolicySizes, Precision
from qam_train.graphs.policy import Policy, build_graph, graph_weights

Float32Array = npt.NDArray[np.float32]
AnyAgent = Agent[Any, Any]


def build_policy(agent: AnyAgent, precision: Precision = "float32") -> Policy:
    """Graph and weights of what an agent acts with.

    Args:
        agent: of any method.
        precision: of the matrix products.

    Raises:
        ArtifactError: its nets do not fit each other.
    """
    plan = agent.deployment()
    return build_graph(plan, _nets(agent, plan), policy_sizes(agent), precision)


def policy_sizes(agent: AnyAgent) -> PolicySizes:
    """Sizes of an agent's policy."""
    chunk = agent.config.chunk
    return PolicySizes(agent.normaliser.size, agent.chunk_width // chunk, chunk)


def policy_weights(agent: AnyAgent) -> Weights:
    """Statistics and weights of an agent's policy, by name and in the order of its graph's inputs."""
    plan = agent.deployment()
    return graph_weights(plan, _nets(agent, plan), policy_sizes(agent))


def _nets(agent: AnyAgent, plan: Deployment) -> Nets:
    prefixes = tuple(f"{net}/" for net in plan.nets)
    read = {n: v for n, v in agent.constant.items() if n.startswith(prefixes)}
    read |= agent.normaliser.state()
    return {name: value.cpu().float().numpy() for name, value in read.items()}


def policy_chunks(
    agent: AnyAgent, observations: Float32Array, noise: Float32Array
) -> Float32Array:
    """Chunks the agent itself gives, (N, H, A), in float32.

    Args:
        agent: the agent, as it was exported.
        observations: (N, O).
        noise: (N, W), as the policy graph takes it.

    Raises:
        ArtifactError: the policy takes noise of another width.
    """
    chunks = agent.act(tensor(agent, observations), action_noise(agent, noise))
    return chunks.cpu().float().numpy()


def in_double(agent: AnyAgent) -> AnyAgent:
    """A copy of the agent that computes in float64."""
    parameters = {
        name: value.detach().double() for name, value in agent.parameters.items()
    }
    mean, std = agent.normaliser.mean.double(), agent.normaliser.std.double()
    return type(agent)(agent.config, parameters, Normaliser(mean, std))


def rounding(agent: AnyAgent, observations: Float32Array, noise: Float32Array) -> float:
    """Largest difference between the agent's own chunks and those it gives in float64."""
    own = policy_chunks(agent, observations, noise)
    exact = policy_chunks(in_double(agent), observations, noise)
    return float(np.abs(own - exact).max())


def tensor(agent: AnyAgent, values: Float32Array) -> Tensor:
    """Values on the agent's device and in its precision."""
    place = agent.normaliser.mean
    return torch.as_tensor(values, device=place.device, dtype=place.dtype)


def action_noise(agent: AnyAgent, noise: Float32Array) -> Tensor:
    """Noise of the graph (N, W) as act() takes it; candidates in front where there are several."""
    plan, found = agent.deployment(), noise.shape[-1]
    expected = plan.noise_width(agent.chunk_width)
    if found != expected:
        raise ArtifactError(
            f"policy of method '{agent.algorithm}' ({plan.head}): takes {expected} numbers of noise, "
            f"given are {found}; give it the candidates and critics of the artifact (like_artifact)",
            found=found,
            expected=expected,
        )
    drawn = tensor(agent, noise)
    if not isinstance(plan, BestOf):
        return drawn
    return drawn.unflatten(-1, (plan.candidates, -1)).transpose(0, 1)


def behaviour_of(agent: AnyAgent) -> FlowBCAgent:
    """The behaviour flow inside an agent as an agent of its own.

    Raises:
        ArtifactError: the method has none that only clones the data.
    """
    if isinstance(agent, FlowBCAgent):
        return agent
    name = agent.cloned_net
    if name is None:
        raise ArtifactError(
            f"method '{agent.algorithm}' has no behaviour flow of its own; export it without "
            "--actor behaviour"
        )
    nets = {
        key.replace(name, "slow", 1): value
        for key, value in agent.constant.items()
        if key.startswith(f"{name}/")
    }
    kind: Any = find_method(FlowBCAgent.algorithm).config
    held = vars(agent.config) | {"best_of": 1}
    names = {field.name for field in dataclasses.fields(kind)}
    config = kind(**{key: held[key] for key in names & held.keys()})
    return FlowBCAgent(config, nets, agent.normaliser)


def choosing(agent: AnyAgent, candidates: int, critics: int | None = None) -> AnyAgent:
    """An agent that takes the best of N by its first k critics; it shares tensors with the given one.

    A method that is guided by its critics is then guided by the first k too.

    Args:
        agent: what is exported.
        candidates: N.
        critics: k; None: all.

    Raises:
        ArtifactError: the method does not choose, asks no critic, or has fewer.
    """
    if not hasattr(agent.config, "best_of"):
        raise ArtifactError(
            f"method '{agent.algorithm}' acts with one candidate; export it without --best-of"
        )
    config = dataclasses.replace(agent.config, best_of=candidates)
    parameters = {name: value.detach() for name, value in agent.parameters.items()}
    chooser = type(agent)(config, parameters, agent.normaliser)
    name, members = _critics(chooser)
    if candidates > 1 and members == 0:
        raise ArtifactError(
            f"method '{agent.algorithm}' has no critic to choose with; export it without --best-of"
        )
    if critics is None or critics == members:
        return chooser
    if not 1 <= critics < members:
        raise ArtifactError(
            f"method '{agent.algorithm}': {critics} critics asked for, its policy asks {members}; give "
            f"--critics 1 to {members}, or leave it out"
        )
    nets = {name, *(net for net, of in agent.averages.items() if of == name)}
    fewer = {
        key: value[:critics] if key.partition("/")[0] in nets else value
        for key, value in parameters.items()
    }
    config = dataclasses.replace(config, critics=critics)
    return type(agent)(config, fewer, agent.normaliser)


def _critics(agent: AnyAgent) -> tuple[str, int]:
    """Ensemble that the policy asks and its members; '', 0 where it asks none."""
    plan = agent.deployment()
    name = getattr(plan, "critic", "")
    return name, len(agent.constant[f"{name}/0/weight"]) if name else 0


def like_artifact(agent: AnyAgent, graph: GraphSignature) -> AnyAgent:
    """The agent with as many candidates and critics as an artifact; itself where they are equal.

    Args:
        agent: an agent of the artifact's method.
        graph: the artifact's signature.

    Raises:
        ArtifactError: the artifact is not one of this agent.
    """
    candidates = max(1, graph.noise_width // agent.noise_width)
    weight = graph.weight_shapes.get("critic/0/weight_observation")
    _, members = _critics(agent)
    same = agent.deployment().noise_width(agent.chunk_width) == graph.noise_width
    if same and weight in (None, (members, *(weight or ())[1:])):
        return agent
    chooser = choosing(agent, candidates, weight[0] if weight else None)
    if chooser.deployment().noise_width(agent.chunk_width) != graph.noise_width:
        raise ArtifactError(
            f"the artifact takes {graph.noise_width} numbers of noise, method '{agent.algorithm}' a "
            f"multiple of {agent.noise_width}; it was exported from another method"
        )
    return chooser
