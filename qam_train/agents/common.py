# SPDX-License-Identifier: Apache-2.0
"""What agents share: frozen observation statistics and copies between named tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qam_ros.contract.errors import ConfigError
from qam_train.networks import Params, net

STD_FLOOR = 0.01


@dataclass(frozen=True)
class Normaliser:
    """Observation statistics, frozen after offline training; inputs of the policy graph.

    Args:
        mean: (O,).
        std: (O,), the divisor: standard deviation of the data with STD_FLOOR already added.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def identity(cls, size: int, device: torch.device | str = "cpu") -> Normaliser:
        """Statistics that leave observations as they are."""
        return cls(torch.zeros(size, device=device), torch.ones(size, device=device))

    @classmethod
    def of(cls, observations: Tensor) -> Normaliser:
        """Statistics of data (N, O)."""
        double = observations.double()
        mean, std = double.mean(0), double.std(0, correction=0) + STD_FLOOR
        return cls(mean.to(observations.dtype), std.to(observations.dtype))

    @property
    def size(self) -> int:
        """O, numbers in an observation."""
        return self.mean.shape[0]

    def __call__(self, observations: Tensor) -> Tensor:
        """(observations - mean) / std, (B, O)."""
        return (observations - self.mean) / self.std

    def state(self) -> Params:
        """The two tensors by name."""
        return {"observation_mean": self.mean, "observation_std": self.std}


def draw_normal(generator: torch.Generator, *size: int) -> Tensor:
    """Standard normal draws on the generator's device."""
    return torch.randn(size, generator=generator, device=generator.device)


def draw_uniform(generator: torch.Generator, *size: int) -> Tensor:
    """Uniform draws on [0, 1) on the generator's device."""
    return torch.rand(size, generator=generator, device=generator.device)


def copy_net(params: Params, source: str, target: str) -> Params:
    """Copy the tensors of one net under another net's name."""
    return {
        target + name.removeprefix(source): value.clone()
        for name, value in net(params, source).items()
    }


@torch.no_grad()
def load_named(into: Params, state: Params) -> None:
    """Copy tensors by name, in place.

    Raises:
        ConfigError: names or a shape differ; the message lists the first ones.
    """
    missing, surplus = (
        sorted(into.keys() - state.keys()),
        sorted(state.keys() - into.keys()),
    )
    if missing or surplus:
        raise ConfigError(
            f"agent state: expected other tensors; missing {missing[:3]}, not known {surplus[:3]}; "
            "load it with the settings it was saved with"
        )
    for name, value in into.items():
        if value.shape != state[name].shape:
            raise ConfigError(
                f"agent state: tensor '{name}' has shape {tuple(state[name].shape)}, the settings make "
                f"{tuple(value.shape)}; load it with the settings it was saved with"
            )
        value.copy_(state[name])
