# SPDX-License-Identifier: Apache-2.0
"""Probes of an artifact: observations and noises on which every backend must give the same chunks."""

from __future__ import annotations

import numpy as np
import torch

from qam_ros.contract.artifact import GOLDEN_PROBES
from qam_ros.contract.dataset import Dataset
from qam_train.deployed import AnyAgent, Float32Array, action_noise, tensor
from qam_train.deployment import BestOf

PROBE_DRAWS = 4  # noises per probe among which the clearest choice is taken


def draw_probes(
    dataset: Dataset, noise_width: int, seed: int
) -> tuple[Float32Array, Float32Array]:
    """Probe observations, one from each of 64 equal stretches of the data, and noise for each.

    Returns:
        (64, O) and (64, W), float32.
    """
    generator = np.random.default_rng(seed)
    edges = np.linspace(0, len(dataset), GOLDEN_PROBES + 1)
    rows = np.floor(generator.uniform(edges[:-1], edges[1:])).astype(np.int64)
    observations = dataset.observations[np.minimum(rows, len(dataset) - 1)]
    noise = generator.standard_normal((GOLDEN_PROBES, noise_width)).astype(np.float32)
    return np.ascontiguousarray(observations, np.float32), noise


def clearest_noise(
    agent: AnyAgent, observations: Float32Array, noise: Float32Array, seed: int
) -> Float32Array:
    """For a policy that chooses: of a few noises per probe the one with the clearest choice.

    Two candidates of almost equal value may change places by rounding, and the chunk jumps. Such a
    probe says nothing about a backend.

    Args:
        agent: what is exported.
        observations: (64, O), probes.
        noise: (64, W), the first noise of each.
        seed: of the others.

    Returns:
        (64, W); the noise itself for a policy that does not choose.
    """
    if not isinstance(agent.deployment(), BestOf):
        return noise
    generator = np.random.default_rng([seed, 1])
    others = generator.standard_normal((PROBE_DRAWS - 1, *noise.shape))
    draws = np.concatenate([noise[None], others.astype(np.float32)])  # (M, 64, W)
    leads = np.stack([_leads(agent, observations, one) for one in draws])
    return draws[leads.argmax(0), np.arange(len(noise))]


@torch.no_grad()
def _leads(
    agent: AnyAgent, observations: Float32Array, noise: Float32Array
) -> Float32Array:
    """Distance (N,) between the best and the second best candidate's value."""
    s = agent.normaliser(tensor(agent, observations))
    ranks = agent.rank(s, agent.policy(s, action_noise(agent, noise)))
    first, second = ranks.topk(2, dim=0).values
    return (first - second).cpu().float().numpy()
