# SPDX-License-Identifier: Apache-2.0
"""Critic ensemble, target, loss and action gradient."""

import torch

from qam_train import critic, networks

DOUBLE = torch.float64


def test_no_pessimism_is_the_ensemble_mean():
    q = torch.randn(4, 6, dtype=DOUBLE)
    torch.testing.assert_close(critic.pessimistic(q, 0.0), q.mean(0))


def test_equal_members_carry_no_penalty():
    q = torch.randn(1, 6, dtype=DOUBLE).expand(5, 6)
    torch.testing.assert_close(critic.pessimistic(q, 3.0), q[0])


def test_penalty_is_the_population_standard_deviation():
    q = torch.tensor([[1.0], [3.0]])
    torch.testing.assert_close(
        critic.pessimistic(q, 0.5), torch.tensor([2.0 - 0.5 * 1.0])
    )


def test_mask_stops_the_bootstrap():
    q = torch.full((2, 2), 10.0)
    reward, mask = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0])
    y = critic.td_target(q, reward, mask, 0.5, 0.5)
    torch.testing.assert_close(y, torch.tensor([6.0, 1.0]))


def test_invalid_rows_do_not_train_the_critic():
    q = torch.zeros(3, 4, requires_grad=True)
    loss, _ = critic.td_loss(q, torch.ones(4), torch.tensor([1.0, 1.0, 0.0, 0.0]))
    (gradient,) = torch.autograd.grad(loss, q)
    torch.testing.assert_close(loss.detach(), torch.tensor(0.5))
    assert not gradient[:, 2:].any()


def test_members_equal_networks_evaluated_alone():
    generator = torch.Generator().manual_seed(1)
    params = networks.init_mlp("q", (5, 8, 7, 1), generator, members=3, layer_norm=True)
    s, a = torch.randn(4, 3), torch.randn(4, 2)
    together = critic.ensemble(params, "q", s, a)
    for k in range(3):
        alone = {name: value[k] for name, value in params.items()}
        torch.testing.assert_close(together[k], critic.ensemble(alone, "q", s, a))


def test_a_second_leading_axis_holds_independent_agents():
    generator = torch.Generator().manual_seed(1)
    agents = [
        networks.init_mlp("q", (5, 8, 1), generator, members=3, layer_norm=True)
        for _ in range(2)
    ]
    stacked = {
        name: torch.stack([agent[name] for agent in agents]) for name in agents[0]
    }
    s, a = torch.randn(2, 1, 4, 3), torch.randn(2, 1, 4, 2)
    together = critic.ensemble(stacked, "q", s, a)
    assert together.shape == (2, 3, 4)
    for i, agent in enumerate(agents):
        torch.testing.assert_close(
            together[i], critic.ensemble(agent, "q", s[i, 0], a[i, 0])
        )


def test_action_gradient_of_a_linear_critic_is_its_slope_inside_the_box_and_zero_outside():
    slopes = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    a = torch.tensor([[0.5, -0.5], [1.5, 0.0], [0.0, -2.0]])
    gradient = critic.action_gradient(lambda a: (a @ slopes.mT).mT, a, 1.0)
    torch.testing.assert_close(
        gradient, torch.tensor([[2.0, 3.0], [0.0, 3.0], [2.0, 0.0]])
    )
    free = critic.action_gradient(lambda a: (a @ slopes.mT).mT, a, float("inf"))
    torch.testing.assert_close(free, torch.tensor([[2.0, 3.0]]).expand(3, 2))


def test_action_gradient_works_where_gradients_are_switched_off():
    with torch.no_grad():
        gradient = critic.action_gradient(
            lambda a: a.square().sum(-1)[None], torch.full((1, 2), 0.25), 1.0
        )
    torch.testing.assert_close(gradient, torch.full((1, 2), 0.5))
