# SPDX-License-Identifier: Apache-2.0
"""Trust region: the three rules on a toy loop, bounds, and where they start."""

import functools

import pytest
import torch

from qam_ros.contract.errors import ConfigError
from qam_train import dual

ZERO = torch.zeros((), dtype=torch.float64)


# what lags behind: lambda itself, and the actor's correction, which goes as 1 / lambda
LAGGING = {"lambda": 1.0, "correction": -1.0}
LAG, SETTLED, AFTER = 200, 2500, 5000


@functools.cache
def _loop(rule, budget, change=1.0, before=4000, after=0):
    """KL over budget of a plant KL = 1.3 C / (2 lambda_lag^2), a column for each of LAGGING.

    lambda_lag^p follows lambda^p with a lag of 200 updates, p = 1 or -1. C is 1 and then times
    `change` at once; the rule sees the KL with 20 % noise and C as it is.
    """
    config = dual.DualConfig(rule=rule, budget=budget)
    generator = torch.Generator().manual_seed(0)
    power = torch.tensor(list(LAGGING.values()), dtype=torch.float64)
    state, lagging, found = dual.initial_state(config, power), None, []
    for step in range(before + after):
        c = torch.ones_like(power) * (1.0 if step < before else change)
        now = dual.temperature(config, state, c) ** power
        lagging = now if lagging is None else lagging + (now - lagging) / LAG
        kl = 1.3 * c / (2.0 * lagging ** (2.0 / power))
        noise = 0.2 * torch.randn((), generator=generator, dtype=torch.float64)
        state = dual.advance(config, state, (kl * (1.0 + noise)).clamp(min=0.0), c)
        found.append(kl / budget)
    return torch.stack(found)


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
    late = _loop(rule, budget)[SETTLED:]
    assert late.mean(0).tolist() == pytest.approx([1.0, 1.0], abs=0.02)
    assert late.max() < 1.2


def test_additive_rule_cycles_around_a_large_budget_where_the_others_do_not():
    """Its step does not shrink with lambda (published behaviour): the reason for the other rules."""
    swing = {
        rule: _loop(rule, 3.0)[SETTLED:, 1]
        for rule in ("additive", "log", "predictive")
    }
    assert swing["additive"].max() > 2.0
    assert swing["additive"].min() < 0.5
    assert max(swing["log"].max(), swing["predictive"].max()) < 1.1


def test_prediction_at_least_halves_the_excess_after_a_jump_of_the_critic():
    """Lambda moves at once and the actor after it: no rule can undo its lag."""
    jumped = {
        rule: _loop(rule, 0.5, 100.0, after=AFTER)[-AFTER:]
        for rule in ("log", "predictive")
    }
    for column, name in enumerate(LAGGING):
        log, predictive = (jumped[rule][:, column] for rule in ("log", "predictive"))
        assert predictive[0] > 50.0, name  # the actor has not moved yet
        assert predictive.mean() < log.mean() / 2.0, name
        assert (predictive > 2.0).sum() < 0.6 * (log > 2.0).sum(), name
        late = torch.stack([log, predictive])[:, -1000:].mean(-1)
        assert late.tolist() == pytest.approx([1.0, 1.0], abs=0.02), name


@pytest.mark.parametrize("rule", ["log", "predictive"])
def test_fall_of_the_critic_never_overshoots_twice_the_budget(rule):
    """Lambda may fall no faster than it may rise, or it is past its end before the actor shows it."""
    fallen = _loop(rule, 0.5, 0.01, after=AFTER)[-AFTER:, 1]
    assert fallen[0] < 0.02
    assert fallen.max() < 2.0
    assert fallen[-1000:].mean().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("rule", ["log", "predictive"])
def test_largest_steps_up_and_down_undo_each_other(rule):
    config = dual.DualConfig(rule=rule, average=1.0)
    state = dual.initial_state(config, ZERO)
    for kl in (0.0, 1e20):
        state = dual.advance(config, state, ZERO + kl, ZERO + 1.0)
    assert state.multiplier.item() == pytest.approx(1.0, abs=1e-12)


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
