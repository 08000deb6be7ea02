# SPDX-License-Identifier: Apache-2.0
"""Agents: what an update may touch, warm start, acting, and a bandit they must improve on."""

import dataclasses

import pytest
import torch

from qam_ros.contract.errors import ConfigError
from qam_train.agents.common import Normaliser
from qam_train.agents.flow_bc import FlowBCAgent
from qam_train.agents.qam import QAMAgent
from qam_train.checkpoint import Checkpoint, CheckpointError, write_checkpoint
from qam_train.config import AgentConfig, NetworkConfig
from qam_train.data.dataset import ChunkBatch
from qam_train.restore import agent_metadata, agent_tensors, restore_agent

SMALL = AgentConfig(
    flow_steps=4,
    chunk=3,
    critics=2,
    batch_size=16,
    lr=1e-3,
    actor=NetworkConfig((16, 16)),
    critic=NetworkConfig((16,), layer_norm=True),
)
OBSERVATION, ACTION = 5, 2


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _qam(config=SMALL, normaliser=None):
    return QAMAgent.init(config, OBSERVATION, ACTION, _generator(), normaliser)


def _batch(rows=16, h=3, seed=1):
    generator = _generator(seed)
    return ChunkBatch(
        observations=torch.randn((rows, OBSERVATION), generator=generator),
        actions=torch.rand((rows, h, ACTION), generator=generator) * 2 - 1,
        rewards=-torch.rand(rows, generator=generator),
        masks=torch.ones(rows),
        valid=torch.ones(rows),
        next_observations=torch.randn((rows, OBSERVATION), generator=generator),
    )


def _copy(agent):
    return {name: value.detach().clone() for name, value in agent.parameters.items()}


def _changed(agent, before):
    return {
        name.split("/")[0]
        for name in before
        if not torch.equal(before[name], agent.parameters[name])
    }


def test_fresh_agent_draws_flows_independently_and_copies_targets():
    agent = _qam()
    assert not torch.equal(
        agent.parameters["slow/0/weight"], agent.parameters["fast/0/weight"]
    )
    for target, online in (("target_critic", "critic"), ("target_slow", "slow")):
        assert torch.equal(
            agent.parameters[f"{target}/0/weight"],
            agent.parameters[f"{online}/0/weight"],
        )


def test_zero_temperature_leaves_policy_unchanged():
    agent = _qam(dataclasses.replace(SMALL, tau=0.0))
    agent.warm_start(agent.parameters)
    before = _copy(agent)
    metrics = agent.update(_batch(), agent.draw_noise(16, _generator()))
    assert metrics["adjoint/loss"] == 0
    assert _changed(agent, before) == {"critic", "slow"}


def test_each_loss_trains_its_own_net_alone():
    agent = _qam(dataclasses.replace(SMALL, tau=1.0))
    batch, noise = _batch(), agent.draw_noise(16, _generator())
    before = _copy(agent)
    invalid = dataclasses.replace(
        batch, valid=torch.zeros(16)
    )  # no critic and no flow loss
    metrics = agent.update(invalid, noise)
    assert metrics["critic/td_loss"] == 0
    assert metrics["flow/loss"] == 0
    assert _changed(agent, before) == {"fast"}


def test_targets_follow_the_parameters_before_the_step():
    agent = _qam(dataclasses.replace(SMALL, ema=0.25))
    with torch.no_grad():
        for value in agent.targets.values():
            value.zero_()
    before = _copy(agent)
    agent.update(_batch(), agent.draw_noise(16, _generator()))
    for name, value in agent.targets.items():
        torch.testing.assert_close(value, 0.25 * before[name.removeprefix("target_")])


def test_adjoint_matching_uses_the_first_rows_alone():
    agent = _qam(dataclasses.replace(SMALL, adjoint_batch=4))
    noise = agent.draw_noise(16, _generator())
    assert noise.rollout.shape == (3, 4, 6)
    batch = _batch()
    metrics = agent.loss(batch, noise)[1]
    other = dataclasses.replace(batch, observations=batch.observations.clone())
    other.observations[4:] = 0
    assert torch.equal(
        agent.loss(other, noise)[1]["adjoint/loss"], metrics["adjoint/loss"]
    )
    other.observations[:4] = 0
    assert not torch.equal(
        agent.loss(other, noise)[1]["adjoint/loss"], metrics["adjoint/loss"]
    )


def test_return_steps_beyond_the_chunk_enter_the_discount():
    short = dataclasses.replace(
        SMALL, rho=0.0, discount=0.5, tau=0.0, chunk=1, horizon=3
    )
    agent = _qam(short)
    with torch.no_grad():
        for name, value in agent.parameters.items():
            if "critic/" in name:
                value.zero_()
        agent.parameters["target_critic/1/bias"].fill_(8.0)
    batch = dataclasses.replace(_batch(), rewards=torch.zeros(16))
    metrics = agent.loss(batch, agent.draw_noise(16, _generator()))[1]
    torch.testing.assert_close(
        metrics["critic/td_loss"], torch.tensor((0.5**3 * 8.0) ** 2)
    )


@pytest.mark.parametrize("kind", [QAMAgent, FlowBCAgent])
def test_same_noise_gives_the_same_chunk_inside_the_box(kind):
    agent = kind.init(SMALL, OBSERVATION, ACTION, _generator())
    observations, noise = torch.randn(7, OBSERVATION), 3 * torch.randn(7, 6)
    chunk = agent.act(observations, noise)
    assert chunk.shape == (7, 3, ACTION)
    assert chunk.abs().max() <= 1
    assert torch.equal(chunk, agent.act(observations, noise))
    assert not torch.equal(chunk, agent.act(observations, -noise))


def test_statistics_enter_before_every_net():
    data = 3 * torch.randn(100, OBSERVATION) + 2
    statistics = Normaliser.of(data)
    torch.testing.assert_close(statistics.std, data.std(0, correction=0) + 0.01)
    raw, plain = _qam(normaliser=statistics), _qam()
    batch = _batch()
    standard = dataclasses.replace(
        batch,
        observations=statistics(batch.observations),
        next_observations=statistics(batch.next_observations),
    )
    noise = raw.draw_noise(16, _generator())
    torch.testing.assert_close(
        raw.loss(batch, noise)[0], plain.loss(standard, noise)[0]
    )
    acted = raw.act(batch.observations, noise.flow_start)
    torch.testing.assert_close(
        acted, plain.act(standard.observations, noise.flow_start)
    )


def test_warm_start_copies_the_cloned_flow_and_forgets_the_optimiser():
    agent, cloned = _qam(), FlowBCAgent.init(SMALL, OBSERVATION, ACTION, _generator(5))
    agent.update(_batch(), agent.draw_noise(16, _generator()))
    agent.warm_start(cloned.parameters)
    observations, noise = torch.randn(3, OBSERVATION), torch.randn(3, 6)
    assert torch.equal(agent.act(observations, noise), cloned.act(observations, noise))
    for name, value in agent.targets.items():
        assert torch.equal(value, agent.parameters[name.removeprefix("target_")])
    assert not any(value.any() for value in agent.optimizer.state().values())
    before = cloned.parameters["slow/0/weight"].detach().clone()
    agent.update(_batch(), agent.draw_noise(16, _generator()))
    assert torch.equal(cloned.parameters["slow/0/weight"], before)


def test_behaviour_cloning_lowers_its_loss():
    agent = FlowBCAgent.init(SMALL, OBSERVATION, ACTION, _generator())
    batch, generator = _batch(), _generator()
    losses = [
        agent.update(batch, agent.draw_noise(16, generator))["loss"].item()
        for _ in range(200)
    ]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


def test_deployed_net_is_the_tuned_flow_or_the_cloned_one():
    agent, cloned = _qam(), FlowBCAgent.init(SMALL, OBSERVATION, ACTION, _generator())
    assert torch.equal(
        agent.actor_parameters()["actor/2/bias"], agent.parameters["fast/2/bias"]
    )
    assert torch.equal(
        cloned.actor_parameters()["actor/0/weight"], cloned.parameters["slow/0/weight"]
    )
    assert not agent.actor_parameters()["actor/0/weight"].requires_grad


def _bandit(rows, generator):
    """One-step task: reward = first number of the chunk, actions around zero, no bootstrap."""
    actions = (0.3 * torch.randn((rows, 1, ACTION), generator=generator)).clamp(-1, 1)
    return ChunkBatch(
        observations=torch.zeros((rows, OBSERVATION)),
        actions=actions,
        rewards=actions[:, 0, 0],
        masks=torch.zeros(rows),
        valid=torch.ones(rows),
        next_observations=torch.zeros((rows, OBSERVATION)),
    )


def test_policy_moves_towards_reward_and_stays_near_the_data_elsewhere():
    """For a base N(0, 0.3^2) and Q = a_1 the tilted mean is tau 0.3^2 = 0.27 at tau = 3."""
    config = dataclasses.replace(
        SMALL, chunk=1, flow_steps=10, tau=3.0, lr=3e-3, ema=0.05, batch_size=64
    )
    agent, generator = _qam(config), _generator(2)
    for _ in range(500):
        agent.update(_bandit(64, generator), agent.draw_noise(64, generator))
    actions = agent.act(
        torch.zeros(2000, OBSERVATION), torch.randn((2000, 2), generator=generator)
    )
    mean = actions[:, 0].mean(0)
    # loose: ten Euler steps, 500 updates; the base has mean 0 +- 0.01 in both coordinates
    assert 0.12 < mean[0] < 0.45
    assert abs(mean[1]) < 0.1


@pytest.mark.parametrize("kind", [QAMAgent, FlowBCAgent])
def test_restored_agent_continues_bit_for_bit(kind, tmp_path):
    agent = kind.init(
        SMALL,
        OBSERVATION,
        ACTION,
        _generator(),
        Normaliser.of(torch.randn(50, OBSERVATION)),
    )
    noise = agent.draw_noise(16, _generator())
    agent.update(_batch(), noise)
    write_checkpoint(
        tmp_path / "a.safetensors", agent_tensors(agent), agent_metadata(agent)
    )
    again = restore_agent(tmp_path / "a.safetensors")
    assert type(again) is kind
    for one in (agent, again):
        one.update(_batch(seed=2), noise)
    first, second = agent.state_dict(), again.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_state_of_other_sizes_is_refused_with_the_first_tensor():
    state = _qam().state_dict()
    wider = _qam(dataclasses.replace(SMALL, actor=NetworkConfig((16, 17))))
    with pytest.raises(
        ConfigError, match=r"tensor '.*' has shape .*, the settings make"
    ):
        wider.load_state_dict(state)
    state.pop("observation_mean")
    with pytest.raises(ConfigError, match=r"missing .'observation_mean'"):
        _qam().load_state_dict(state)


def test_unknown_algorithm_is_named():
    metadata = {**agent_metadata(_qam()), "algorithm": "qan"}
    with pytest.raises(
        CheckpointError, match="algorithm 'qan' is not known; did you mean 'qam'"
    ):
        restore_agent(Checkpoint({}, metadata))
