# SPDX-License-Identifier: Apache-2.0
"""A tiny dataset of the point maze, and cells that run in a second or two."""

import dataclasses

import numpy as np
import pytest
import yaml

from qam_ros.contract.dataset import Dataset, read_dataset_manifest, write_dataset
from qam_ros.contract.interface import find_robot, load_interface
from qam_train.agents.registry import find_method
from qam_train.config import NetworkConfig
from qam_train.suite.cell import RunSettings
from qam_train.suite.cell_config import CellConfig, DataConfig

WORLD = "pointmaze-medium"
PROTOCOL = {
    "about": "for tests",
    "seeds": [0, 1],
    "defaults": {
        "offline_updates": 40,
        "online_steps": 0,
        "evaluate_every": 20,
        "episodes": 2,
        "max_episode_steps": 12,
        "agent": {
            "chunk": 3,
            "batch_size": 16,
            "critics": 2,
            "actor": {"widths": [16]},
            "critic": {"widths": [16]},
        },
    },
    "domains": {
        "maze": {"world": WORLD, "data": {"dataset": "one"}, "tasks": [1, 3]},
    },
    "methods": {
        "qam": {"agent": {"flow_steps": 3}},
        "fql": {"agent": {"flow_steps": 3}},
        "rlpd": {"offline_updates": 0, "online_steps": 20},
        "dac": {"offline_lr_end": 1e30},  # diverges
    },
}


def make_rows(rows=200, segment=40, seed=0):
    """Random rows; qpos is the observation, so that another task's labels can be made."""
    rng = np.random.default_rng(seed)
    terminals = (np.arange(rows) % segment == segment - 1).astype(np.uint8)
    observations = rng.uniform(0, 20, (rows, 2)).astype(np.float32)
    return Dataset(
        observations=observations,
        actions=rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        rewards=-np.ones(rows, np.float32),
        masks=np.ones(rows, np.float32),
        terminals=terminals,
        valid=np.ones(rows, np.uint8),
        end_observations=rng.normal(size=(int(terminals.sum()), 2)).astype(np.float32),
        extras={"qpos": observations, "qvel": np.zeros((rows, 2), np.float32)},
    )


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Folder of datasets: "one", and "many" with the files 000 and 001."""
    root = tmp_path_factory.mktemp("data")
    interface = load_interface(find_robot("mobile_base"))
    meta = {"world": WORLD, "task": 1}
    for seed, name in enumerate(("one", "many/000", "many/001")):
        (root / name).parent.mkdir(exist_ok=True)
        write_dataset(root / name, make_rows(seed=seed), interface, meta)
    return root


@pytest.fixture(scope="session")
def rewrite():
    """Puts another dataset in the place of one: rewrite(path, seed=, rows=, robot=, **meta)."""

    def put(path, seed=1, rows=None, robot="mobile_base", **meta):
        there = read_dataset_manifest(path).meta
        interface = load_interface(find_robot(robot))
        rows = make_rows(seed=seed) if rows is None else rows
        write_dataset(path, rows, interface, {**there, **meta}, replace=True)

    return put


@pytest.fixture(scope="session")
def tiny_rows():
    """Makes random rows: tiny_rows(rows=, segment=, seed=)."""
    return make_rows


@pytest.fixture(scope="session")
def protocol_path(tmp_path_factory):
    """A protocol of four methods on the tiny dataset; one of them diverges."""
    path = tmp_path_factory.mktemp("protocol") / "tiny.yaml"
    path.write_text(yaml.safe_dump(PROTOCOL, sort_keys=False))
    return path


@pytest.fixture
def tiny_settings(tiny_data, tmp_path):
    return RunSettings(tmp_path / "out", tiny_data, "cpu", 2)


@pytest.fixture(scope="session")
def tiny_cell():
    """Makes a cell: tiny_cell(method="qam", agent={...}, **fields of CellConfig)."""

    def make(method="qam", agent=None, **fields):
        numbers = {"chunk": 3, "batch_size": 16, "critics": 2}
        kind = find_method(method).config
        if "flow_steps" in {f.name for f in dataclasses.fields(kind)}:
            numbers["flow_steps"] = 3
        config = kind(
            actor=NetworkConfig((16,)),
            critic=NetworkConfig((16,), layer_norm=True),
            **(numbers | (agent or {})),
        )
        defaults = {
            "protocol": "tiny",
            "method": method,
            "domain": WORLD,
            "task": 1,
            "seed": 0,
            "world": WORLD,
            "data": DataConfig("one"),
            "offline_updates": 40,
            "online_steps": 40,
            "start_steps": 10,
            "evaluate_every": 20,
            "episodes": 2,
            "max_episode_steps": 12,
        }
        return CellConfig(agent=config, **(defaults | fields))

    return make
