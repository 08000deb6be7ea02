# SPDX-License-Identifier: Apache-2.0
"""Diffusion of chunks: schedule, exact samplers for a known prediction, what invalid rows count."""

import math

import pytest
import torch

from qam_train import diffusion

DOUBLE = torch.float64


def _plan(steps=10):
    return diffusion.schedule(steps, torch.zeros((), dtype=DOUBLE))


def test_schedule_is_the_variance_preserving_one():
    plan = _plan()
    assert plan.alpha_hats[0] == 1.0
    whole = math.exp(
        -0.1 - 0.5 * 9.9
    )  # integral of b_min + (b_max - b_min) t over [0, 1]
    assert plan.alpha_hats[-1].item() == pytest.approx(whole, rel=1e-12)
    assert (plan.alpha_hats[1:] < plan.alpha_hats[:-1]).all()
    torch.testing.assert_close(plan.betas, 1.0 - plan.alphas)


def test_noised_action_has_the_schedule_s_signal_and_noise():
    plan, a, eps = (
        _plan(),
        torch.ones(3, 2, dtype=DOUBLE),
        torch.ones(3, 2, dtype=DOUBLE),
    )
    k = torch.tensor([1, 5, 10])
    x = diffusion.noised(plan, a, 0.0 * eps, k)
    torch.testing.assert_close(x[:, 0], plan.alpha_hats[k].sqrt())
    x = diffusion.noised(plan, 0.0 * a, eps, k)
    torch.testing.assert_close(
        x[:, 0] ** 2 + plan.alpha_hats[k], torch.ones(3, dtype=DOUBLE)
    )


@pytest.mark.parametrize("sampler", [diffusion.posterior_sample, diffusion.jump_sample])
def test_sampler_returns_the_action_that_the_predictor_knows(sampler):
    plan, action = _plan(), torch.tensor([[0.4, -0.9]], dtype=DOUBLE)

    def predictor(x, k):
        level = plan.alpha_hats[k]
        return (x - level.sqrt() * action) / (1.0 - level).sqrt()

    start, noise = torch.randn(1, 2, dtype=DOUBLE), torch.randn(10, 1, 2, dtype=DOUBLE)
    torch.testing.assert_close(sampler(predictor, plan, start, noise), action)


def test_posterior_step_has_the_posterior_s_mean():
    """Two steps: x_1 ~ q(x_1 | x_2, x0) has mean by Bayes' rule of two Gaussians."""
    plan = _plan(2)
    x0, x = torch.tensor([[0.3]], dtype=DOUBLE), torch.tensor([[1.1]], dtype=DOUBLE)
    seen = []

    def predictor(state, k):
        seen.append(state)
        level = plan.alpha_hats[k]
        return (state - level.sqrt() * x0) / (1.0 - level).sqrt()

    diffusion.posterior_sample(predictor, plan, x, torch.zeros(2, 1, 1, dtype=DOUBLE))
    prior, step = 1.0 - plan.alpha_hats[1], plan.betas[2]  # variances
    forward = plan.alphas[2].sqrt()
    precision = 1.0 / prior + forward**2 / step
    mean = (plan.alpha_hats[1].sqrt() * x0 / prior + forward * x / step) / precision
    torch.testing.assert_close(seen[1], mean)


def test_invalid_rows_count_one_and_carry_no_gradient():
    rows = torch.tensor([4.0, 9.0], requires_grad=True)
    loss = diffusion.valid_mean(rows, torch.tensor([1.0, 0.0]))
    assert loss.item() == 2.5
    loss.backward()
    assert rows.grad.tolist() == [0.5, 0.0]
