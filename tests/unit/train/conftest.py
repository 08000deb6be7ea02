# SPDX-License-Identifier: Apache-2.0
"""Tiny settings of every method and tiny data, so that all of them train in a moment."""

import dataclasses

import numpy as np
import pytest
import torch

from qam_ros.contract.dataset import Dataset
from qam_train.agents.registry import METHODS
from qam_train.config import from_mapping
from qam_train.data.dataset import FlatDataset
from qam_train.offline_config import OfflineConfig

FEW = {
    "flow_steps": 3,
    "diffusion_steps": 3,
    "time_code": 4,
    "bridges": 3,
    "noise": 0.2,
}
SMALL = {
    "chunk": 2,
    "critics": 2,
    "batch_size": 8,
    "actor": {"widths": [8, 8]},
    "critic": {"widths": [8]},
}


def make_settings(method, **settings):
    """Mapping of OfflineConfig; the behaviour stage is there where the method can have one."""
    known = {field.name for field in dataclasses.fields(METHODS[method].config)}
    few = {name: value for name, value in FEW.items() if name in known}
    cloned = 3 if METHODS[method].agent.behaviour_nets else 0
    return {
        "method": method,
        "seed": 7,
        "pad_terminated": True,
        "log_every": 1,
        "checkpoint_every": 2,
        "behaviour": {"updates": cloned, "lr_start": 1e-3, "lr_end": 1e-4},
        "offline": {"updates": 5, "lr_start": 1e-3, "lr_end": 1e-4},
        **settings,
        "agent": SMALL | few | settings.get("agent", {}),
    }


@pytest.fixture(scope="session")
def small_config():
    """Makes an OfflineConfig: small_config(method, offline={...}, agent={...})."""

    def make(method, **settings):
        return from_mapping(OfflineConfig, make_settings(method, **settings))

    return make


@pytest.fixture(scope="session")
def contract_data():
    """Makes the dataset of the mobile base: two segments, the first ends with its goal."""

    def make(rows=40):
        rng = np.random.default_rng(0)
        terminals = np.zeros(rows, np.uint8)
        terminals[[rows // 2 - 1, rows - 1]] = 1
        masks = np.ones(rows, np.float32)
        masks[rows // 2 - 1] = 0
        return Dataset(
            observations=rng.normal(size=(rows, 2)).astype(np.float32),
            actions=rng.uniform(-1, 1, size=(rows, 2)).astype(np.float32),
            rewards=-np.ones(rows, np.float32),
            masks=masks,
            terminals=terminals,
            valid=np.ones(rows, np.uint8),
            end_observations=rng.normal(size=(2, 2)).astype(np.float32),
        )

    return make


@pytest.fixture
def small_data(contract_data):
    return FlatDataset.from_contract(contract_data())


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
