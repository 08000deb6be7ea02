# SPDX-License-Identifier: Apache-2.0
"""`qam train`: any method by name, and what a bad dataset, method or setting is told beforehand."""

import dataclasses
import hashlib
import re

import numpy as np
import pytest
import yaml

from qam_ros import cli as command_line
from qam_ros.contract.dataset import write_dataset
from qam_ros.contract.errors import ConfigError, DatasetError, InterfaceError, QamError
from qam_ros.contract.interface import load_interface
from qam_train import cli
from qam_train.agents.registry import METHODS
from qam_train.checkpoint import latest_checkpoint, read_checkpoint
from qam_train.config import load_config
from qam_train.offline_config import OfflineConfig
from qam_train.restore import restore_trained

SMALL = (
    "agent.actor.widths=[8]",
    "agent.critic.widths=[8]",
    "agent.critics=2",
    "agent.chunk=2",
    "agent.batch_size=8",
    "offline.updates=2",
)


@pytest.fixture
def folder(tmp_path, contract_data):
    """A folder with the dataset `data` of the mobile base."""
    interface = load_interface("mobile_base")
    write_dataset(tmp_path / "data", contract_data(), interface, {})
    return tmp_path


def _train(folder, *more, data="data"):
    sets = [word for setting in SMALL for word in ("--set", setting)]
    run = str(folder / "run")
    return cli.train([str(folder / data), "--run-dir", run, "--quiet", *sets, *more])


def _rewrite(folder, **columns):
    """Put columns into the file as a faulty program would: hash and counts fit."""
    path = folder / "data" / "rows.npz"
    with np.load(path) as archive:
        held = {**archive, **columns}
    np.savez(path, **held)
    manifest = folder / "data" / "manifest.yaml"
    mapping = yaml.safe_load(manifest.read_text())
    mapping["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    mapping["rows"] = len(held["observations"])
    mapping["segments"] = len(held["end_observations"])
    manifest.write_text(yaml.safe_dump(mapping))


def _refused(folder, kind, message, *more, data="data"):
    with pytest.raises(kind, match=message):
        _train(folder, *more, data=data)
    assert not (folder / "run").exists()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_trains_by_its_name_and_resumes(folder, name):
    assert _train(folder, "--method", name) == 0
    agent = restore_trained(latest_checkpoint(folder / "run" / "checkpoints"))
    assert agent.algorithm == name
    config = load_config(OfflineConfig, folder / "run" / "config.yaml")
    assert config.method == name
    again = [str(folder / "data"), "--run-dir", str(folder / "run"), "--quiet"]
    assert cli.train([*again, "--resume"]) == 0
    with pytest.raises(ConfigError, match="already holds checkpoints"):
        cli.train(again)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--method", "trqan"), "method 'trqan' is not known; did you mean 'trqam'"),
        (("--set", "method=fqll"), "method 'fqll' is not known; did you mean 'fql'"),
        (("--method", "fql", "--set", "agent.tau=1"), "agent: unknown key 'tau'"),
        (("--set", "agent.taw=1"), "unknown key 'taw'; did you mean 'tau'"),
        (("--set", "ofline.updates=1"), "unknown key 'ofline'; did you mean 'offline'"),
        (("--method", "rlpd", "--set", "behaviour.updates=9"), "has no behaviour flow"),
        (("--robot", "mobile_bass"), "did you mean 'mobile_base'"),
    ],
)
def test_mistyped_method_setting_or_robot_names_the_nearest(folder, more, message):
    _refused(folder, QamError, message, *more)


@pytest.mark.parametrize(
    "column", ["observations", "actions", "rewards", "end_observations"]
)
def test_dataset_with_nan_is_refused_before_training(folder, contract_data, column):
    values = getattr(contract_data(), column).copy()
    values[1] = np.nan
    _rewrite(folder, **{column: values})
    _refused(folder, DatasetError, rf"'{column}' must be finite; it does not at \(1")


def test_dataset_with_actions_outside_the_box_is_refused(folder, contract_data):
    actions = contract_data().actions.copy()
    actions[3, 1] = 1.001
    _rewrite(folder, actions=actions)
    _refused(
        folder,
        DatasetError,
        r"'actions' must lie in \[-1, 1\]; it does not at \(3, 1\) \(1 such",
    )


def test_dataset_of_zero_length_is_refused(folder, contract_data):
    held = contract_data()
    names = [field.name for field in dataclasses.fields(held) if field.name != "extras"]
    _rewrite(folder, **{name: getattr(held, name)[:0] for name in names})
    _refused(folder, DatasetError, "rows")
    manifest = folder / "data" / "manifest.yaml"
    manifest.write_text(re.sub("(rows|segments): 0", r"\1: 1", manifest.read_text()))
    _refused(folder, DatasetError, "the dataset has no rows; record or generate")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_dataset_is_refused(folder, share):
    path = folder / "data" / "rows.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    _refused(folder, DatasetError, "the file is truncated or was changed")


def test_truncated_columns_with_a_hash_that_fits_are_refused(folder, contract_data):
    _rewrite(folder, rewards=contract_data().rewards[:-1])
    _refused(folder, DatasetError, r"'rewards' has shape \(39,\), expected \(40,\)")


def test_dataset_without_its_rows_or_without_itself_is_refused(folder):
    _refused(folder, DatasetError, "nowhere", data="nowhere")
    (folder / "data" / "rows.npz").unlink()
    _refused(folder, DatasetError, "no such file; the dataset is incomplete")


def test_dataset_of_another_interface_is_refused(folder):
    _refused(folder, InterfaceError, "ur5e_2f85", "--robot", "ur5e_2f85")
    assert _train(folder, "--robot", "mobile_base") == 0


def test_run_is_not_resumed_on_another_dataset(folder, contract_data):
    _train(folder)
    interface = load_interface("mobile_base")
    write_dataset(folder / "more", contract_data(60), interface, {})
    with pytest.raises(ConfigError, match=r"made with dataset_hash .*, now it is"):
        _train(folder, "--resume", data="more")


def test_a_run_knows_where_its_data_lie_and_goes_on_when_they_were_moved(folder):
    _train(folder)
    (folder / "data").rename(folder / "moved")
    newest = latest_checkpoint(folder / "run" / "checkpoints")
    said = read_checkpoint(newest).metadata["dataset"]
    assert said == str((folder / "data").resolve())
    assert _train(folder, "--resume", data="moved") == 0


def test_resuming_where_no_run_is_does_not_start_one_of_full_size(folder):
    run = folder / "nowhere"
    with pytest.raises(ConfigError, match="no run to resume"):
        cli.train([str(folder / "data"), "--run-dir", str(run), "--resume"])
    assert not run.exists()


def test_run_is_not_resumed_with_another_method_or_setting_and_the_setting_is_named(
    folder,
):
    _train(folder, "--method", "trqam")
    run = [str(folder / "data"), "--run-dir", str(folder / "run"), "--resume"]
    with pytest.raises(ConfigError, match="made with method trqam, found --method fql"):
        cli.train([*run, "--method", "fql"])
    with pytest.raises(ConfigError, match=r"agent\.dual\.budget was 0\.5, now 9\.0;"):
        cli.train([*run, "--set", "agent.dual.budget=9"])


def test_shorter_dataset_than_a_chunk_is_refused(folder):
    with pytest.raises(DatasetError, match="a chunk needs 60 rows, got 40"):
        _train(folder, "--set", "agent.chunk=60")
    assert latest_checkpoint(folder / "run" / "checkpoints") is None


def test_error_reaches_the_shell_as_one_line_and_exit_code_two(folder, capsys):
    words = ["train", str(folder / "data"), "--run-dir", str(folder / "run")]
    assert command_line.main([*words, "--method", "qamm"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("qam train: ")
    assert "did you mean 'qam'?" in said
