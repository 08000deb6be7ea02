# SPDX-License-Identifier: Apache-2.0
"""Every method of the registry: updates, targets, acting, checkpoints, settings, a small task."""

import dataclasses

import pytest
import torch

from qam_ros.contract.errors import ConfigError
from qam_train.agents.common import Normaliser
from qam_train.agents.qam_edit import EditConfig
from qam_train.agents.registry import METHODS, find_method
from qam_train.checkpoint import write_checkpoint
from qam_train.config import NetworkConfig, from_mapping, to_mapping
from qam_train.data.dataset import ChunkBatch
from qam_train.restore import agent_metadata, agent_tensors, restore_agent

OBSERVATION, ACTION, ROWS = 5, 2, 16
NAMES = sorted(METHODS)
SMALL = {
    "chunk": 3,
    "critics": 2,
    "batch_size": ROWS,
    "lr": 1e-3,
    "actor": NetworkConfig((16, 16)),
    "critic": NetworkConfig((16,), layer_norm=True),
}
FEW = {
    "flow_steps": 4,
    "diffusion_steps": 4,
    "time_code": 8,
    "bridges": 5,
    "noise": 0.2,
}


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _config(name, **changes):
    kind = METHODS[name].config
    known = {f.name for f in dataclasses.fields(kind)}
    few = {k: v for k, v in FEW.items() if k in known}
    return kind(**{**SMALL, **few, **changes})


def _agent(name, normaliser=None, **changes):
    method = METHODS[name]
    return method.agent.init(
        _config(name, **changes), OBSERVATION, ACTION, _generator(), normaliser
    )


def _batch(rows=ROWS, h=3, seed=1):
    generator = _generator(seed)
    return ChunkBatch(
        observations=torch.randn((rows, OBSERVATION), generator=generator),
        actions=torch.rand((rows, h, ACTION), generator=generator) * 2 - 1,
        rewards=-torch.rand(rows, generator=generator),
        masks=torch.ones(rows),
        valid=torch.ones(rows),
        next_observations=torch.randn((rows, OBSERVATION), generator=generator),
    )


def test_registry_holds_every_method_under_its_own_name():
    assert set(NAMES) >= {
        "qam", "qam_edit", "qam_onestep", "trqam", "sqam", "bam", "fql", "ifql", "rebrac",
        "fawac", "fbrac", "cgql", "cgql_m", "cgql_l", "qsm", "dac", "dsrl", "fedit", "rlpd",
        "rql", "flow_bc",
    }  # fmt: skip
    assert all(METHODS[name].agent.algorithm == name for name in NAMES)


def test_unknown_method_names_the_nearest():
    with pytest.raises(
        ConfigError, match="method 'trqan' is not known; did you mean 'trqam'"
    ):
        find_method("trqan")


@pytest.mark.parametrize("name", NAMES)
def test_update_moves_every_net_and_reports_finite_numbers(name):
    agent = _agent(name)
    before = {n: v.detach().clone() for n, v in agent.parameters.items()}
    generator = _generator(2)
    for seed in (1, 2):
        metrics = agent.update(_batch(seed=seed), agent.draw_noise(ROWS, generator))
        assert all(torch.isfinite(v).all() for v in metrics.values())
        assert metrics["loss"].dim() == 0
    moved = {n for n, v in agent.parameters.items() if not torch.equal(before[n], v)}
    nets = {n.rpartition("/")[0] for n in agent.parameters}
    assert {n.rpartition("/")[0] for n in moved} == nets


@pytest.mark.parametrize("name", NAMES)
def test_targets_start_equal_to_their_nets(name):
    agent = _agent(name)
    for target, online in agent.averages.items():
        names = [n for n in agent.targets if n.startswith(f"{target}/")]
        assert names
        for n in names:
            twin = agent.parameters[n.replace(target, online, 1)]
            assert torch.equal(agent.targets[n], twin)


@pytest.mark.parametrize("name", NAMES)
def test_same_noise_gives_the_same_chunk_inside_the_box(name):
    agent = _agent(name)
    observations = torch.randn(7, OBSERVATION)
    noise = agent.draw_action_noise(7, _generator(3))
    chunk = agent.act(observations, noise)
    assert chunk.shape == (7, 3, ACTION)
    assert chunk.abs().max() <= 1
    assert not chunk.requires_grad
    assert torch.equal(chunk, agent.act(observations, noise))
    assert not torch.equal(chunk, agent.act(observations, -noise))
    assert not torch.equal(chunk, agent.act(-observations, noise))


@pytest.mark.parametrize("name", NAMES)
def test_best_of_many_is_one_of_the_candidates(name):
    agent = _agent(name)
    observations = torch.randn(6, OBSERVATION)
    noise = torch.randn(4, 6, agent.noise_width)
    chosen = agent.act(observations, noise)
    each = torch.stack([agent.act(observations, one) for one in noise])
    distance = (each - chosen).abs().amax((-2, -1))  # (4, 6)
    assert distance.amin(0).max() < 1e-5
    if name != "flow_bc":
        assert distance.argmin(0).unique().numel() > 1


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_not_valid_do_not_train_the_critic(name):
    agent = _agent(name)
    noise = agent.draw_noise(ROWS, _generator())
    invalid = dataclasses.replace(_batch(), valid=torch.zeros(ROWS))
    metrics = agent.loss(invalid, noise)[1]
    losses = {"critic/td_loss", "value/loss"} if name == "rql" else {"critic/td_loss"}
    assert all(metrics[n] == 0 for n in losses & metrics.keys())


@pytest.mark.parametrize("name", NAMES)
def test_restored_agent_continues_bit_for_bit(name, tmp_path):
    agent = _agent(name, Normaliser.of(torch.randn(50, OBSERVATION)))
    noise = agent.draw_noise(ROWS, _generator())
    for seed in (
        1,
        2,
        3,
    ):  # an odd count: ReBRAC moves its targets in every second update
        agent.update(_batch(seed=seed), noise)
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, agent_tensors(agent), agent_metadata(agent))
    again = restore_agent(path)
    assert type(again) is METHODS[name].agent
    assert again.config == agent.config
    for one in (agent, again):
        one.update(_batch(seed=4), noise)
        one.update(_batch(seed=5), noise)
    first, second = agent.state_dict(), again.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_a_mapping(name):
    config = METHODS[name].config()
    assert from_mapping(METHODS[name].config, to_mapping(config)) == config
    with pytest.raises(ConfigError, match=r"unknown key 'rhoo'; did you mean 'rho'\?"):
        from_mapping(METHODS[name].config, {"rhoo": 1.0})


@pytest.mark.parametrize("name", NAMES)
def test_statistics_enter_before_every_net(name):
    statistics = Normaliser.of(3 * torch.randn(100, OBSERVATION) + 2)
    raw, plain = _agent(name, statistics), _agent(name)
    batch = _batch()
    standard = dataclasses.replace(
        batch,
        observations=statistics(batch.observations),
        next_observations=statistics(batch.next_observations),
    )
    noise = raw.draw_noise(ROWS, _generator())
    ours, theirs = raw.loss(batch, noise)[0], plain.loss(standard, noise)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_longer_return_than_chunk_is_discounted_over_its_steps(name):
    agent = _agent(name, horizon=7, discount=0.5)
    assert agent.chunk_discount == 0.5**7
    agent.loss(_batch(h=7), agent.draw_noise(ROWS, _generator()))


GREEDY = {  # settings with which a short run moves towards the reward
    "qam": {"tau": 10.0}, "qam_edit": {"tau": 10.0}, "qam_onestep": {"tau": 10.0, "distill": 1.0},
    "bam": {"tau": 30.0}, "fql": {"distill": 1.0}, "ifql": {"best_of": 16},
    "fawac": {"tau": 6.0}, "fedit": {"edit": EditConfig(scale=0.5)}, "cgql": {"guidance": 0.3},
    "cgql_m": {"guidance": 0.3}, "cgql_l": {"guidance": 0.3, "noisy": 0.01},
    "dsrl": {"noise_scale": 2.0}, "rlpd": {"alpha_start": 0.05}, "dac": {"alpha": 0.3}, "qsm": {"alpha": 1.0, "tau": 3.0},
    "rql": {"alpha": 0.05, "actor_ema": 0.05},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "flow_bc"])
def test_policy_moves_towards_reward(name):
    """One-step task: reward = first number of the chunk, data N(0, 0.3^2) in both numbers."""
    steps = {
        k: 10 for k in ("flow_steps", "diffusion_steps") if k in vars(_config(name))
    }
    changes = GREEDY.get(name, {}) | steps
    agent = _agent(name, chunk=1, lr=3e-3, ema=0.05, batch_size=64, **changes)
    generator = _generator(2)
    for _ in range(500):
        actions = (0.3 * torch.randn((64, 1, ACTION), generator=generator)).clamp(-1, 1)
        nothing = torch.ones((64, OBSERVATION))
        batch = ChunkBatch(
            nothing, actions, actions[:, 0, 0], torch.zeros(64), torch.ones(64), nothing
        )
        agent.update(batch, agent.draw_noise(64, generator))
    noise = agent.draw_action_noise(1000, generator)
    mean = agent.act(torch.ones(1000, OBSERVATION), noise)[:, 0].mean(0)
    assert mean[0] > 0.07
    assert mean[0] > abs(mean[1]) + 0.05
