# SPDX-License-Identifier: Apache-2.0
"""Pure-function networks."""

import math

import torch
from torch import nn

from qam_train import networks


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_mlp_equals_the_same_torch_modules():
    params = networks.init_mlp("m", (4, 6, 5, 2), _generator(), layer_norm=True)
    params = {
        name: value + 0.1 * torch.randn_like(value) for name, value in params.items()
    }
    modules = []
    for layer, (fan_in, fan_out) in enumerate(((4, 6), (6, 5), (5, 2))):
        linear = nn.Linear(fan_in, fan_out)
        linear.weight.data = params[f"m/{layer}/weight"].mT
        linear.bias.data = params[f"m/{layer}/bias"]
        modules.append(linear)
        if layer < 2:
            norm = nn.LayerNorm(fan_out, eps=1e-6)
            norm.weight.data, norm.bias.data = (
                params[f"m/{layer}/norm_scale"],
                params[f"m/{layer}/norm_shift"],
            )
            modules += [nn.GELU(approximate="tanh"), norm]
    x = torch.randn(7, 4)
    torch.testing.assert_close(networks.mlp(params, "m", x), nn.Sequential(*modules)(x))


def test_weights_are_xavier_uniform_and_biases_zero():
    params = networks.init_mlp("m", (300, 200, 100), _generator())
    bound = math.sqrt(6 / 500)
    weight = params["m/0/weight"]
    assert weight.abs().max() <= bound
    # standard error of the standard deviation of 60,000 uniform draws is below 0.3 %
    assert abs(weight.std().item() / (bound / math.sqrt(3)) - 1) < 0.01
    assert not params["m/1/bias"].any()


def test_members_are_drawn_independently():
    weight = networks.init_mlp("m", (3, 4), _generator(), members=2)["m/0/weight"]
    assert weight.shape == (2, 3, 4)
    assert not torch.equal(weight[0], weight[1])


def test_velocity_field_equals_the_network_on_the_joined_input():
    params = networks.init_mlp("f", (4 + 3 + 1, 8, 3), _generator())
    s, a, t = torch.randn(6, 4), torch.randn(6, 3), torch.rand(6, 1)
    joined = networks.mlp(params, "f", torch.cat([s, a, t], -1))
    torch.testing.assert_close(networks.velocity_field(params, "f", s)(a, t), joined)


def test_velocity_field_takes_stacked_states_and_plain_times():
    params = networks.init_mlp("f", (4 + 3 + 1, 8, 3), _generator())
    field = networks.velocity_field(params, "f", torch.randn(6, 4))
    a = torch.randn(2, 6, 3)
    stacked = field(a, torch.tensor([0.25, 0.75]).view(2, 1, 1))
    torch.testing.assert_close(stacked[0], field(a[0], 0.25))
    torch.testing.assert_close(stacked[1], field(a[1], 0.75))


def test_net_selects_by_whole_name():
    params = {"slow/0/weight": torch.zeros(1), "slower/0/weight": torch.zeros(1)}
    assert list(networks.net(params, "slow")) == ["slow/0/weight"]
