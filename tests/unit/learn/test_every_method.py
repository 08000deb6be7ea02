# SPDX-License-Identifier: Apache-2.0
"""Every method in the closed loop: exported, played, fine-tuned, swapped, and resumed."""

import dataclasses

import numpy as np
import pytest
import torch

from qam_ros.contract.artifact import read_artifact
from qam_ros.contract.errors import ConfigError
from qam_ros.runtime.store import TransitionStore
from qam_train.agents.common import Normaliser
from qam_train.agents.registry import METHODS
from qam_train.checkpoint import latest_checkpoint, read_checkpoint
from qam_train.config import from_mapping
from qam_train.deployed import choosing
from qam_train.export import Provenance, export_artifact
from qam_train.learner import LearnerCore
from qam_train.learner_config import LearnerConfig
from qam_train.loops.finetune import FinetuneConfig, FinetuneLoop

FEW = {
    "flow_steps": 3,
    "diffusion_steps": 10,
    "time_code": 4,
    "bridges": 3,
    "best_of": 2,
}
SMALL = {
    "chunk": 3,
    "critics": 2,
    "batch_size": 8,
    "actor": {"widths": [16, 16]},
    "critic": {"widths": [16]},
}
LEARNER = LearnerConfig(
    online_steps=50,
    start_rows=10,
    offer_every=20,
    checkpoint_every=10,
    log_every=10,
    online_fraction=0.5,
)
CONFIG = FinetuneConfig(
    world="pointmaze-medium", max_episode_steps=15, swap_budget=2.0, learner=LEARNER
)
QUICK = {"trqam", "ifql", "rlpd"}  # a flow, the best of several, no flow at all
NAMES = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in sorted(METHODS)
]


@pytest.fixture
def make_agent(dataset):
    def make(name):
        method = METHODS[name]
        known = {field.name for field in dataclasses.fields(method.config)}
        few = {key: value for key, value in FEW.items() if key in known}
        return method.agent.init(
            from_mapping(method.config, SMALL | few),
            2,
            2,
            torch.Generator().manual_seed(0),
            Normaliser.of(torch.as_tensor(dataset.observations)),
        )

    return make


@pytest.fixture
def export(interface, dataset, tmp_path):
    def write(agent):
        path = tmp_path / "artifact"
        export_artifact(agent, interface, dataset, path, Provenance("run", "ab" * 32))
        return path

    return write


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def _die_after(loop, updates):
    work = loop.core.work

    def dies():
        if loop.core.trainer.updates == updates:
            raise Killed
        return work()

    loop.core.work = dies


@pytest.mark.parametrize("name", NAMES)
def test_method_is_played_fine_tuned_and_resumed_bit_for_bit(
    name, make_agent, export, offline, interface, tmp_path
):
    artifact = export(make_agent(name))
    assert read_artifact(artifact).manifest.algorithm == name

    def loop(folder, *, resume=False):
        run_dir, agent = tmp_path / folder, make_agent(name)
        names = {"run_id": "run", "resume": resume}
        return FinetuneLoop(CONFIG, agent, artifact, offline, run_dir, **names)

    straight = loop("straight")
    straight.run(progress=False)
    records = straight.core.offers.folder.records
    assert [record.accepted for record in records.values()] == [True, True]
    first = loop("stopped")
    _die_after(first, 27)
    with pytest.raises(Killed):
        first.run(progress=False)
    second = loop("stopped", resume=True)
    assert 0 < second.core.trainer.updates < 27
    second.run(progress=False)
    ends = [
        read_checkpoint(latest_checkpoint(tmp_path / run / "checkpoints"))
        for run in ("straight", "stopped")
    ]
    assert ends[0].metadata == ends[1].metadata
    assert all(torch.equal(v, ends[1].tensors[n]) for n, v in ends[0].tensors.items())
    rows = []
    for run in ("straight", "stopped"):
        with TransitionStore(tmp_path / run / "replay.sqlite", interface) as log:
            rows.append(log.read(0, 1000)[1])
    assert rows[0].tobytes() == rows[1].tobytes()
    assert np.abs(rows[0]["executed"]).max() > 0


def _core(agent, artifact, offline, tmp_path):
    return LearnerCore(
        LEARNER,
        agent,
        read_artifact(artifact),
        offline,
        tmp_path / "run",
        robot="robot",
        run_id="run",
    )


def test_learner_offers_what_the_artifact_was_exported_as(
    make_agent, export, offline, tmp_path
):
    artifact = export(choosing(make_agent("qam"), 4, 1))
    core = _core(make_agent("qam"), artifact, offline, tmp_path)
    assert core.make_version().accepted is None  # passed the gate here
    core.close(save=False)


@pytest.mark.parametrize("name", ["fql", "qam_edit", "dac"])
def test_artifact_of_another_method_is_refused_before_training(
    name, make_agent, export, offline, tmp_path
):
    artifact = export(make_agent("rebrac"))
    with pytest.raises(ConfigError, match="is of method 'rebrac'"):
        _core(make_agent(name), artifact, offline, tmp_path)


def test_an_artifact_of_another_method_with_the_same_graph_is_refused(
    make_agent, export, offline, tmp_path
):
    artifact, run_dir = export(make_agent("trqam")), tmp_path / "run"
    with pytest.raises(ConfigError, match=r"of method 'trqam'.*'qam' agent"):
        FinetuneLoop(CONFIG, make_agent("qam"), artifact, offline, run_dir)
