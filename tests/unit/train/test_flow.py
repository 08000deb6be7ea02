# SPDX-License-Identifier: Apache-2.0
"""Euler sampler and flow-matching loss against closed forms."""

import torch

from qam_train import flow

DOUBLE = torch.float64


def test_constant_velocity_moves_by_exactly_the_velocity():
    v = torch.tensor([[0.3, -0.7]], dtype=DOUBLE)
    a_0 = torch.randn(5, 2, dtype=DOUBLE)
    for n in (1, 3, 10):
        torch.testing.assert_close(
            flow.integrate(lambda a, t: v.expand_as(a), a_0, n), a_0 + v
        )


def test_linear_velocity_compounds_once_a_step():
    a_0, rate, n = torch.randn(4, 3, dtype=DOUBLE), -1.7, 10
    end = flow.integrate(lambda a, t: rate * a, a_0, n)
    torch.testing.assert_close(end, (1 + rate / n) ** n * a_0)


def test_time_runs_from_noise_to_action_without_its_end():
    times = []
    flow.integrate(
        lambda a, t: times.append(t) or torch.zeros_like(a), torch.zeros(1, 1), 4
    )
    assert times == [0.0, 0.25, 0.5, 0.75]


def test_straight_field_has_no_matching_loss():
    a_1, noise, t = (torch.randn(6, 4), torch.randn(6, 4), torch.rand(6, 1))
    loss, _ = flow.flow_matching_loss(
        lambda a, t: a_1 - noise, a_1, noise, t, torch.ones(6)
    )
    assert loss == 0


def test_matching_loss_is_taken_on_the_straight_path():
    a_1, noise, t = (torch.randn(6, 4), torch.randn(6, 4), torch.rand(6, 1))
    seen = []
    flow.flow_matching_loss(
        lambda a, t: seen.append(a) or a, a_1, noise, t, torch.ones(6)
    )
    torch.testing.assert_close(seen[0], noise + t * (a_1 - noise))


def test_invalid_rows_weigh_nothing_but_count_in_the_mean():
    a_1, noise, t = torch.ones(4, 2), torch.zeros(4, 2), torch.rand(4, 1)
    valid = torch.tensor([1.0, 0.0, 0.0, 0.0])
    loss, metrics = flow.flow_matching_loss(
        lambda a, t: torch.zeros_like(a), a_1, noise, t, valid
    )
    torch.testing.assert_close(loss, torch.tensor(0.25))
    assert metrics["flow/loss"] == loss
