# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning in one process: the whole loop in order, and the same loop after any stop."""

import shutil

import numpy as np
import pytest
import torch

from qam_ros.contract.artifact import read_artifact
from qam_ros.contract.dataset import write_dataset
from qam_ros.contract.errors import ConfigError
from qam_ros.runtime.store import TransitionStore
from qam_train.checkpoint import latest_checkpoint, read_checkpoint, write_checkpoint
from qam_train.learner_config import LearnerConfig
from qam_train.loops.finetune import FinetuneConfig, FinetuneLoop
from qam_train.loops.online import command
from qam_train.metrics import read_metrics
from qam_train.restore import agent_metadata, agent_tensors

CONFIG = FinetuneConfig(
    world="pointmaze-medium",
    max_episode_steps=20,
    swap_budget=2.0,
    learner=LearnerConfig(
        online_steps=90,
        start_rows=10,
        offer_every=15,
        checkpoint_every=30,
        log_every=10,
    ),
)


@pytest.fixture
def make_loop(offline, artifact_path, tmp_path, new_agent):
    def make(folder="run", config=CONFIG, resume=False):
        run_dir = tmp_path / folder
        return FinetuneLoop(
            config,
            new_agent(),
            artifact_path,
            offline,
            run_dir,
            run_id="run",
            resume=resume,
        )

    return make


def stored(run_dir, interface):
    with TransitionStore(run_dir / "replay.sqlite", interface) as log:
        return log.read(0, 10_000)[1]


def test_every_executed_action_is_a_row_and_pays_for_one_update(
    make_loop, interface, tmp_path
):
    loop = make_loop()
    executed = []
    loop._bus.subscribe("guard_report", executed.append)
    loop.run(progress=False)
    rows = stored(tmp_path / "run", interface)
    reports = [report for report in executed if report.is_row][: rows.size]
    assert [(r.session, r.seq) for r in reports] == [
        (bytes(r["session"]), r["seq"]) for r in rows
    ]
    assert np.array_equal(np.stack([r.executed for r in reports]), rows["executed"])
    assert np.array_equal(
        rows["executed"], rows["proposed"]
    )  # no limit binds inside the box
    assert not rows["masked"].any()
    assert loop.core.trainer.updates == 80
    assert 90 <= rows.size <= 100  # a few steps for the last verdict
    assert len(executed) - len(reports) <= 7  # the final tick of each episode


def test_new_versions_take_over_at_chunk_boundaries(make_loop, interface, tmp_path):
    loop = make_loop()
    loop.run(progress=False)
    rows = stored(tmp_path / "run", interface)
    records = loop.core.offers.folder.records
    assert [record.accepted for record in records.values()] == [True] * 6
    for chunk in np.unique(rows[["episode", "chunk_id"]]):
        same = rows[["episode", "chunk_id"]] == chunk
        assert len(np.unique(rows["policy_version"][same])) == 1
    versions = rows["policy_version"]
    assert (np.diff(versions.astype(int)) >= 0).all()
    assert set(versions) >= {1, 2, 3, 4, 5, 6}
    episodes = read_metrics(tmp_path / "run" / "episodes" / "metrics.jsonl")
    assert [row["length"] for row in episodes] == [20.0] * (rows.size // 20)


def test_a_resumed_run_equals_one_that_was_never_stopped(
    make_loop, interface, tmp_path
):
    from_start = make_loop("straight")
    from_start.run(progress=False)

    class Killed(BaseException):
        pass

    def kill_at(loop, update):
        work = loop.core.work

        def dies():
            if loop.core.trainer.updates == update:
                raise Killed
            return work()

        loop.core.work = dies

    for updates in (13, 51, 72, None):
        loop = make_loop("stopped", resume=updates != 13)
        if updates is not None:
            kill_at(loop, updates)
            with pytest.raises(Killed):
                loop.run(progress=False)
        else:
            loop.run(progress=False)
    first, second = tmp_path / "straight", tmp_path / "stopped"
    rows = stored(first, interface)
    assert rows.tobytes() == stored(second, interface).tobytes()
    ends = [
        read_checkpoint(latest_checkpoint(run / "checkpoints"))
        for run in (first, second)
    ]
    assert ends[0].metadata == ends[1].metadata
    for name, value in ends[0].tensors.items():
        assert torch.equal(value, ends[1].tensors[name]), name
    for version in loop.core.offers.folder.records:
        name = f"versions/v{version:06d}.safetensors"
        assert (first / name).read_bytes() == (second / name).read_bytes()
    lines = [
        (read_metrics(run / "episodes" / "metrics.jsonl"), losses(run))
        for run in (first, second)
    ]
    assert lines[0] == lines[1]


def losses(run_dir):
    return [
        (row["step"], row["loss"]) for row in read_metrics(run_dir / "metrics.jsonl")
    ]


def test_a_run_is_not_continued_by_mistake_nor_in_another_world(make_loop):
    make_loop().run(progress=False)
    with pytest.raises(ConfigError, match="holds a run already"):
        make_loop()
    other = FinetuneConfig(
        world="pointmaze-large", max_episode_steps=20, learner=CONFIG.learner
    )
    with pytest.raises(
        ConfigError, match="world = pointmaze-medium, now it is pointmaze-large"
    ):
        make_loop(config=other, resume=True)


def test_command_leaves_an_artifact_that_runs(
    agent, dataset, interface, artifact_path, tmp_path, capsys
):
    write_dataset(tmp_path / "data", dataset, interface, {})
    checkpoint = tmp_path / "agent.safetensors"
    write_checkpoint(checkpoint, agent_tensors(agent), agent_metadata(agent))
    settings = {
        "world": "pointmaze-medium",
        "max_episode_steps": 20,
        "swap_budget": 2.0,
        "learner.online_steps": 30,
        "learner.start_rows": 0,
        "learner.offer_every": 15,
    }
    arguments = [str(artifact_path), "--checkpoint", str(checkpoint), "--quiet"]
    arguments += [
        "--dataset",
        str(tmp_path / "data"),
        "--run-dir",
        str(tmp_path / "run"),
    ]
    for key, value in settings.items():
        arguments += ["--set", f"{key}={value}"]
    assert command(arguments) == 0
    assert read_artifact(tmp_path / "run" / "artifact").manifest.policy_version == 3
    shutil.rmtree(tmp_path / "run" / "artifact")
    assert command([*arguments[:8], "--resume"]) == 0
    elsewhere = [*arguments[:7], str(tmp_path / "nowhere"), "--resume"]
    with pytest.raises(ConfigError, match="no run to resume"):
        command(elsewhere)
    assert "policy in" in capsys.readouterr().out
