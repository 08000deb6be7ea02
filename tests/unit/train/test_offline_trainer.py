# SPDX-License-Identifier: Apache-2.0
"""Offline training of every method: resuming, the cloned flow, sampling, refusals."""

import dataclasses

import pytest
import torch

from qam_ros.contract.errors import ConfigError, DatasetError
from qam_train.agents.registry import METHODS
from qam_train.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from qam_train.config import from_mapping, load_config, save_config
from qam_train.data.segments import SegmentBatch
from qam_train.loops.offline import train_offline
from qam_train.metrics import read_metrics
from qam_train.networks import net
from qam_train.offline_config import OfflineConfig
from qam_train.offline_trainer import NonFiniteError, OfflineTrainer
from qam_train.restore import restore_agent, restore_trained

NAMES = sorted(METHODS)
CLONING = [name for name in NAMES if METHODS[name].agent.behaviour_nets]
OTHERS = ["dac", "qsm", "rebrac", "rlpd"]


def _train(trainer, updates=None):
    while not trainer.complete and trainer.updates != updates:
        trainer.update()
    return trainer


def _through_a_file(path, snapshot):
    write_checkpoint(path, *snapshot)
    return read_checkpoint(path)


def _assert_same(first, second):
    assert first[1] == second[1]
    assert first[0].keys() == second[0].keys()
    assert all(torch.equal(value, second[0][name]) for name, value in first[0].items())


@pytest.mark.parametrize("name", NAMES)
def test_run_resumed_after_any_update_equals_an_uninterrupted_one_bit_for_bit(
    name, small_config, small_data, tmp_path
):
    config = small_config(name)
    whole = OfflineTrainer(config, small_data)
    held = []
    while not whole.complete:
        path = tmp_path / f"{whole.updates}.safetensors"
        held.append(_through_a_file(path, whole.checkpoint()))
        whole.update()
    assert len(held) == config.total_updates
    for checkpoint in held:
        resumed = OfflineTrainer(config, small_data)
        resumed.restore(checkpoint)
        assert resumed.stage == checkpoint.metadata["stage"]
        _assert_same(_train(resumed).checkpoint(), whole.checkpoint())


@pytest.mark.parametrize("name", CLONING)
def test_cloned_flow_stands_in_every_behaviour_net(name, small_config, small_data):
    trainer = _train(OfflineTrainer(small_config(name), small_data), 3)
    assert type(trainer.agent) is METHODS[name].agent
    cloned = net(trainer.behaviour.parameters, "slow")
    for target in trainer.agent.behaviour_nets:
        for tensor, value in cloned.items():
            twin = trainer.agent.parameters[tensor.replace("slow", target, 1)]
            assert torch.equal(twin, value)
    copies = {
        tensor.partition("/")[0]
        for tensor, value in trainer.agent.parameters.items()
        for other in cloned.values()
        if value.shape == other.shape and value.dim() > 1 and torch.equal(value, other)
    }
    assert copies == set(trainer.agent.behaviour_nets)
    assert all(value == 0 for value in trainer.agent.optimizer.steps.values())


def test_methods_without_a_flow_have_no_behaviour_stage(small_config):
    assert sorted(set(NAMES) - set(CLONING)) == OTHERS
    for name in OTHERS:
        with pytest.raises(
            ConfigError,
            match=rf"behaviour.updates: expected 0, got 4: method '{name}' has no .*fql",
        ):
            small_config(name, behaviour={"updates": 4})


def test_every_method_of_the_same_sizes_makes_and_takes_the_same_clone(
    small_config, small_data, tmp_path
):
    clones = {}
    for name in CLONING:
        trainer = _train(OfflineTrainer(small_config(name), small_data), 3)
        path = tmp_path / f"{name}.safetensors"
        clones[name] = _through_a_file(path, trainer.behaviour_checkpoint())
    for held in clones.values():
        assert held.metadata["agent"] == clones["fql"].metadata["agent"]
        for tensor, value in clones["fql"].tensors.items():
            assert torch.equal(value, held.tensors[tensor])
    own = _train(OfflineTrainer(small_config("qam"), small_data))
    taken = OfflineTrainer(small_config("qam"), small_data)
    taken.restore(clones["fql"])
    assert taken.behaviour is not None
    _assert_same(_train(taken).checkpoint(), own.checkpoint())


def test_clone_of_other_settings_is_refused(small_config, small_data):
    trainer = _train(OfflineTrainer(small_config("fql"), small_data), 3)
    held = Checkpoint(*trainer.behaviour_checkpoint())
    for changes, message in (
        ({"seed": 8}, "seed was 7, now 8"),
        ({"agent": {"actor": {"widths": [4]}}}, r"clone\.actor\.widths was"),
        ({"behaviour": {"updates": 2}}, r"behaviour\.updates was 3, now 2"),
    ):
        other = OfflineTrainer(small_config("qam", **changes), small_data)
        with pytest.raises(ConfigError, match=message):
            other.restore(held)


def test_other_settings_of_the_method_do_not_resume_it(small_config, small_data):
    held = Checkpoint(*OfflineTrainer(small_config("rlpd"), small_data).checkpoint())
    other = OfflineTrainer(small_config("rebrac"), small_data)
    with pytest.raises(ConfigError, match="method was rlpd, now rebrac"):
        other.restore(held)


def test_rql_draws_segments_and_the_rest_do_not(small_config, small_data):
    for name in NAMES:
        agent = METHODS[name].agent.init(
            small_config(name).agent, 2, 2, torch.Generator()
        )
        batch = agent.draw_batch(small_data, torch.Generator())
        assert isinstance(batch, SegmentBatch) == (name == "rql")


@pytest.mark.parametrize("name", NAMES)
def test_divergence_names_term_update_and_stage_and_leaves_the_last_good_checkpoint(
    name, small_config, small_data, tmp_path, monkeypatch
):
    config = small_config(name, agent={"rho": 0.5})
    update, broken = OfflineTrainer.update, config.behaviour.updates + 4

    def poisoned(trainer, *count):
        if trainer.updates == broken - 1:
            trainer.dataset.rewards[:] = float("inf")
            trainer.dataset.observations[:] = float("nan")
        return update(trainer, *count)

    monkeypatch.setattr(OfflineTrainer, "update", poisoned)
    with pytest.raises(
        NonFiniteError, match=rf"update {broken} \(offline\).* not finite: .*loss"
    ) as caught:
        train_offline(config, small_data, tmp_path, progress=False)
    assert caught.value.details["stage"] == "offline"
    assert any("/" in term for term in caught.value.details["terms"])
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    held = read_checkpoint(newest)
    assert broken - 2 <= held.metadata["update"] < broken
    assert all(value.double().isfinite().all() for value in held.tensors.values())
    restore_trained(newest)


def test_replaced_rows_are_trained_on_and_must_fit(small_config, small_data):
    trainer = OfflineTrainer(small_config("rlpd"), small_data)
    shifted = dataclasses.replace(small_data, rewards=small_data.rewards + 100)
    before = trainer.update()
    trainer.dataset = shifted
    assert trainer.update()["critic/td_loss"] > 100 * before["critic/td_loss"]
    narrow = dataclasses.replace(small_data, actions=small_data.actions[:, :1])
    with pytest.raises(DatasetError, match=r"\(2, 2\) numbers as before, got \(2, 1\)"):
        trainer.dataset = narrow


@pytest.mark.parametrize("name", ["rlpd", "qam"])
def test_run_without_updates_leaves_the_fresh_agent(
    name, small_config, small_data, tmp_path
):
    nothing = {"updates": 0}
    config = small_config(name, behaviour=nothing, offline=nothing)
    result = train_offline(config, small_data, tmp_path, progress=False)
    path = tmp_path / "checkpoints" / "checkpoint-000000000.safetensors"
    found = restore_trained(path)
    assert all(
        torch.equal(value, found.parameters[tensor])
        for tensor, value in result.agent.parameters.items()
    )
    train_offline(config, small_data, tmp_path, resume=True, progress=False)


def test_clone_alone_leaves_the_warm_started_agent(small_config, small_data, tmp_path):
    config = small_config("fql", offline={"updates": 0})
    train_offline(config, small_data, tmp_path, progress=False)
    agent = restore_trained(
        tmp_path / "checkpoints" / "checkpoint-000000003.safetensors"
    )
    cloned = restore_agent(tmp_path / "behaviour.safetensors")
    assert torch.equal(
        agent.parameters["flow/0/weight"], cloned.parameters["slow/0/weight"]
    )
    with pytest.raises(ConfigError, match="holds the behaviour-cloning stage"):
        restore_trained(tmp_path / "behaviour.safetensors")


FAMILY = ["qam", "qam_edit", "qam_onestep", "trqam", "sqam"]
KL = {"dual/kl_estimate", "dual/kl_inner"}
DUAL = {"dual/budget", "dual/kl_average", "dual/lambda", "dual/multiplier", "dual/cost"}


@pytest.mark.parametrize("name", FAMILY)
def test_path_kl_and_trust_region_reach_the_metrics_file(
    name, small_config, small_data, tmp_path
):
    train_offline(small_config(name), small_data, tmp_path, progress=False)
    header, *lines = (tmp_path / "metrics.csv").read_text().splitlines()
    expected = KL | DUAL if name in ("trqam", "sqam") else KL
    assert {c for c in header.split(",") if c.startswith("dual/")} - {
        "dual/lambda_in_loss"
    } == expected
    assert len(lines) == 8
    rows = read_metrics(tmp_path / "metrics.jsonl")[3:]
    assert rows[0]["dual/kl_estimate"] == 0.0  # the tuned flow starts as its base
    for row in rows[1:]:
        assert 0.0 < row["dual/kl_inner"] < row["dual/kl_estimate"]
        if "dual/lambda" in expected:
            assert row["dual/budget"] == 0.5
            assert row["dual/lambda"] == pytest.approx(3 * row["dual/multiplier"])


def test_settings_of_every_method_survive_a_file(small_config, tmp_path):
    for name in NAMES:
        config = small_config(name)
        save_config(config, tmp_path / "config.yaml")
        assert load_config(OfflineConfig, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"method": "trqan"},
            r"config: method 'trqan' is not known; did you mean 'trq",
        ),
        ({"method": 3}, r"method '3' is not known"),
        ({"method": "fql", "agent": {"tau": 1.0}}, r"agent: unknown key 'tau'"),
        ({"method": "fql", "agent": {"distil": 1.0}}, r"did you mean 'distill'\?"),
        ({"methd": "fql"}, r"unknown key 'methd'; did you mean 'method'\?"),
        ({"method": "sqam", "agent": {"dual": {"bugdet": 1}}}, "did you mean 'budget'"),
        (
            {"method": "rlpd", "agent": {"alpha_start": 0}},
            "alpha_start: expected a pos",
        ),
    ],
)
def test_wrong_method_or_setting_names_the_nearest(mapping, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(OfflineConfig, mapping)


def test_settings_follow_the_method_where_none_are_given():
    for name in NAMES:
        config = from_mapping(OfflineConfig, {"method": name})
        assert config.agent == METHODS[name].config()
    with pytest.raises(ConfigError, match="expected the FQLConfig of method 'fql'"):
        OfflineConfig(method="fql")
