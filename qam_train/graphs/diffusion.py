# SPDX-License-Identifier: Apache-2.0
"""Reverse diffusion in a graph, as qam_train.diffusion: K steps from noise, unrolled.

The code of the diffusion time depends on the weights alone: it is formed for all K times at once.
"""

from __future__ import annotations

import math

import numpy as np

from qam_train.deployment import ReverseDiffusion
from qam_train.graphs.builder import Builder
from qam_train.graphs.mlp import affine, part, product, tail, take_net


def reverse_diffusion(
    build: Builder, policy: ReverseDiffusion, s: str, noise: str
) -> str:
    """Chunks (R, D) from noise (R, (K+1) D): x_K, then the noises of the steps K .. 1."""
    steps, flat = policy.steps, build.sizes.flat
    x, *noises = build.split(noise, [flat] * (steps + 1))
    predictor = _Predictor(build, policy, s)
    step = {"posterior": _posterior_step, "jump": _jump_step}[policy.sampler]
    plan = _Plan(policy)
    for index, k in enumerate(range(steps, 0, -1)):
        x = step(build, plan, k, x, predictor(x, index), noises[index])
    return build.clip(x)


class _Plan:
    """The schedule in float32, rounded as qam_train.diffusion rounds it."""

    def __init__(self, policy: ReverseDiffusion) -> None:
        self.betas, self.alphas, self.alpha_hats = (
            np.asarray(values, np.float32)
            for values in (policy.betas, policy.alphas, policy.alpha_hats)
        )

    def noise(self, k: int) -> float:
        """sqrt(beta_k)."""
        return float(np.sqrt(self.betas[k]))


class _Predictor:
    """eps(s, x_k, k) bound to its observation."""

    def __init__(self, build: Builder, policy: ReverseDiffusion, s: str) -> None:
        sizes, prefix = build.sizes, policy.net
        self._build = build
        c, width = _time_features(build, prefix, policy.steps)  # (K, width)
        parts = {"action": sizes.flat, "observation": sizes.observation, "time": width}
        net = take_net(build, f"{prefix}/noise", "actor/noise", parts, sizes.flat)
        of_s = part(build, net, "observation", s)
        of_c = product(build, net, net.name(0, "weight_time"), c, of_s)
        self._net = net
        self._biases = build.split(of_c, [1] * policy.steps, axis=0)

    def __call__(self, x: str, index: int) -> str:
        """Predicted noise (R, D) of the index-th step, k = K - index."""
        first = part(self._build, self._net, "action", x, self._biases[index])
        return tail(self._build, self._net, first, smooth="mish")


def _time_features(build: Builder, prefix: str, steps: int) -> tuple[str, int]:
    """The MLP of the Fourier codes of k = K .. 1, and its width."""
    frequencies = build.weight(
        "actor/fourier/0/weight", build.nets[f"{prefix}/fourier/0/weight"].T
    )  # (1, half)
    half = build.weights[frequencies].shape[1]
    times = np.arange(steps, 0, -1, dtype=np.float32)[:, None]
    turns = build.constant(np.float32(2.0 * math.pi) * times)
    angle = build.mul(turns, frequencies)  # (K, half)
    waves = [build.op("Cos", [angle]), build.op("Sin", [angle])]
    code = build.op("Concat", waves, axis=-1)
    net = take_net(build, f"{prefix}/time", "actor/time", {"code": 2 * half})
    c = tail(build, net, affine(build, net, 0, code), smooth="mish")
    return c, net.widths[-1]


def _action(build: Builder, plan: _Plan, k: int, x: str, eps: str) -> str:
    """x0 = (x - sqrt(1 - alpha_hat) eps) / sqrt(alpha_hat)."""
    level = plan.alpha_hats[k]
    away = build.sub(x, build.mul(eps, float(np.sqrt(np.float32(1) - level))))
    return build.div(away, float(np.sqrt(level)))


def _posterior_step(
    build: Builder, plan: _Plan, k: int, x: str, eps: str, noise: str
) -> str:
    """Ancestral step with x0 clipped to the box; without noise at the end."""
    x0 = build.clip(_action(build, plan, k, x, eps))
    before, left = plan.alpha_hats[k - 1], np.float32(1) - plan.alpha_hats[k]
    of_x0 = float(np.sqrt(before) * plan.betas[k])
    of_x = float(np.sqrt(plan.alphas[k]) * (np.float32(1) - before))
    mixed = build.add(build.mul(x0, of_x0), build.mul(x, of_x))
    x = build.div(mixed, float(left))
    return x if k == 1 else build.add(x, build.mul(noise, plan.noise(k)))


def _jump_step(
    build: Builder, plan: _Plan, k: int, x: str, eps: str, noise: str
) -> str:
    """clip(x0 + sqrt(beta) noise); without noise at the end."""
    x = _action(build, plan, k, x, eps)
    if k > 1:
        x = build.add(x, build.mul(noise, plan.noise(k)))
    return build.clip(x)
