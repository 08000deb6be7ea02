# SPDX-License-Identifier: Apache-2.0
"""The adjoint-matching family: identities between its members, and every combination of parts."""

import dataclasses
import itertools

import pytest
import torch

from qam_train import adjoint, dual, flow
from qam_train.agents.adjoint_family import AdjointAgent
from qam_train.agents.adjoint_parts import (
    BridgePath,
    DualTemperature,
    FixedTemperature,
    MemorylessPath,
    Parts,
    lean,
    no_penalty,
    scalar,
    value_penalty,
)
from qam_train.agents.heads import EditHead, NoHead, OneStepHead
from qam_train.agents.qam import QAMAgent
from qam_train.agents.qam_edit import EditConfig
from qam_train.agents.sqam import SQAMConfig
from qam_train.agents.trqam import TRQAMAgent, TRQAMConfig
from qam_train.config import AgentConfig, NetworkConfig
from qam_train.data.dataset import ChunkBatch

DOUBLE = torch.float64
SIZES = {
    "flow_steps": 4,
    "chunk": 3,
    "critics": 2,
    "batch_size": 8,
    "actor": NetworkConfig((12, 12)),
    "critic": NetworkConfig((12,), layer_norm=True),
}


@dataclasses.dataclass(frozen=True)
class EverythingConfig(SQAMConfig):
    """Numbers of every part."""

    tau: float = 1.0
    distill: float = 3.0
    edit: EditConfig = dataclasses.field(default_factory=EditConfig)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _batch(rows=8, dtype=torch.float32):
    generator = _generator(1)
    return ChunkBatch(
        observations=torch.randn((rows, 5), generator=generator, dtype=dtype),
        actions=torch.rand((rows, 3, 2), generator=generator, dtype=dtype) * 2 - 1,
        rewards=-torch.rand(rows, generator=generator, dtype=dtype),
        masks=torch.ones(rows, dtype=dtype),
        valid=torch.ones(rows, dtype=dtype),
        next_observations=torch.randn((rows, 5), generator=generator, dtype=dtype),
    )


def _doubled(kind, config):
    """An agent in float64."""
    drawn = kind.init(config, 5, 2, _generator())
    parameters = {name: v.detach().double() for name, v in drawn.parameters.items()}
    statistics = dataclasses.replace(
        drawn.normaliser,
        mean=drawn.normaliser.mean.double(),
        std=drawn.normaliser.std.double(),
    )
    return kind(config, parameters, statistics)


def _double_noise(noise):
    return type(noise)(
        **{k: None if v is None else v.double() for k, v in vars(noise).items()}
    )


@pytest.mark.parametrize("weight", [0.03, 0.5, 3.0, 30.0])
def test_trust_region_loss_is_lambda_times_the_loss_at_temperature_one_over_lambda(
    weight,
):
    qam = _doubled(QAMAgent, AgentConfig(**SIZES, tau=1.0 / weight))
    trust = _doubled(TRQAMAgent, TRQAMConfig(**SIZES))
    trust.dual = dataclasses.replace(
        trust.dual, multiplier=torch.tensor(weight / 3.0, dtype=DOUBLE)
    )
    noise = _double_noise(qam.draw_noise(8, _generator(2)))
    s, a = qam.inputs(_batch(dtype=DOUBLE))
    gradients = []
    for agent, factor in ((qam, weight), (trust, 1.0)):
        loss, metrics = agent.improvement(s, a, noise, torch.ones(8, dtype=DOUBLE))
        fast = [v for n, v in agent.trained.items() if n.startswith("fast/")]
        gradients.append([factor * g for g in torch.autograd.grad(loss, fast)])
        agent.found = factor * metrics["adjoint/loss"]
    assert trust.found.item() == pytest.approx(qam.found.item(), rel=1e-13)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def _lean_factor(c, n, k):
    """Lean adjoint over the terminal one for a field with Jacobian c(t) I, from step k."""
    factor = 1.0
    for j in reversed(range(k, n)):
        t = (j + 1) / n
        factor *= 1.0 + (2.0 * c(t) - 1.0 / t) / n
    return factor


def test_scalar_adjoint_is_the_lean_one_of_a_field_without_jacobian():
    g_1 = torch.randn(5, 3, dtype=DOUBLE)
    exact = adjoint.lean_adjoint(lambda k, g: torch.zeros_like(g), g_1, 10)
    t = adjoint.step_times(10, g_1)
    torch.testing.assert_close(adjoint.scalar_adjoint(g_1, t), exact)


def test_scalar_adjoint_is_the_lean_one_up_to_the_exponential_of_the_jacobian():
    """For a Jacobian c(t) I: g_t = t exp(2 int_t^1 c) g_1 as the steps become small."""

    def c(t):
        return 0.7 - 0.9 * t

    def exponential(t):  # exp(2 int_t^1 c)
        return torch.exp(2.0 * (0.7 * (1.0 - t) - 0.45 * (1.0 - t**2)))

    g_1 = torch.randn(4, 2, dtype=DOUBLE)
    errors = []
    for n in (100, 200, 400):
        g = adjoint.lean_adjoint(lambda k, g, n=n: c((k + 1) / n) * g, g_1, n)
        t = adjoint.step_times(n, g_1)
        ideal = exponential(t) * adjoint.scalar_adjoint(g_1, t)
        errors.append((g - ideal).abs().max().item())
        k = n // 3
        torch.testing.assert_close(g[k], _lean_factor(c, n, k) * g_1)
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.1)  # Euler: first order
    assert errors[1] / errors[2] == pytest.approx(2.0, rel=0.1)
    assert errors[2] < 0.01


def _regressed_kl(weight, n=10, rows=4000):
    """Path KL at the fixed point of adjoint matching: base N(0, 1), Q(a) = a - a^2 / 2, linear f.

    f_theta(a, t) = (slope_k + shift) a + offset at step k; the regression is solved exactly.
    """
    h, generator = 1.0 / n, _generator(3)
    start = torch.randn((rows, 1), generator=generator, dtype=DOUBLE)
    noise = torch.randn((n - 1, rows, 1), generator=generator, dtype=DOUBLE)
    sigma = adjoint.memoryless_sigma(adjoint.step_times(n, start), h)

    def slope(t):
        return (2 * t - 1) / ((1 - t) ** 2 + t**2)

    line = torch.zeros(n, 2, dtype=DOUBLE)  # slope and offset added to the base
    for _ in range(60):
        states, end = adjoint.rollout(
            lambda a, t, line=line: (
                (slope(t) + line[round(t * n), 0]) * a + line[round(t * n), 1]
            ),
            lambda a, t: slope(t) * a,
            start,
            noise,
        )
        g_1 = -(1.0 - end)
        g = adjoint.lean_adjoint(lambda k, g: slope(k * h + h) * g, g_1, n)
        wanted = -(sigma**2) * g / (2.0 * weight)
        design = torch.cat([states, torch.ones_like(states)], -1)
        solved = torch.linalg.lstsq(design, wanted).solution.squeeze(-1)
        line = 0.5 * line + 0.5 * solved
    moved = (design @ line.unsqueeze(-1)).reshape(n, rows, 1)
    shares = adjoint.path_kl_shares(moved, torch.zeros_like(moved), sigma, h)
    return shares.sum().item()


def test_path_kl_falls_strictly_with_lambda_and_as_its_square_when_lambda_is_large():
    weights = [1.0, 2.0, 4.0, 8.0, 64.0, 128.0]
    found = [_regressed_kl(weight) for weight in weights]
    assert all(a > b > 0 for a, b in itertools.pairwise(found))
    assert found[4] / found[5] == pytest.approx(4.0, rel=0.05)
    assert found[0] / found[1] < 4.0  # the critic's curvature bends it at small lambda


def test_expected_kl_is_the_cost_over_twice_lambda_squared_at_the_optimum():
    n, weight = 6, 1.7
    g, v_beta = torch.randn(n, 9, 3, dtype=DOUBLE), torch.randn(n, 9, 3, dtype=DOUBLE)
    sigma = adjoint.memoryless_sigma(adjoint.step_times(n, g), 1.0 / n)
    optimum = v_beta - sigma**2 * g / (2.0 * weight)
    kl = adjoint.path_kl_shares(optimum, v_beta, sigma, 1.0 / n).sum()
    cost = adjoint.adjoint_cost(g, sigma, 1.0 / n)
    assert kl.item() == pytest.approx(cost.item() / (2.0 * weight**2), rel=1e-12)
    loss, _ = adjoint.matching_loss(optimum, v_beta, g, sigma / weight**0.5)
    assert loss.item() == pytest.approx(0.0, abs=1e-24)


def test_bridge_states_run_from_noise_to_the_end_point():
    end, noise = torch.randn(5, 2, dtype=DOUBLE), torch.randn(4, 5, 2, dtype=DOUBLE)
    states, t = adjoint.bridge(end, noise)
    torch.testing.assert_close(states[3], end)
    torch.testing.assert_close(states[0], 0.75 * noise[0] + 0.25 * end)
    assert t.flatten().tolist() == [0.25, 0.5, 0.75, 1.0]


def test_lean_adjoint_on_a_bridge_of_a_linear_field_is_the_rollouts():
    """A linear field's Jacobian does not depend on the state, so only the times differ."""
    matrix, g_1 = torch.randn(3, 3, dtype=DOUBLE), torch.randn(6, 3, dtype=DOUBLE)
    noise = torch.randn(5, 6, 3, dtype=DOUBLE)

    def linearise(states, times):
        return lambda k, g: times[k] * (g @ matrix)

    def field(a, t):
        return torch.zeros_like(a)

    bridge = BridgePath().path(field, field, noise[0], noise, 5)
    rolled = MemorylessPath().path(field, field, noise[0], noise[:-1], 5)
    on_bridge = BridgePath().lean(linearise, bridge, g_1)
    on_rollout = MemorylessPath().lean(linearise, rolled, g_1)
    torch.testing.assert_close(on_bridge[:-1], on_rollout[1:])
    assert torch.equal(on_bridge[-1], g_1)


def test_control_cost_is_the_kl_of_the_steps_the_tuned_field_takes():
    generator = _generator(4)
    start = torch.randn((7, 2), generator=generator, dtype=DOUBLE)
    noise = torch.randn((3, 7, 2), generator=generator, dtype=DOUBLE)

    def theta(a, t):
        return torch.tanh(a) + t

    def beta(a, t):
        return -a * t

    end, cost = adjoint.controlled_rollout(theta, beta, start, noise)
    states, same = adjoint.rollout(theta, beta, start, noise)
    t = adjoint.step_times(4, states)
    sigma = adjoint.memoryless_sigma(t, 0.25)
    shares = adjoint.path_kl_shares(theta(states, t), beta(states, t), sigma, 0.25)
    torch.testing.assert_close(end, same)
    torch.testing.assert_close(cost, 4.0 * shares[:-1].sum())


RULES = ["fixed", "additive", "log", "predictive"]
HEADS = {"none": NoHead(), "edit": EditHead(), "one_step": OneStepHead()}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("rule", RULES)
def test_every_combination_of_parts_trains_and_acts(rule, head):
    for path, pull, penalty in itertools.product(
        (MemorylessPath(), BridgePath()), (lean, scalar), (no_penalty, value_penalty)
    ):
        temperature = FixedTemperature() if rule == "fixed" else DualTemperature()
        parts = Parts(path, pull, temperature, HEADS[head], penalty)
        kind = type("Combined", (AdjointAgent,), {"parts": parts})
        numbers = {} if rule == "fixed" else {"dual": dual.DualConfig(rule=rule)}
        config = EverythingConfig(**SIZES, **numbers, bridges=5)
        agent = kind.init(config, 5, 2, _generator())
        before = {n: v.detach().clone() for n, v in agent.parameters.items()}
        metrics = agent.update(_batch(), agent.draw_noise(8, _generator(5)))
        assert all(torch.isfinite(v).all() for v in metrics.values())
        assert ("dual/lambda" in metrics) == (rule != "fixed")
        assert ("critic/value_gap" in metrics) == (penalty is value_penalty)
        trained = {
            n for n in agent.trained if not torch.equal(before[n], agent.trained[n])
        }
        nets = {n.split("/")[0] for n in trained}
        assert nets == {n.split("/")[0] for n in agent.trained}
        noise = agent.draw_action_noise(7, _generator(6))
        chunk = agent.act(torch.randn(7, 5), noise)
        assert chunk.shape == (7, 3, 2)
        assert chunk.abs().max() <= 1


def test_residual_field_adds_the_behaviour_field():
    kind = type("Residual", (QAMAgent,), {"tuned": "residual"})
    agent = kind.init(AgentConfig(**SIZES), 5, 2, _generator())
    with torch.no_grad():
        for name in ("fast/2/weight", "fast/2/bias"):
            agent.parameters[name].zero_()
    s, a = torch.randn(4, 5), torch.randn(4, 6)
    field, base = agent.tuned_field(s), agent.base_field(s)
    torch.testing.assert_close(field(a, 0.5), base(a, 0.5))
    torch.testing.assert_close(
        agent.act(s, a).flatten(1), flow.sample(base, a, 4).detach()
    )


def test_trust_region_state_is_in_the_checkpoint():
    agent = TRQAMAgent.init(TRQAMConfig(**SIZES), 5, 2, _generator())
    agent.update(_batch(), agent.draw_noise(8, _generator()))
    again = TRQAMAgent.init(TRQAMConfig(**SIZES), 5, 2, _generator(9))
    again.load_state_dict(agent.state_dict())
    assert vars(again.dual) == vars(agent.dual)
    assert agent.dual.multiplier != 1.0
    noise = agent.draw_noise(8, _generator(3))
    first, second = (one.update(_batch(), noise) for one in (agent, again))
    assert first["dual/lambda"] == second["dual/lambda"]
