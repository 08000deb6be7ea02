# SPDX-License-Identifier: Apache-2.0
"""The deployed part of an agent: sizes, statistics and weights, and the chunks it gives itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from qam_ros.contract.artifact import GOLDEN_PROBES
from qam_ros.contract.dataset import Dataset
from qam_ros.contract.weights import Weights
from qam_train.agents.flow_bc import FlowBCAgent
from qam_train.agents.qam import QAMAgent
from qam_train.agents.restore import Agent
from qam_train.networks import net
from qam_train.policy_graph import PolicySizes, split_first_layer

Float32Array = npt.NDArray[np.float32]


def behaviour_of(agent: QAMAgent) -> FlowBCAgent:
    """The behaviour flow inside a QAM agent as an agent of its own."""
    slow = {
        name: value.detach() for name, value in net(agent.parameters, "slow").items()
    }
    return FlowBCAgent(agent.config, slow, agent.normaliser)


def policy_sizes(agent: Agent) -> PolicySizes:
    """Sizes of an agent's policy."""
    config = agent.config
    return PolicySizes(
        observation=agent.normaliser.size,
        action=agent.chunk_width // config.chunk,
        chunk=config.chunk,
        flow_steps=config.flow_steps,
    )


def policy_weights(agent: Agent) -> Weights:
    """Statistics and weights of an agent's policy, by name and in the order of its graph's inputs."""
    tensors = {
        name.removeprefix("actor/"): value.cpu().float().numpy()
        for name, value in agent.actor_parameters().items()
    }
    statistics = {
        name: value.cpu().float().numpy()
        for name, value in agent.normaliser.state().items()
    }
    order = ("observation_mean", "observation_std")
    return {name: statistics[name] for name in order} | split_first_layer(
        tensors, policy_sizes(agent)
    )


def policy_chunks(
    agent: Agent, observations: Float32Array, noise: Float32Array
) -> Float32Array:
    """Chunks the agent itself gives, (N, H, A), in float32."""
    place = agent.normaliser.mean
    chunks = agent.act(
        torch.as_tensor(observations, device=place.device, dtype=place.dtype),
        torch.as_tensor(noise, device=place.device, dtype=place.dtype),
    )
    return chunks.cpu().float().numpy()


def draw_probes(
    dataset: Dataset, sizes: PolicySizes, seed: int
) -> tuple[Float32Array, Float32Array]:
    """Probe observations, one from each of 64 equal stretches of the data, and noise for each.

    Returns:
        (64, O) and (64, H*A), float32.
    """
    generator = np.random.default_rng(seed)
    edges = np.linspace(0, len(dataset), GOLDEN_PROBES + 1)
    rows = np.floor(generator.uniform(edges[:-1], edges[1:])).astype(np.int64)
    observations = dataset.observations[np.minimum(rows, len(dataset) - 1)]
    noise = generator.standard_normal((GOLDEN_PROBES, sizes.flat)).astype(np.float32)
    return np.ascontiguousarray(observations, np.float32), noise
