# SPDX-License-Identifier: Apache-2.0
"""Trust region: the three rules on a toy loop, bounds, and where they start."""

import pytest
import torch

from qam_ros.contract.errors import ConfigError
from qam_train import dual

ZERO = torch.zeros((), dtype=torch.float64)


def _loop(config, costs, lag=200, noise=0.2, seed=0):
    """KL over budget, update by update, of a plant KL = 1.3 C / (2 lambda^2) behind an actor lag.

    The rule sees the KL with 20 % noise.
    """
    generator = torch.Generator().manual_seed(seed)
    shocks = noise * torch.randn(len(costs), generator=generator, dtype=torch.float64)
    state, kl, found = dual.initial_state(config, ZERO), None, []
    for cost, shock in zip(costs, shocks, strict=True):
        c = ZERO + cost
        settled = 1.3 * c / (2.0 * dual.temperature(config, state, c) ** 2)
        kl = settled if kl is None else kl + (settled - kl) / lag
        state = dual.advance(config, state, (kl * (1.0 + shock)).clamp(min=0.0), c)
        found.append(kl.item() / config.budget)
    return torch.tensor(found)


@pytest.mark.parametrize(
    ("rule", "budget"),
    [
        ("additive", 0.5),
        ("log", 0.5),
        ("log", 3.0),
        ("predictive", 0.5),
        ("predictive", 3.0),
    ],
)
def test_rule_settles_on_its_budget(rule, budget):
    config = dual.DualConfig(rule=rule, budget=budget)
    late = _loop(config, [1.0] * 8000)[5000:]
    assert late.mean().item() == pytest.approx(1.0, abs=0.02)
    assert late.max() < 1.2


def test_additive_rule_cycles_around_a_large_budget_where_the_log_rule_does_not():
    """Its step does not shrink with lambda: the reason for the other rules."""
    swing = {
        rule: _loop(dual.DualConfig(rule=rule, budget=3.0), [1.0] * 8000)[3000:].max()
        for rule in ("additive", "log")
    }
    assert swing["additive"] > 2.0
    assert swing["log"] < 1.2


def test_prediction_meets_a_jump_of_the_critic_at_once():
    costs = [1.0] * 3000 + [100.0] * 2000
    above = {
        rule: int((_loop(dual.DualConfig(rule=rule), costs)[3000:] > 2.0).sum())
        for rule in ("log", "predictive")
    }
    assert above["predictive"] == 0
    assert above["log"] > 100


def test_additive_rule_is_the_published_one():
    config = dual.DualConfig(budget=0.5)
    state = dual.initial_state(config, ZERO)
    assert (state.multiplier.item(), state.kl.item()) == (1.0, 0.0)
    state = dual.advance(config, state, ZERO + 0.8, ZERO)
    assert state.kl.item() == pytest.approx(0.08)
    assert state.multiplier.item() == pytest.approx(1.0 + 0.01 * (0.08 - 0.5))
    assert dual.temperature(config, state, ZERO).item() == pytest.approx(
        3.0 * state.multiplier.item()
    )


def test_estimates_beyond_the_cap_count_as_the_cap():
    config = dual.DualConfig(budget=0.5, cap=2.0)
    start = dual.initial_state(config, ZERO)
    far, cap = (dual.advance(config, start, ZERO + kl, ZERO) for kl in (1e20, 1.0))
    assert far == cap


@pytest.mark.parametrize("rule", ["additive", "log", "predictive"])
def test_multiplier_stays_inside_its_bounds(rule):
    config = dual.DualConfig(rule=rule, step=5.0, gain=5.0)
    for kl, bound in ((1e9, config.largest), (0.0, config.smallest)):
        state = dual.initial_state(config, ZERO)
        for _ in range(200):
            state = dual.advance(config, state, ZERO + kl, ZERO + 1.0)
        assert state.multiplier.item() == bound


@pytest.mark.parametrize("rule", ["log", "predictive"])
def test_policy_equal_to_its_base_lowers_lambda_without_infinities(rule):
    config = dual.DualConfig(rule=rule)
    state = dual.initial_state(config, ZERO)
    for _ in range(50):
        state = dual.advance(config, state, ZERO, ZERO)
    assert torch.isfinite(state.multiplier)
    assert state.multiplier < 1.0
    assert torch.isfinite(dual.temperature(config, state, ZERO))


def test_log_and_predictive_rules_start_on_the_budget():
    for rule in ("log", "predictive"):
        config = dual.DualConfig(rule=rule, budget=0.7)
        state = dual.initial_state(config, ZERO)
        moved = dual.advance(config, state, ZERO + 0.7, ZERO + 1.0)
        assert moved.multiplier.item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"budget": 0.0}, "budget: expected a positive number, got 0.0"),
        ({"cap": 1.0}, "cap: expected a number above 1"),
        ({"smallest": 2.0, "largest": 1.0}, "smallest: expected a number in"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        dual.DualConfig(**setting)
