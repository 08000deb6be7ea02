# SPDX-License-Identifier: Apache-2.0
"""Tanh-Gaussian actions against torch's own distribution."""

import pytest
import torch
from torch.distributions import (
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
)

from qam_train import gaussian, networks

DOUBLE = torch.float64


def _reference(mean, log_std):
    return Independent(
        TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform()]), 1
    )


def test_draw_and_likelihood_agree_with_the_transformed_normal():
    # The reference inverts tanh, which loses all digits where tanh is flat: stay within +-3.
    mean, log_std, noise = (
        torch.rand(9, 4, dtype=DOUBLE) * 2 - 1 for _ in range(3)
    )  # (9, 4) each
    action, log_p = gaussian.draw(mean, log_std, noise)
    torch.testing.assert_close(action, torch.tanh(mean + log_std.exp() * noise))
    reference = _reference(mean, log_std).log_prob(action)
    torch.testing.assert_close(log_p, reference, rtol=1e-6, atol=1e-6)


def test_likelihood_of_data_pulls_actions_inside_the_box():
    mean, log_std = torch.zeros(3, 2, dtype=DOUBLE), torch.zeros(3, 2, dtype=DOUBLE)
    inside = torch.tensor([[0.3, -0.7]] * 3, dtype=DOUBLE)
    found = gaussian.log_likelihood(mean, log_std, inside)
    torch.testing.assert_close(found, _reference(mean, log_std).log_prob(inside))
    edge = gaussian.log_likelihood(mean, log_std, torch.ones_like(mean))
    assert torch.isfinite(edge).all()
    assert torch.equal(
        edge, gaussian.log_likelihood(mean, log_std, 5 * torch.ones_like(mean))
    )


def test_likelihood_is_finite_where_tanh_is_one_in_float32():
    mean, noise = torch.full((1, 3), 40.0), torch.zeros(1, 3)
    action, log_p = gaussian.draw(mean, torch.zeros(1, 3), noise)
    assert action.eq(1).all()
    # -log(2 pi)/2 - 2 (log 2 - u) per number
    assert log_p.item() == pytest.approx(
        3 * (-0.9189385 - 2 * (0.6931472 - 40.0)), rel=1e-6
    )


def test_temperature_moves_towards_the_target_entropy():
    log_alpha = torch.zeros((), requires_grad=True)
    for log_p, sign in ((torch.full((4,), 2.0), -1.0), (torch.full((4,), -2.0), 1.0)):
        loss = gaussian.temperature_loss(log_alpha, log_p.requires_grad_(), 0.0)
        (gradient,) = torch.autograd.grad(loss, log_alpha)
        assert gradient.item() == sign * 2.0  # too little entropy: alpha grows


def test_head_clips_its_log_standard_deviation():
    generator = torch.Generator().manual_seed(0)
    params = networks.init_head("h", 3, (8,), {"mean": 2, "log_std": 2}, generator)
    params["h/log_std/0/bias"] += torch.tensor([50.0, -50.0])
    _, log_std = gaussian.head(params, "h", torch.randn(4, 3))
    assert log_std.unique().tolist() == [-20.0, 2.0]
