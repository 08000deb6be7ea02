# SPDX-License-Identifier: Apache-2.0
"""What is exported is what the agent acts with."""

import numpy as np
import pytest
import torch

from qam_ros.contract.artifact import read_artifact
from qam_ros.contract.dataset import read_dataset_manifest, write_dataset
from qam_ros.contract.errors import ArtifactError, ConfigError
from qam_ros.contract.interface import find_robot, load_interface
from qam_ros.runtime.sampler import OnnxSampler
from qam_train import export
from qam_train.checkpoint import checkpoint_path, write_checkpoint
from qam_train.deployed import behaviour_of, policy_chunks, policy_weights
from qam_train.export import (
    TOLERANCE,
    Provenance,
    command,
    export_artifact,
    export_version,
    largest_error,
)
from qam_train.restore import agent_metadata, agent_tensors

PROVENANCE = Provenance(run_id="run-1", dataset_hash="ab" * 32)


def test_artifact_acts_like_the_agent(agent, interface, dataset, tmp_path):
    exported = export_artifact(
        agent, interface, dataset, tmp_path / "artifact", PROVENANCE
    )
    assert exported.largest_error <= TOLERANCE
    artifact = read_artifact(tmp_path / "artifact")
    sampler = OnnxSampler(artifact)
    rng = np.random.default_rng(5)
    observations = rng.normal(size=(20, 2)).astype(np.float32) * 3 + 5
    noise = rng.standard_normal((20, 6)).astype(np.float32)
    expected = agent.act(torch.as_tensor(observations), torch.as_tensor(noise)).numpy()
    np.testing.assert_allclose(
        sampler.sample_all(observations, noise), expected, atol=TOLERANCE
    )


def test_manifest_says_where_the_policy_comes_from(agent, interface, dataset, tmp_path):
    provenance = Provenance(
        "run-7", "cd" * 32, 3, 2, commit="f" * 40, evaluation={"success": 0.5}
    )
    export_artifact(agent, interface, dataset, tmp_path / "policy.zip", provenance)
    manifest = read_artifact(tmp_path / "policy.zip").manifest
    assert (manifest.run_id, manifest.dataset_hash, manifest.commit) == (
        "run-7",
        "cd" * 32,
        "f" * 40,
    )
    assert (manifest.policy_version, manifest.parent_version) == (3, 2)
    assert (manifest.algorithm, manifest.flow_steps, manifest.chunk_length) == (
        "qam",
        3,
        3,
    )
    assert manifest.evaluation == {"success": 0.5}


def test_probes_come_from_all_stretches_of_the_data(
    agent, interface, dataset, tmp_path
):
    export_artifact(agent, interface, dataset, tmp_path / "artifact", PROVENANCE)
    probes = read_artifact(tmp_path / "artifact").golden.observations
    rows = [
        int(np.flatnonzero((dataset.observations == probe).all(1))[0])
        for probe in probes
    ]
    edges = np.linspace(0, len(dataset), 65)
    assert all(np.floor(edges[i]) <= row < edges[i + 1] for i, row in enumerate(rows))


def test_behaviour_flow_can_be_exported_alone(agent, interface, dataset, tmp_path):
    base = behaviour_of(agent)
    export_artifact(base, interface, dataset, tmp_path / "base", PROVENANCE)
    export_artifact(agent, interface, dataset, tmp_path / "tuned", PROVENANCE)
    first, second = (read_artifact(tmp_path / name) for name in ("base", "tuned"))
    assert first.manifest.algorithm == "flow_bc"
    assert first.onnx_bytes == second.onnx_bytes
    np.testing.assert_array_equal(first.golden.observations, second.golden.observations)
    assert np.abs(first.golden.chunks - second.golden.chunks).max() > 0.01


def test_a_version_is_other_weights_for_the_same_graph(
    agent, interface, dataset, tmp_path
):
    export_artifact(agent, interface, dataset, tmp_path / "artifact", PROVENANCE)
    parent = read_artifact(tmp_path / "artifact")
    with torch.no_grad():
        for value in agent.trained.values():
            value.mul_(1.1)
    chunks = policy_chunks(agent, parent.golden.observations, parent.golden.noise)
    version = Provenance("run-1", "ab" * 32, 2, 1)
    export_version(
        tmp_path / "artifact", policy_weights(agent), chunks, tmp_path / "v2", version
    )
    made = read_artifact(tmp_path / "v2")
    assert (made.manifest.policy_version, made.onnx_bytes) == (2, parent.onnx_bytes)
    assert largest_error(made) <= TOLERANCE
    with pytest.raises(ArtifactError, match="do not belong together"):
        export_version(
            tmp_path / "artifact",
            policy_weights(agent),
            parent.golden.chunks,
            tmp_path / "v3",
            version,
        )
    assert not (tmp_path / "v3").exists()


def test_weights_that_are_not_finite_are_not_exported(
    agent, interface, dataset, tmp_path
):
    with torch.no_grad():
        agent.trained["fast/1/weight"][0, 0] = float("nan")
    with pytest.raises(ArtifactError):
        export_artifact(agent, interface, dataset, tmp_path / "artifact", PROVENANCE)
    assert not (tmp_path / "artifact").exists()


def test_float32_beyond_the_tolerance_is_refused_unless_it_is_asked_for(
    agent, interface, dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(export, "largest_error", lambda _: 2e-5)
    monkeypatch.setattr(export, "rounding", lambda *_: 1e-3)
    parts = agent, interface, dataset, tmp_path / "artifact", PROVENANCE
    with pytest.raises(
        ArtifactError, match=r"by up to 2\.0e-05.*1e-05 is accepted.*--tolerance"
    ):
        export_artifact(*parts)
    with pytest.raises(ConfigError, match=r"tolerance 0\.5, expected .* at most 0\.01"):
        export_artifact(*parts, tolerance=0.5)
    exported = export_artifact(*parts, tolerance=5e-5)
    assert exported.reason == "asked for with --tolerance"
    manifest = read_artifact(tmp_path / "artifact").manifest
    assert manifest.tolerance == 5e-5
    assert manifest.evaluation["float32_error"] == 1e-3
    assert manifest.evaluation["tolerance_reason"] == exported.reason


def test_agent_of_another_robot_is_refused(agent, dataset, tmp_path):
    arm = load_interface(find_robot("ur5e_2f85"))
    with pytest.raises(
        ArtifactError, match=r"size \(2, 2\), robot 'ur5e_2f85' \(28, 5\)"
    ):
        export_artifact(agent, arm, dataset, tmp_path / "artifact", PROVENANCE)


def test_command_exports_the_newest_checkpoint_of_a_run(
    agent, interface, dataset, tmp_path, capsys
):
    write_dataset(tmp_path / "data", dataset, interface, {})
    write_checkpoint(
        checkpoint_path(tmp_path / "run" / "checkpoints", 7),
        agent_tensors(agent),
        agent_metadata(agent),
    )
    out = tmp_path / "out"
    arguments = [
        str(tmp_path / "run"),
        "--dataset",
        str(tmp_path / "data"),
        "--out",
        str(out),
    ]
    assert command(arguments) == 0
    assert "largest error" in capsys.readouterr().out
    assert read_artifact(out).manifest.run_id == "run"
    with pytest.raises(ArtifactError, match="already exists"):
        command(arguments)


@pytest.mark.parametrize(
    ("words", "algorithm", "head", "noise"),
    [
        (["--best-of", "4", "--critics", "1"], "qam", "best_of_flow", 24),
        (["--best-of", "1"], "qam", "flow", 6),
        (["--actor", "behaviour"], "flow_bc", "flow", 6),
    ],
)
def test_command_exports_what_is_asked_for(
    words, algorithm, head, noise, agent, interface, dataset, tmp_path, capsys
):
    write_dataset(tmp_path / "data", dataset, interface, {})
    path = checkpoint_path(tmp_path, 1)
    write_checkpoint(path, agent_tensors(agent), agent_metadata(agent))
    places = ["--dataset", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert command([str(path), *places, *words]) == 0
    assert f"{algorithm}, head {head}" in capsys.readouterr().out
    manifest = read_artifact(tmp_path / "out").manifest
    assert (manifest.algorithm, manifest.head) == (algorithm, head)
    assert manifest.graph.noise_width == noise


def test_command_names_choices_that_cannot_be(agent, interface, dataset, tmp_path):
    write_dataset(tmp_path / "data", dataset, interface, {})
    path = checkpoint_path(tmp_path, 1)
    write_checkpoint(path, agent_tensors(agent), agent_metadata(agent))
    places = ["--dataset", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    with pytest.raises(ArtifactError, match="3 critics asked for, its policy asks 2"):
        command([str(path), *places, "--best-of", "4", "--critics", "3"])
    with pytest.raises(ConfigError, match="best_of: expected a positive number, got 0"):
        command([str(path), *places, "--best-of", "0"])
    assert not (tmp_path / "out").exists()


@pytest.fixture
def trained(agent, interface, dataset, tmp_path):
    """Writes a checkpoint that says what it was trained on, and the data into a folder."""

    def write(folder, **metadata):
        write_dataset(tmp_path / folder, dataset, interface, {}, replace=True)
        digest = read_dataset_manifest(tmp_path / folder).sha256
        path = checkpoint_path(tmp_path / "offline" / "checkpoints", 1)
        known = {**agent_metadata(agent), "dataset_hash": digest, **metadata}
        write_checkpoint(path, agent_tensors(agent), known)
        return path

    return write


def test_command_finds_the_data_that_the_checkpoint_names(trained, tmp_path):
    path = trained("elsewhere", dataset=str(tmp_path / "elsewhere"))
    assert command([str(path), "--out", str(tmp_path / "out")]) == 0
    assert read_artifact(tmp_path / "out").manifest.algorithm == "qam"


def test_command_finds_the_data_of_a_demo(trained, tmp_path):
    path = trained("dataset")
    assert command([str(path), "--out", str(tmp_path / "out")]) == 0


def test_command_says_when_the_data_are_not_known(trained, tmp_path):
    path = trained("elsewhere")
    with pytest.raises(
        ArtifactError, match=r"does not say where its data lie.*dataset"
    ):
        command([str(path), "--out", str(tmp_path / "out")])
    path = trained("elsewhere", dataset=str(tmp_path / "gone"))
    with pytest.raises(ArtifactError, match="gone, which is not there"):
        command([str(path), "--out", str(tmp_path / "out")])


def test_command_refuses_data_that_were_not_trained_on(trained, tmp_path):
    path = trained("dataset", dataset_hash="00" * 32)
    with pytest.raises(ArtifactError, match="the checkpoint was trained on 0000"):
        command([str(path), "--out", str(tmp_path / "out")])


def test_command_prints_a_tolerance_that_was_asked_for(trained, tmp_path, capsys):
    path = trained("dataset")
    words = ["--out", str(tmp_path / "out"), "--tolerance", "2e-4"]
    assert command([str(path), *words]) == 0
    assert "tolerance 2.0e-04 instead of 1e-05: asked" in capsys.readouterr().out
