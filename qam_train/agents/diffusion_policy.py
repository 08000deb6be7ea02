# SPDX-License-Identifier: Apache-2.0
"""What the diffusion methods QSM and DAC share: critic, noise predictor, one joint clip.

The critic's action gradient is that of the target ensemble's mean at the noised action, unclipped
(official code).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from qam_train import critic, diffusion
from qam_train.agents.base import Agent, Metrics, draw_critic
from qam_train.agents.common import Normaliser, draw_normal
from qam_train.config import MethodConfig, require, require_positive
from qam_train.data.dataset import ChunkBatch
from qam_train.deployment import ReverseDiffusion
from qam_train.networks import Params, init_mlp

Process = Literal["posterior", "jump"]
SAMPLERS = {"posterior": diffusion.posterior_sample, "jump": diffusion.jump_sample}


@dataclass(frozen=True)
class DiffusionConfig(MethodConfig):
    """Numbers of a diffusion policy.

    Args:
        diffusion_steps: K.
        time_code: width of the Fourier code of the diffusion time, even.
        alpha: weight of the denoising loss.
    """

    clip_norm: float = 1.0
    diffusion_steps: int = 10
    time_code: int = 64
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "diffusion_steps")
        require(
            self.time_code >= 2 and self.time_code % 2 == 0,
            "time_code",
            "an even number >= 2",
            self.time_code,
        )
        require(self.alpha >= 0.0, "alpha", "a number >= 0", self.alpha)


@dataclass(frozen=True)
class DiffusionNoise:
    """Random numbers of one update.

    Args:
        next_action: (B, (K+1) D), normal; of the sampler at the next observation, as for act().
        time: (B,), whole numbers 1 .. K; diffusion time of the actor's loss.
        noise: (B, D), normal; its noise.
    """

    next_action: Tensor
    time: Tensor
    noise: Tensor


C = TypeVar("C", bound=DiffusionConfig)


class DiffusionAgent(Agent[C, DiffusionNoise]):
    """Critic and noise predictor 'actor'.

    Attributes:
        judge: critic whose action gradient improves the policy.
    """

    judge: ClassVar[Literal["target_critic", "critic"]] = "target_critic"
    policy_net: ClassVar[str] = "actor/noise"

    def __init__(self, config: C, parameters: Params, normaliser: Normaliser) -> None:
        """As Agent; forms the schedule."""
        super().__init__(config, parameters, normaliser)
        like = parameters["actor/fourier/0/weight"].detach()
        self.plan = diffusion.schedule(config.diffusion_steps, like)

    @classmethod
    def draw_nets(
        cls, config: C, observation_size: int, width: int, generator: torch.Generator
    ) -> Params:
        """Critic, Fourier frequencies (normal, 0.2), MLP of the time code, MLP of the noise."""
        widths, half = config.actor.widths, config.time_code // 2
        params = draw_critic(config, observation_size + width, generator)
        params["actor/fourier/0/weight"] = 0.2 * draw_normal(generator, half, 1)
        params |= init_mlp("actor/time", (config.time_code, *widths), generator)
        inputs = width + observation_size + widths[-1]
        return params | init_mlp(
            "actor/noise",
            (inputs, *widths, width),
            generator,
            layer_norm=config.actor.layer_norm,
        )

    @abstractmethod
    def improvement(self, predicted: Tensor, gradient: Tensor, level: Tensor) -> Tensor:
        """Rows (B,) of the improvement loss.

        Args:
            predicted: (B, D), eps_hat; the only one with a gradient.
            gradient: (B, D), grad Q at the noised action.
            level: (B, 1), sqrt(1 - alpha_hat) at its time.
        """

    @property
    @abstractmethod
    def process(self) -> Process:
        """Reverse process that the policy is."""

    def loss(self, batch: ChunkBatch, noise: DiffusionNoise) -> tuple[Tensor, Metrics]:
        """Critic, denoising, improvement."""
        critic_loss, metrics = self.critic_loss(batch, noise.next_action)
        s, a = self.inputs(batch)
        x = diffusion.noised(self.plan, a, noise.noise, noise.time)
        k = noise.time.to(a.dtype).unsqueeze(-1)
        predicted = diffusion.predicted_noise(self.trained, "actor", s, x, k)
        gradient = critic.action_gradient(
            lambda b: critic.ensemble(self.constant, self.judge, s, b),
            x,
            float("inf"),
        )
        level = (1.0 - self.plan.alpha_hats[noise.time]).sqrt().unsqueeze(-1)
        rows = self.improvement(predicted, gradient, level)
        improvement = diffusion.valid_mean(rows, batch.valid)
        denoising = diffusion.valid_mean(
            diffusion.denoising_error(predicted, noise.noise), batch.valid
        )
        loss = critic_loss + self.config.alpha * denoising + improvement
        more = {
            "diffusion/loss": denoising.detach(),
            "actor/loss": improvement.detach(),
        }
        return loss, {"loss": loss.detach(), **metrics, **more}

    def policy(self, s: Tensor, noise: Tensor) -> Tensor:
        """Reverse diffusion; noise is x_K and then the step noises K .. 1, flat."""
        x, *steps = noise.split(self.chunk_width, -1)

        def predictor(x: Tensor, k: int) -> Tensor:
            time = x.new_full((*x.shape[:-1], 1), float(k))
            return diffusion.predicted_noise(self.trained, "actor", s, x, time)

        sample = SAMPLERS[self.process]
        return sample(predictor, self.plan, x, torch.stack(steps))

    def deployment(self) -> ReverseDiffusion:
        """The reverse process that the policy is."""
        plan = self.plan
        numbers = [
            tuple(entries.tolist())
            for entries in (plan.betas, plan.alphas, plan.alpha_hats)
        ]
        return ReverseDiffusion("actor", self.process, *numbers)

    @property
    def noise_width(self) -> int:
        """(K+1) D."""
        return (self.config.diffusion_steps + 1) * self.chunk_width

    def draw_noise(self, batch_size: int, generator: torch.Generator) -> DiffusionNoise:
        """Draw the noise of one update on the generator's device."""
        time = torch.randint(
            1,
            self.config.diffusion_steps + 1,
            (batch_size,),
            generator=generator,
            device=generator.device,
        )
        return DiffusionNoise(
            next_action=self.draw_action_noise(batch_size, generator),
            time=time,
            noise=draw_normal(generator, batch_size, self.chunk_width),
        )
