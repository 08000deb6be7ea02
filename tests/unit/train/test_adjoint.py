# SPDX-License-Identifier: Apache-2.0
"""Rollout, lean adjoint and matching loss against discrete recursions and finite differences."""

import math

import pytest
import torch

from qam_train import adjoint, flow, networks

DOUBLE = torch.float64


def _nonlinear_field(matrix):
    return lambda a, t: torch.tanh(a @ matrix.mT) * (1.0 + t)


def _autograd_pullback(field, states, n):
    def pullback(k, g):
        a = states[k].clone().requires_grad_()
        (result,) = torch.autograd.grad(field(a, k / n + 1 / n), a, g)
        return result

    return pullback


def test_noise_scale_has_the_published_ends_at_ten_steps():
    sigma_squared = (
        adjoint.memoryless_sigma(
            adjoint.step_times(10, torch.zeros(1, dtype=DOUBLE)), 0.1
        )
        ** 2
    )
    assert sigma_squared[0].item() == pytest.approx(22.0)
    assert sigma_squared[9].item() == pytest.approx(0.4)


def test_rollout_follows_the_recursion_and_ends_on_a_behaviour_step():
    n, h = 4, 0.25
    a_0, noise = torch.randn(3, 2, dtype=DOUBLE), torch.randn(n - 1, 3, 2, dtype=DOUBLE)
    states, a_1 = adjoint.rollout(
        lambda a, t: a * t, lambda a, t: a - 5.0 * t, a_0, noise
    )
    a = a_0
    for k in range(n - 1):
        t = k * h
        sigma = math.sqrt(2 * (1 - t + h) / (t + h))
        torch.testing.assert_close(states[k], a)
        a = a + h * (2 * a * t - a / (t + h)) + math.sqrt(h) * sigma * noise[k]
    torch.testing.assert_close(states[3], a)
    torch.testing.assert_close(a_1, a + h * (a - 5.0 * 0.75))


def test_linear_field_gives_the_product_of_step_matrices():
    n, h, d = 6, 1 / 6, 3
    matrix = torch.randn(d, d, dtype=DOUBLE)
    g_1 = torch.randn(2, d, dtype=DOUBLE)
    g = adjoint.lean_adjoint(lambda k, g: g @ matrix, g_1, n)
    product = torch.eye(d, dtype=DOUBLE)
    for k in reversed(range(n)):
        step = torch.eye(d, dtype=DOUBLE) + h * (
            2 * matrix - torch.eye(d, dtype=DOUBLE) / (k * h + h)
        )
        product = product @ step
        torch.testing.assert_close(g[k], g_1 @ product)


def test_adjoint_is_the_gradient_of_the_end_point_by_finite_differences():
    """The recursion is the exact gradient of a <- a + h (2 f(a, t+h) - a/(t+h)), noise held fixed."""
    n, h, d, step = 5, 0.2, 3, 1e-6
    field = _nonlinear_field(torch.randn(d, d, dtype=DOUBLE))
    shocks = torch.randn(n, 1, d, dtype=DOUBLE)
    weights = torch.randn(1, d, dtype=DOUBLE)

    def run(a, first):
        states = []
        for k in range(first, n):
            states.append(a)
            t = k * h
            a = a + h * (2 * field(a, t + h) - a / (t + h)) + shocks[k]
        return a, states

    _, states = run(torch.randn(1, d, dtype=DOUBLE), 0)
    g = adjoint.lean_adjoint(_autograd_pullback(field, states, n), weights, n)
    for k in range(n):
        for i in range(d):
            shift = torch.zeros(1, d, dtype=DOUBLE)
            shift[0, i] = step
            up, down = run(states[k] + shift, k)[0], run(states[k] - shift, k)[0]
            difference = (weights * (up - down)).sum() / (2 * step)
            # central differences: error step^2 plus rounding / step
            assert difference.item() == pytest.approx(
                g[k, 0, i].item(), rel=1e-7, abs=1e-8
            )


def test_first_adjoint_keeps_only_the_field_term():
    g = adjoint.lean_adjoint(lambda k, g: torch.zeros_like(g), torch.ones(1, 2), 10)
    assert torch.equal(g[0], torch.zeros(1, 2))


def test_no_pull_and_equal_fields_is_a_stationary_point():
    v_beta, g = torch.randn(4, 8, 3), torch.zeros(4, 8, 3)
    v_theta = v_beta.clone().requires_grad_()
    loss, _ = adjoint.matching_loss(v_theta, v_beta, g)
    (gradient,) = torch.autograd.grad(loss, v_theta)
    assert loss == 0
    assert not gradient.any()


def test_matching_optimum_is_the_base_minus_half_sigma_squared_adjoint():
    v_beta, g = torch.randn(4, 8, 3, dtype=DOUBLE), torch.randn(4, 8, 3, dtype=DOUBLE)
    sigma = adjoint.memoryless_sigma(adjoint.step_times(4, g), 0.25)
    loss, _ = adjoint.matching_loss(v_beta - sigma**2 * g / 2, v_beta, g)
    assert loss.item() == pytest.approx(0.0, abs=1e-25)


def test_matching_loss_sums_over_steps_and_dimensions_and_averages_rows():
    n, rows, d = 2, 5, 3
    g = torch.ones(n, rows, d, dtype=DOUBLE)
    v = torch.zeros_like(g)
    loss, metrics = adjoint.matching_loss(v, v, g)
    sigma_squared = adjoint.memoryless_sigma(adjoint.step_times(n, g), 0.5) ** 2
    assert loss.item() == pytest.approx(d * sigma_squared.sum().item())
    assert metrics["adjoint/norm_mean"].item() == pytest.approx(math.sqrt(d))


def _tilted_gaussian(n, tau=1.0):
    """Mean and variance of the Euler sampler for a base N(0, 1) and a linear critic with slope 1."""
    h = 1.0 / n

    def slope(t):  # exact base field f(a, t) = slope(t) a for data N(0, 1)
        return (2 * t - 1) / ((1 - t) ** 2 + t**2)

    g = adjoint.lean_adjoint(
        lambda k, g: slope(k * h + h) * g, torch.full((1, 1), -tau, dtype=DOUBLE), n
    )
    sigma = adjoint.memoryless_sigma(adjoint.step_times(n, g), h)
    shift = (-(sigma**2) * g / 2).flatten()
    ends = flow.integrate(
        lambda a, t: slope(t) * a + shift[round(t * n)],
        torch.tensor([[0.0], [1.0]], dtype=DOUBLE),
        n,
    )
    return ends[0].item() / tau, ((ends[1] - ends[0]) ** 2).item()


def test_gaussian_base_and_linear_critic_follow_the_discrete_recursion_at_ten_steps():
    n, h, g, shift, scale = 10, 0.1, -1.0, 0.0, 1.0
    slopes = [
        (2 * t - 1) / ((1 - t) ** 2 + t**2) for t in (k * h for k in range(n + 1))
    ]
    adjoints = []
    for k in reversed(range(n)):
        g = g + h * (2 * slopes[k + 1] - 1 / (k * h + h)) * g
        adjoints.insert(0, g)
    for k in range(n):
        t = k * h
        shift = (1 + h * slopes[k]) * shift - h * (1 - t + h) / (t + h) * adjoints[k]
        scale = (1 + h * slopes[k]) * scale
    mean, variance = _tilted_gaussian(n)
    assert mean == pytest.approx(shift, rel=1e-12)
    assert variance == pytest.approx(scale**2, rel=1e-12)
    assert (round(mean, 2), round(variance, 2)) == (0.88, 0.77)


def test_gaussian_tilt_approaches_the_closed_form_as_steps_grow():
    """The continuous optimum is N(tau, 1); ten Euler steps are still 12 % short of it."""
    means, variances = zip(
        *(_tilted_gaussian(n) for n in (5, 10, 20, 50, 100, 1000)), strict=True
    )
    assert list(means) == sorted(means)
    assert list(variances) == sorted(variances)
    assert means[-1] == pytest.approx(1.0, abs=0.01)
    assert variances[-1] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_pullback_equals_automatic_differentiation(layer_norm):
    generator = torch.Generator().manual_seed(0)
    params = networks.init_mlp(
        "f", (5 + 3 + 1, 8, 6, 3), generator, layer_norm=layer_norm
    )
    params = {
        name: value.double() + 0.1 * torch.randn_like(value).double()
        for name, value in params.items()
    }
    s, states, g = (
        torch.randn(*size, dtype=DOUBLE) for size in ((7, 5), (4, 7, 3), (7, 3))
    )
    times = adjoint.step_times(4, states) + 0.25
    fast = networks.velocity_pullback(params, "f", s, states, times)
    slow = _autograd_pullback(networks.velocity_field(params, "f", s), states, 4)
    for k in range(4):
        torch.testing.assert_close(fast(k, g), slow(k, g), rtol=1e-12, atol=1e-13)
