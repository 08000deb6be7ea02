# SPDX-License-Identifier: Apache-2.0
"""Online training of every method: resuming, state carried over, shares, the online budget."""

import numpy as np
import pytest
import torch

from qam_ros.contract.errors import ConfigError
from qam_ros.contract.interface import load_interface
from qam_ros.contract.transition import transition_dtype
from qam_train.agents.registry import METHODS
from qam_train.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from qam_train.config import from_mapping
from qam_train.data.segments import SegmentBatch
from qam_train.learner_config import LearnerConfig
from qam_train.offline_trainer import NonFiniteError, OfflineTrainer
from qam_train.online_trainer import OnlineTrainer
from qam_train.restore import restore_agent

NAMES = sorted(METHODS)
WITH_DUAL = ["sqam", "trqam"]
ONLINE = 1000.0  # observations of online rows


@pytest.fixture(scope="module")
def rows():
    """Transitions of three episodes."""
    lengths = (7, 9, 8)
    found = np.zeros(sum(lengths), transition_dtype(load_interface("mobile_base")))
    rng = np.random.default_rng(1)
    found["session"] = 1
    found["seq"] = np.arange(found.size)
    found["episode"] = np.repeat(np.arange(3), lengths)
    found["step"] = np.concatenate([np.arange(n) for n in lengths])
    found["observation"] = rng.normal(size=(found.size, 2)) + ONLINE
    found["executed"] = rng.uniform(-1, 1, (found.size, 2))
    found["reward"] = -1.0
    last = np.cumsum(lengths) - 1
    found["has_next"][last] = found["truncated"][last] = 1
    found["next_observation"][last] = rng.normal(size=(3, 2)) + ONLINE
    return found


@pytest.fixture
def trained(small_config, small_data):
    """Makes the agent after a few offline updates."""

    def make(name):
        trainer = OfflineTrainer(small_config(name), small_data)
        while not trainer.complete:
            trainer.update()
        return trainer.agent

    return make


def _learner_config(**settings):
    numbers = {"online_steps": 24, "start_rows": 4, "lr_start": 1e-3, "lr_end": 1e-4}
    return LearnerConfig(**(numbers | settings))


def _feed(trainer, rows):
    for row in range(trainer.rows, rows.size):
        trainer.extend(rows[row : row + 1])
        while trainer.due > 0:
            trainer.update()
    return trainer


@pytest.mark.parametrize("name", NAMES)
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    name, trained, small_data, rows, tmp_path
):
    config = _learner_config()
    whole = _feed(OnlineTrainer(config, trained(name), small_data), rows).checkpoint()
    assert whole[1]["update"] == 20
    first = _feed(OnlineTrainer(config, trained(name), small_data), rows[:13])
    write_checkpoint(tmp_path / "a.safetensors", *first.checkpoint())
    held = read_checkpoint(tmp_path / "a.safetensors")
    second = OnlineTrainer(config, trained(name), small_data)
    second.restore(held)
    for row in range(13):  # as the learner reads its log again
        second.extend(rows[row : row + 1])
    again = _feed(second, rows).checkpoint()
    assert again[1] == whole[1]
    assert again[0].keys() == whole[0].keys()
    assert all(torch.equal(value, again[0][n]) for n, value in whole[0].items())


@pytest.mark.parametrize("name", NAMES)
def test_optimiser_and_trust_region_go_on_from_offline_training(
    name, trained, small_data, rows
):
    agent = trained(name)
    before = {n: v.detach().clone() for n, v in agent.state_dict().items()}
    trainer = OnlineTrainer(_learner_config(), agent, small_data)
    now = trainer.agent.state_dict()
    assert all(torch.equal(value, now[n]) for n, value in before.items())
    _feed(trainer, rows)
    now = trainer.agent.state_dict()
    counts = {float(v) for n, v in now.items() if n.startswith("optimizer/step/")}
    assert counts == {25.0}  # five offline, twenty online
    if name in WITH_DUAL:
        assert before["dual/multiplier"] != 1.0
        assert not torch.equal(before["dual/kl"], now["dual/kl"])


@pytest.mark.parametrize("name", WITH_DUAL)
def test_online_budget_takes_over_and_the_multiplier_goes_on(
    name, trained, small_data, rows
):
    agent = trained(name)
    before = {n: v.clone() for n, v in agent.state_dict().items() if "dual/" in n}
    trainer = OnlineTrainer(_learner_config(budget=3.0), agent, small_data)
    assert agent.config.dual.budget == 3.0
    assert all(torch.equal(v, agent.state_dict()[n]) for n, v in before.items())
    trainer.extend(rows)
    assert trainer.update()["dual/budget"] == 3.0
    held = Checkpoint(*trainer.checkpoint())
    again = OnlineTrainer(_learner_config(budget=3.0), trained(name), small_data)
    again.restore(held)
    assert again.agent.config.dual.budget == 3.0
    other = OnlineTrainer(_learner_config(budget=1.0), trained(name), small_data)
    with pytest.raises(ConfigError, match=r"budget = 3.0, now it is 1.0"):
        other.restore(held)
    plain = OnlineTrainer(_learner_config(), trained(name), small_data)
    assert plain.agent.config.dual.budget == 0.5


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(WITH_DUAL)))
def test_budget_of_a_method_without_trust_region_is_refused(name, trained, small_data):
    with pytest.raises(
        ConfigError, match=f"method '{name}' has no trust region to give a budget of 2"
    ):
        OnlineTrainer(_learner_config(budget=2.0), trained(name), small_data)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_budget_must_be_positive(value):
    with pytest.raises(ConfigError, match="budget: expected a positive number"):
        from_mapping(LearnerConfig, {"budget": value})


@pytest.mark.parametrize("name", ["rlpd", "rql"])
def test_half_of_each_batch_is_online(name, trained, small_data, rows):
    config = _learner_config(online_fraction=0.5)
    trainer = OnlineTrainer(config, trained(name), small_data)
    trainer.extend(rows)
    batch = trainer.agent.draw_batch(trainer.stream.replay, torch.Generator())
    assert (batch.observations[:, 0] > ONLINE / 2).sum() == 4


def test_rql_weighs_both_parts_of_the_replay_by_their_episodes(
    trained, small_data, rows
):
    trainer = OnlineTrainer(_learner_config(), trained("rql"), small_data)
    trainer.extend(rows)  # three episodes online, two offline
    sampler = trainer.agent.sampler()
    generator = torch.Generator().manual_seed(0)
    batch = trainer.stream.replay.draw(sampler, 4000, generator)
    assert isinstance(batch, SegmentBatch)
    share = (batch.observations[:, 0] > ONLINE / 2).float().mean().item()
    assert share == pytest.approx(0.6, abs=0.03)  # four standard errors


def test_rql_does_not_learn_from_chunks_that_touch_a_masked_row(
    trained, small_data, rows
):
    masked = rows.copy()
    masked["masked"][10] = 1  # in the second episode
    config = _learner_config(online_fraction=1.0)
    trainer = OnlineTrainer(config, trained("rql"), small_data)
    trainer.extend(masked)
    sampler = trainer.agent.sampler()
    batch = trainer.stream.replay.draw(sampler, 500, torch.Generator())
    start = {float(o): i for i, o in enumerate(rows["observation"][:, 0])}
    first = torch.tensor([start[float(o)] for o in batch.observations[:, 0]])
    touched = (first == 9) | (first == 10)
    assert touched.any()
    assert (batch.valid[touched] == 0).all()
    assert (batch.inside[touched] == 0).all()
    assert (batch.valid[~touched] == 1).any()


def test_divergence_online_names_the_term(trained, small_data, rows):
    trainer = OnlineTrainer(_learner_config(), trained("fql"), small_data)
    small_data.rewards[:] = float("nan")
    trainer.extend(rows)
    with pytest.raises(NonFiniteError, match=r"update 1 \(online\).*critic/td_loss"):
        trainer.update()


def test_fresh_agent_learns_online_alone(small_config, small_data, rows):
    nothing = {"updates": 0}
    fresh = OfflineTrainer(small_config("rlpd", offline=nothing), small_data)
    assert fresh.complete
    agent = restore_agent(Checkpoint(*fresh.checkpoint()))
    config = _learner_config(online_fraction=0.5)
    trainer = _feed(OnlineTrainer(config, agent, small_data), rows)
    assert trainer.complete
    assert trainer.updates == 20
