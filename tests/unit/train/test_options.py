# SPDX-License-Identifier: Apache-2.0
"""Settings that leave the released behaviour: it is the default, and each does what it says."""

import dataclasses
import itertools

import pytest
import torch

from qam_ros.contract.errors import ConfigError
from qam_train import diffusion
from qam_train.agents.rebrac import ReBRACConfig
from qam_train.agents.registry import METHODS
from qam_train.config import NetworkConfig, from_mapping
from qam_train.data.dataset import ChunkBatch

DOUBLE = torch.float64
ROWS = 12
SMALL = {
    "chunk": 3,
    "critics": 2,
    "batch_size": ROWS,
    "lr": 1e-3,
    "flow_steps": 3,
    "diffusion_steps": 4,
    "time_code": 4,
    "bridges": 3,
    "actor": NetworkConfig((12, 12)),
    "critic": NetworkConfig((12,), layer_norm=True),
}
MASKABLE = ["qam", "qam_edit", "qam_onestep", "trqam", "sqam", "bam", "fql", "fedit"]


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _agent(name, **settings):
    """An agent in float64, away from its start."""
    method = METHODS[name]
    known = {field.name for field in dataclasses.fields(method.config)}
    numbers = {k: v for k, v in SMALL.items() if k in known} | settings
    drawn = method.agent.init(method.config(**numbers), 5, 2, _generator())
    generator = _generator(1)
    nets = {
        name: value.detach().double()
        + 0.1 * torch.randn(value.shape, generator=generator, dtype=DOUBLE)
        for name, value in drawn.parameters.items()
    }
    statistics = dataclasses.replace(
        drawn.normaliser,
        mean=drawn.normaliser.mean.double(),
        std=drawn.normaliser.std.double(),
    )
    return type(drawn)(drawn.config, nets, statistics)


def _batch(seed=1, valid=None):
    generator = _generator(seed)
    draw = {"generator": generator, "dtype": DOUBLE}
    return ChunkBatch(
        observations=torch.randn((ROWS, 5), **draw),
        actions=torch.rand((ROWS, 3, 2), **draw) * 2 - 1,
        rewards=-torch.rand(ROWS, **draw),
        masks=torch.ones(ROWS, dtype=DOUBLE),
        valid=torch.ones(ROWS, dtype=DOUBLE) if valid is None else valid,
        next_observations=torch.randn((ROWS, 5), **draw),
    )


def _noise(agent, seed=2):
    drawn = agent.draw_noise(ROWS, _generator(seed))
    return type(drawn)(
        **{k: v.double() if v is not None else None for k, v in vars(drawn).items()}
    )


def _gradients(agent, batch, noise):
    loss = agent.loss(batch, noise)[0]
    found = torch.autograd.grad(loss, list(agent.trained.values()))
    return dict(zip(agent.trained, found, strict=True))


def _first_half(batch, noise):
    """The first half of the rows; a rollout's noise has its rows in the second axis."""
    half = ROWS // 2
    short = {k: v[:half] for k, v in vars(batch).items()}
    drawn = {
        k: v if v is None else v[:, :half] if v.dim() == 3 else v[:half]
        for k, v in vars(noise).items()
    }
    return type(batch)(**short), type(noise)(**drawn)


def _half_valid():
    return (torch.arange(ROWS) < ROWS // 2).double()


def _assert_close(ours, theirs):
    """Rounding of sums in another order."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", MASKABLE)
def test_rows_that_are_not_valid_improve_the_policy_by_default(name):
    """Only critic and behaviour flow learn from valid rows alone."""
    agent = _agent(name)
    noise = _noise(agent)
    plain = _gradients(agent, _batch(), noise)
    half = _gradients(agent, _batch(valid=_half_valid()), noise)
    behaviour = "flow/" if name in ("fql", "fedit") else "slow/"
    weighted = ("critic/", behaviour)
    for key, value in plain.items():
        assert torch.equal(half[key], value) != key.startswith(weighted), key


@pytest.mark.parametrize("name", MASKABLE)
def test_masked_row_has_no_gradient_and_the_mean_stays_over_all_rows(name):
    """Half of the rows valid: half the gradient of a batch of these rows alone."""
    agent = _agent(name, masked=True)
    noise, batch = _noise(agent), _batch(valid=_half_valid())
    alone = _gradients(agent, *_first_half(batch, noise))
    found = _gradients(agent, batch, noise)
    _assert_close(found, {key: 0.5 * value for key, value in alone.items()})
    assert all(value.any() for value in found.values())


@pytest.mark.parametrize("name", MASKABLE)
def test_masked_changes_nothing_where_all_rows_are_valid(name):
    plain, masked = _agent(name), _agent(name, masked=True)
    noise = _noise(plain)
    ours, theirs = (_gradients(agent, _batch(), noise) for agent in (plain, masked))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_masked_applies_to_the_first_rows_of_adjoint_matching():
    agent = _agent("qam", masked=True, adjoint_batch=4)
    noise = _noise(agent)
    for valid, learns in ((_half_valid(), True), (1.0 - _half_valid(), False)):
        found = _gradients(agent, _batch(valid=valid), noise)
        assert bool(found["fast/2/bias"].any()) == learns
        assert found["slow/2/bias"].any()


def _trained(agent, updates):
    """State after each update."""
    states = []
    for seed in range(updates):
        agent.update(_batch(seed), _noise(agent, seed))
        state = agent.state_dict()
        states.append({name: value.clone() for name, value in state.items()})
    return states


def _moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def _of_actor(state):
    return {name for name in state if "/actor/" in name}


def test_actor_learns_in_every_update_by_default():
    states = _trained(_agent("rebrac"), 3)
    for before, after in itertools.pairwise(states):
        assert _of_actor(before) <= _moved(before, after)


@pytest.mark.parametrize("every", [2, 3])
def test_delayed_actor_and_its_moments_stand_still_between_its_steps(every):
    states = _trained(_agent("rebrac", actor_every=every), 2 * every + 1)
    actor, critic = _of_actor(states[0]), {n for n in states[0] if "/critic/" in n}
    for index in range(1, len(states)):  # update index + 1, counted from 1
        moved = _moved(states[index - 1], states[index])
        assert critic <= moved
        assert actor & moved == (actor if (index + 1) % every == 0 else set())
    assert states[-1]["optimizer/step/actor/0/bias"] == 2
    assert states[-1]["optimizer/step/critic/0/bias"] == 2 * every + 1


def test_delayed_actor_steps_as_one_that_learns_from_these_updates_alone():
    """First step of both, at the same parameters: the moments of the delayed one are fresh."""
    delayed, plain = _agent("rebrac", actor_every=2), _agent("rebrac")
    delayed.update(_batch(0), _noise(delayed, 0))
    plain.load_state_dict(
        plain.state_dict() | {
            n: v for n, v in delayed.state_dict().items() if not n.startswith("optim")
        }
    )  # fmt: skip
    for agent in (delayed, plain):
        agent.update(_batch(1), _noise(agent, 1))
    for name, value in delayed.parameters.items():
        if name.startswith("actor/"):
            assert torch.equal(value, plain.parameters[name])


def test_update_without_the_actor_reports_the_gradient_of_the_critic_alone():
    agent = _agent("rebrac", actor_every=2)
    batch, noise = _batch(), _noise(agent)
    metrics = agent.loss(batch, noise)[1]
    assert metrics["loss"] == metrics["critic/td_loss"]
    found = _gradients(agent, batch, noise)
    assert all(v.any() == n.startswith("critic/") for n, v in found.items())


def _played(agent):
    observations = _batch().observations
    noise = agent.draw_action_noise(ROWS, _generator(4)).double()
    return agent.act(observations, noise), agent.explore(observations, noise)


def test_exploration_noise_acts_in_evaluation_by_default():
    agent = _agent("rebrac", noise=0.2)
    acted, explored = _played(agent)
    assert torch.equal(acted, explored)
    assert agent.deployment().noise == 0.2


def test_evaluation_noise_of_zero_leaves_exploration_and_the_target_as_they_are():
    plain = _agent("rebrac", noise=0.2)
    quiet = _agent("rebrac", noise=0.2, evaluation_noise=0.0)
    (_, explored), (acted, still_explored) = _played(plain), _played(quiet)
    assert torch.equal(explored, still_explored)
    again = quiet.act(_batch().observations, torch.ones(ROWS, 6, dtype=DOUBLE))
    assert torch.equal(acted, again)  # whatever the draw
    assert not torch.equal(acted, explored)
    assert quiet.deployment().noise == 0.0
    batch, noise = _batch(), _noise(plain)
    assert torch.equal(plain.loss(batch, noise)[0], quiet.loss(batch, noise)[0])


def test_negative_noise_of_evaluation_is_refused():
    with pytest.raises(ConfigError, match="evaluation_noise: expected a number >= 0"):
        from_mapping(ReBRACConfig, {"evaluation_noise": -0.1})
    assert from_mapping(ReBRACConfig, {"evaluation_noise": None}).acting_noise == 0.0


SAMPLERS = {"jump": diffusion.jump_sample, "posterior": diffusion.posterior_sample}


@pytest.mark.parametrize("sampler", [None, "jump", "posterior"])
def test_qsm_plays_bootstraps_and_deploys_the_sampler_of_its_settings(sampler):
    agent = _agent("qsm", **({} if sampler is None else {"sampler": sampler}))
    name = sampler or "jump"
    s = _batch().next_observations
    noise = agent.draw_action_noise(ROWS, _generator(4)).double()
    x, *steps = noise.split(6, -1)

    def predictor(x, k):
        time = torch.full((ROWS, 1), float(k), dtype=DOUBLE)
        return diffusion.predicted_noise(agent.constant, "actor", s, x, time)

    expected = SAMPLERS[name](predictor, agent.plan, x, torch.stack(steps))
    assert torch.equal(agent.act(s, noise).flatten(1), expected)
    assert torch.equal(agent.next_action(_batch(), noise), expected)
    assert agent.deployment().sampler == name


def test_samplers_of_qsm_differ_and_an_unknown_one_is_refused():
    noise = _agent("qsm").draw_action_noise(ROWS, _generator(4)).double()
    jump, posterior = (
        _agent("qsm", sampler=name).act(_batch().observations, noise)
        for name in SAMPLERS
    )
    assert not torch.allclose(jump, posterior, atol=0.01)
    with pytest.raises(ConfigError, match="expected one of"):
        from_mapping(METHODS["qsm"].config, {"sampler": "ancestral"})
