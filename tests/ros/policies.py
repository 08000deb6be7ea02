# SPDX-License-Identifier: Apache-2.0
"""Policies for tests over ROS, made in seconds: a cloned maze driver, a random cube policy."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from qam_ros.contract.dataset import Dataset, write_dataset
from qam_ros.contract.interface import RobotInterface, load_interface

MAZE_EPISODES = 12
MAZE_UPDATES = 1000


@dataclass(frozen=True)
class Start:
    """What online training starts from; paths."""

    artifact: Path
    checkpoint: Path
    dataset: Path
    learner_config: Path

    def words(self) -> list[str]:
        """As arguments of a bringup."""
        return [f"{name}:={path}" for name, path in vars(self).items()]


def maze_data() -> Dataset:
    """Episodes of the scripted driver in the medium maze, all of them to the goal."""
    from sim.episodes import EpisodeMaker
    from sim.recipes import make_recipe

    recipe = make_recipe("task", "pointmaze-medium", goal_probability=1.0)
    maker = EpisodeMaker(recipe, seed=0)
    episodes = [maker.make(index) for index in range(MAZE_EPISODES)]
    lengths = [len(episode.rewards) for episode in episodes]
    terminals = np.zeros(sum(lengths), np.uint8)
    terminals[np.cumsum(lengths) - 1] = 1
    columns = ("observations", "actions", "rewards", "masks")
    return Dataset(
        **{c: np.concatenate([getattr(e, c) for e in episodes]) for c in columns},
        terminals=terminals,
        valid=np.ones(sum(lengths), np.uint8),
        end_observations=np.stack([e.end_observation for e in episodes]),
        extras={},
    )


def clone_maze_driver(folder: Path) -> Path:
    """Artifact of a flow that was cloned from `maze_data`; a few seconds."""
    pytest.importorskip("torch", reason="needs torch: run make setup")
    from qam_train.config import from_mapping
    from qam_train.data.dataset import FlatDataset
    from qam_train.export import Provenance, export_artifact
    from qam_train.loops.offline import train_offline
    from qam_train.offline_config import OfflineConfig

    stage = {"updates": MAZE_UPDATES, "lr_start": 2e-3, "lr_end": 2e-4}
    agent = {"flow_steps": 5, "chunk": 2, "actor": {"widths": [64, 64]}, "critics": 2}
    settings = {"behaviour": stage, "offline": {"updates": 0}, "agent": agent}
    config = from_mapping(OfflineConfig, settings)
    data = maze_data()
    trained = train_offline(
        config, FlatDataset.from_contract(data), folder / "clone", progress=False
    )
    interface = load_interface("mobile_base")
    provenance = Provenance("clone", "00" * 32)
    export_artifact(trained.behaviour, interface, data, folder / "artifact", provenance)
    return folder / "artifact"


def random_data(interface: RobotInterface, rows: int = 300) -> Dataset:
    """Rows that fit an interface and mean nothing."""
    rng = np.random.default_rng(0)
    ends = np.arange(rows) % 30 == 29
    observations = rng.normal(size=(rows, interface.observation_size))
    actions = rng.uniform(-1.0, 1.0, (rows, interface.action_size))
    return Dataset(
        observations=observations.astype(np.float32),
        actions=actions.astype(np.float32),
        rewards=-np.ones(rows, np.float32),
        masks=np.ones(rows, np.float32),
        terminals=ends.astype(np.uint8),
        valid=np.ones(rows, np.uint8),
        end_observations=observations[ends].astype(np.float32),
        extras={},
    )


def random_start(folder: Path, robot: str, learner: dict[str, float]) -> Start:
    """Start of online training for a robot: small nets with random weights.

    Args:
        folder: where the files go.
        robot: robot name.
        learner: settings of the learner.
    """
    torch = pytest.importorskip("torch", reason="needs torch: run make setup")
    from qam_train.agents.common import Normaliser
    from qam_train.agents.qam import QAMAgent
    from qam_train.checkpoint import write_checkpoint
    from qam_train.config import AgentConfig, NetworkConfig
    from qam_train.export import Provenance, export_artifact
    from qam_train.restore import agent_metadata, agent_tensors

    interface = load_interface(robot)
    data = random_data(interface)
    start = Start(
        *(
            folder / name
            for name in ("artifact", "agent.safetensors", "data", "learner.yaml")
        )
    )
    manifest = write_dataset(start.dataset, data, interface, {})
    small = NetworkConfig((32, 32))
    config = AgentConfig(
        flow_steps=5, batch_size=32, critics=2, actor=small, critic=small
    )
    normaliser = Normaliser.of(torch.as_tensor(data.observations))
    sizes = interface.observation_size, interface.action_size
    generator = torch.Generator().manual_seed(0)
    agent = QAMAgent.init(config, *sizes, generator, normaliser)
    write_checkpoint(start.checkpoint, agent_tensors(agent), agent_metadata(agent))
    provenance = Provenance("random", manifest.sha256)
    export_artifact(agent, interface, data, start.artifact, provenance)
    start.learner_config.write_text(yaml.safe_dump(learner))
    return start
