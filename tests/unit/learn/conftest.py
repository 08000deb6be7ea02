# SPDX-License-Identifier: Apache-2.0
"""A small dataset and agent of the mobile base, made in a moment."""

import functools

import numpy as np
import pytest
import torch

from qam_ros.contract.artifact import read_artifact
from qam_ros.contract.dataset import Dataset
from qam_ros.contract.interface import find_robot, load_interface
from qam_ros.contract.transition import transition_dtype
from qam_train.agents.common import Normaliser
from qam_train.agents.qam import QAMAgent
from qam_train.config import AgentConfig, NetworkConfig
from qam_train.data.dataset import FlatDataset
from qam_train.export import Provenance, export_artifact
from qam_train.learner import LearnerCore
from qam_train.learner_config import LearnerConfig

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


def make_rows(interface, episodes, session=1, first_seq=0):
    """Transitions of episodes of given lengths; the last row of each stores its next observation."""
    rows = np.zeros(sum(episodes), transition_dtype(interface))
    rows["session"] = session
    rows["seq"] = first_seq + np.arange(rows.size)
    rows["episode"] = np.repeat(np.arange(len(episodes)), episodes)
    rows["step"] = np.concatenate([np.arange(n) for n in episodes])
    rows["observation"][:, 0] = rows["seq"]
    rows["observation_stamp_ns"] = rows["seq"] + session * 10**9
    rows["executed"][:, 0] = rows["seq"] / 1000
    rows["reward"] = -1.0
    last = np.cumsum(episodes) - 1
    rows["has_next"][last] = 1
    rows["next_observation"][last, 0] = rows["seq"][last] + 0.5
    rows["truncated"][last] = 1
    return rows


def make_agent(dataset, config=SMALL, seed=0):
    generator = torch.Generator().manual_seed(seed)
    normaliser = Normaliser.of(torch.as_tensor(dataset.observations))
    size = dataset.observations.shape[1], dataset.actions.shape[1]
    return QAMAgent.init(config, *size, generator, normaliser)


@pytest.fixture
def agent(dataset):
    return make_agent(dataset)


@pytest.fixture(scope="session")
def new_agent(dataset):
    """Makes the same agent every time it is called."""
    return functools.partial(make_agent, dataset)


@pytest.fixture(scope="session")
def artifact_path(tmp_path_factory, interface, dataset):
    path = tmp_path_factory.mktemp("policy") / "artifact"
    export_artifact(
        make_agent(dataset), interface, dataset, path, Provenance("run", "ab" * 32)
    )
    return path


@pytest.fixture(scope="session")
def rows_of(interface):
    """Makes rows: rows_of(lengths of episodes, session=1, first_seq=0)."""
    return functools.partial(make_rows, interface)


@pytest.fixture(scope="session")
def offline(dataset):
    return FlatDataset.from_contract(dataset)


@pytest.fixture
def make_core(dataset, offline, artifact_path, tmp_path):
    """Opens a learner on the run folder of the test; call again after close() to restart it."""

    def make(agent=None, **settings):
        numbers = {"online_steps": 60, "start_rows": 0, "window": 10, "offer_every": 20}
        config = LearnerConfig(
            **(numbers | {"log_every": 10, "checkpoint_every": 15} | settings)
        )
        return LearnerCore(
            config,
            make_agent(dataset) if agent is None else agent,
            read_artifact(artifact_path),
            offline,
            tmp_path / "run",
            robot="robot",
            run_id="run",
        )

    return make
