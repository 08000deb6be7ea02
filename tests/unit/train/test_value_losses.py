# SPDX-License-Identifier: Apache-2.0
"""Expectiles, advantage weights, guidance and LINEX, reversed flow."""

import pytest
import torch

from qam_train import critic, expectile, flow, guidance, reverse

DOUBLE = torch.float64


def test_expectile_of_a_half_is_half_the_square_and_minimised_by_the_mean():
    d = torch.tensor([-2.0, 3.0], dtype=DOUBLE)
    assert expectile.expectile_loss(d, 0.5).tolist() == [2.0, 4.5]


@pytest.mark.parametrize("kappa", [0.1, 0.7, 0.95])
def test_expectile_balances_the_two_sides(kappa):
    """At the minimum kappa E(x - v)+ = (1 - kappa) E(v - x)+."""
    x = torch.randn(2001, dtype=DOUBLE)
    v = torch.zeros((), dtype=DOUBLE, requires_grad=True)
    for _ in range(300):
        (slope,) = torch.autograd.grad(expectile.expectile_loss(x - v, kappa).mean(), v)
        v = (v - 0.4 * slope).detach().requires_grad_()
    above, below = (x - v).clamp(min=0).mean(), (v - x).clamp(min=0).mean()
    torch.testing.assert_close(kappa * above, (1 - kappa) * below)


def test_advantage_weight_is_capped_and_constant():
    advantage = torch.tensor([0.0, 1.0, 99.0], requires_grad=True)
    weight = expectile.advantage_weight(advantage, 2.0)
    assert weight.tolist() == pytest.approx([1.0, 7.389056, 100.0])
    assert not weight.requires_grad


def test_guidance_of_weight_zero_is_the_plain_flow():
    start = torch.randn(5, 2, dtype=DOUBLE)

    def field(a, t):
        return torch.tanh(a) - t

    def gradient(a, t):
        return torch.ones_like(a)

    guided = guidance.guided_sample(field, gradient, start, 6, 0.0, 10.0)
    torch.testing.assert_close(guided, flow.sample(field, start, 6))


def test_guidance_leaves_the_first_step_and_shifts_the_others():
    start = torch.zeros(1, 1, dtype=DOUBLE)
    guided = guidance.guided_sample(
        lambda a, t: 0.0 * a, lambda a, t: torch.ones_like(a), start, 2, 0.1, 1.0
    )
    assert guided.item() == pytest.approx(0.5 * 0.1 * (1 - 0.5) / 0.5)


def test_linex_is_minimised_by_the_soft_maximum():
    q_1, tau = torch.tensor([0.1, 0.5, -0.2], dtype=DOUBLE), 2.0
    soft = (
        torch.logsumexp(tau * q_1, 0) / tau
        - torch.tensor(3.0, dtype=DOUBLE).log() / tau
    )
    q_t = soft.clone().requires_grad_()
    loss = guidance.linex_time_loss(q_t, q_1, tau, 5.0).mean()
    (slope,) = torch.autograd.grad(loss, q_t)
    assert slope.item() == pytest.approx(0.0, abs=1e-12)


def test_linex_is_finite_far_from_its_target():
    q_t = torch.tensor([0.0], dtype=torch.float32, requires_grad=True)
    loss = guidance.linex_time_loss(q_t, torch.tensor([60.0]), 10.0, 5.0).mean()
    assert loss.item() == 600.0
    (slope,) = torch.autograd.grad(loss, q_t)
    assert slope.item() == -10.0


def test_exponential_bias_is_zero_at_the_target():
    q = torch.randn(3, 4)
    assert guidance.exponential_bias(q, q, 10.0) == 0


def test_reversed_flow_of_a_constant_field_is_exact():
    a, distance = torch.randn(6, 2, dtype=DOUBLE), torch.rand(6, 1, dtype=DOUBLE)
    x, f = reverse.reverse_flow(lambda x, t: torch.ones_like(x), a, distance, 5)
    torch.testing.assert_close(x, a - distance)
    torch.testing.assert_close(f, 1.0 - distance)


def test_reversed_flow_is_undone_by_small_forward_steps():
    def field(x, t):
        return torch.sin(x) + t

    a, n = torch.randn(6, 2, dtype=DOUBLE), 2000
    x, _ = reverse.reverse_flow(field, a, torch.ones(6, 1, dtype=DOUBLE), n)
    torch.testing.assert_close(flow.integrate(field, x, n), a, rtol=0, atol=2e-3)


def test_one_step_does_not_pass_the_action():
    t = torch.tensor([[0.2], [0.95]], dtype=DOUBLE)
    x, time = reverse.one_euler_step(torch.ones(2, 1, dtype=DOUBLE), 0.0 * t, t, 10)
    assert x.flatten().tolist() == pytest.approx([0.1, 0.05])
    assert time.flatten().tolist() == pytest.approx([0.3, 1.0])


def test_best_candidate_is_taken_row_by_row():
    values = torch.tensor([[1.0, 5.0], [2.0, 0.0]])
    candidates = torch.arange(8.0).view(2, 2, 2)
    assert critic.best_of(values, candidates).tolist() == [[4.0, 5.0], [2.0, 3.0]]
