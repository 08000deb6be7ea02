# SPDX-License-Identifier: Apache-2.0
"""A small dataset and agent of the mobile base, made in a moment."""

import numpy as np
import pytest
import torch

from qam_ros.contract.dataset import Dataset
from qam_ros.contract.interface import find_robot, load_interface
from qam_train.agents.common import Normaliser
from qam_train.agents.qam import QAMAgent
from qam_train.config import AgentConfig, NetworkConfig
from qam_train.export import Provenance, export_artifact

SMALL = AgentConfig(
    flow_steps=3,
    chunk=3,
    batch_size=16,
    critics=2,
    actor=NetworkConfig((16, 16)),
    critic=NetworkConfig((16,), layer_norm=True),
)


@pytest.fixture(scope="session")
def interface():
    return load_interface(find_robot("mobile_base"))


def make_dataset(rows=300, segment=30, seed=0):
    rng = np.random.default_rng(seed)
    terminals = (np.arange(rows) % segment == segment - 1).astype(np.uint8)
    return Dataset(
        observations=rng.normal(size=(rows, 2)).astype(np.float32) * 3 + 5,
        actions=rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        rewards=-np.ones(rows, np.float32),
        masks=np.ones(rows, np.float32),
        terminals=terminals,
        valid=np.ones(rows, np.uint8),
        end_observations=rng.normal(size=(int(terminals.sum()), 2)).astype(np.float32),
        extras={},
    )


@pytest.fixture(scope="session")
def dataset():
    return make_dataset()


def make_agent(dataset, config=SMALL, seed=0):
    generator = torch.Generator().manual_seed(seed)
    normaliser = Normaliser.of(torch.as_tensor(dataset.observations))
    size = dataset.observations.shape[1], dataset.actions.shape[1]
    return QAMAgent.init(config, *size, generator, normaliser)


@pytest.fixture
def agent(dataset):
    return make_agent(dataset)


@pytest.fixture(scope="session")
def artifact_path(tmp_path_factory, interface, dataset):
    path = tmp_path_factory.mktemp("policy") / "artifact"
    export_artifact(
        make_agent(dataset), interface, dataset, path, Provenance("run", "ab" * 32)
    )
    return path
