# SPDX-License-Identifier: Apache-2.0
"""Settings that leave the released behaviour reach the exported policy."""

import numpy as np
import pytest
import torch

from qam_ros.contract.artifact import read_artifact
from qam_ros.runtime.sampler import OnnxSampler
from qam_train.agents.common import Normaliser
from qam_train.agents.registry import METHODS
from qam_train.config import NetworkConfig
from qam_train.deployed import policy_chunks
from qam_train.export import TOLERANCE, Provenance, export_artifact

SMALL = {"chunk": 3, "critics": 2, "actor": NetworkConfig((16, 16))}


@pytest.fixture
def played(interface, dataset, tmp_path):
    """Chunks that an exported policy plays at fresh inputs, and their noise; equal to the agent's."""

    def play(name, **settings):
        generator = torch.Generator().manual_seed(0)
        normaliser = Normaliser(torch.full((2,), 5.0), torch.full((2,), 3.0))
        method = METHODS[name]
        config = method.config(**SMALL, **settings)
        agent = method.agent.init(config, 2, 2, generator, normaliser)
        path = tmp_path / f"artifact-{len(list(tmp_path.iterdir()))}.zip"
        export_artifact(agent, interface, dataset, path, Provenance("run", "ab" * 32))
        artifact = read_artifact(path)
        rng = np.random.default_rng(5)
        width = artifact.manifest.graph.noise_width
        observations = rng.normal(5, 3, (20, 2)).astype(np.float32)
        noise = rng.standard_normal((20, width)).astype(np.float32)
        chunks = OnnxSampler(artifact).sample_all(observations, noise)
        own = policy_chunks(agent, observations, noise)
        np.testing.assert_allclose(chunks, own, atol=artifact.manifest.tolerance)
        return chunks, noise

    return play


@pytest.mark.parametrize(("evaluation", "std"), [(None, 0.2), (0.05, 0.05)])
def test_robot_plays_with_the_noise_of_evaluation(played, evaluation, std):
    quiet, _ = played("rebrac", noise=0.2, evaluation_noise=0.0)
    chunks, noise = played("rebrac", noise=0.2, evaluation_noise=evaluation)
    drawn = np.clip(std * noise, -0.5, 0.5).reshape(quiet.shape)  # (20, 3, 2)
    expected = np.clip(quiet + drawn, -1.0, 1.0)
    np.testing.assert_allclose(chunks, expected, atol=TOLERANCE)


def test_robot_runs_the_sampler_of_the_settings(played):
    sizes = {"diffusion_steps": 4, "time_code": 8}
    jumped, _ = played("qsm", **sizes)
    posterior, _ = played("qsm", sampler="posterior", **sizes)
    assert np.abs(jumped - posterior).max() > 0.1
