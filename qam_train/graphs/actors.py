# SPDX-License-Identifier: Apache-2.0
"""Actors of one network call, and the tanh-Gaussian draw that flows are edited or started with."""

from __future__ import annotations

from qam_train.deployment import (
    DeterministicActor,
    EditedFlow,
    GaussianActor,
    NoisePolicyFlow,
    OneStep,
)
from qam_train.graphs.builder import Builder
from qam_train.graphs.flow import flow
from qam_train.graphs.mlp import affine, part, tail, take_net, trunk

LOG_STD_BOUNDS = (-20.0, 2.0)  # as qam_train.gaussian


def one_step(build: Builder, policy: OneStep, s: str, noise: str) -> str:
    """clip(pi(s, z))."""
    sizes = build.sizes
    parts = {"observation": sizes.observation, "noise": sizes.flat}
    net = take_net(build, policy.net, "actor", parts, sizes.flat)
    x = part(build, net, "noise", noise, part(build, net, "observation", s))
    return build.clip(tail(build, net, x))


def deterministic(
    build: Builder, policy: DeterministicActor, s: str, noise: str
) -> str:
    """clip(tanh(mlp(s)) + clip(noise z))."""
    sizes = build.sizes
    parts = {"observation": sizes.observation}
    net = take_net(build, policy.net, "actor", parts, sizes.flat)
    a = build.op("Tanh", [tail(build, net, affine(build, net, 0, s))])
    bound = policy.noise_clip
    added = build.clip(build.mul(noise, policy.noise), -bound, bound)
    return build.clip(build.add(a, added))


def gaussian(build: Builder, policy: GaussianActor, s: str, noise: str) -> str:
    """tanh(mean(s) + std(s) z)."""
    return _draw_of_observation(build, policy.net, s, noise)


def edited_flow(build: Builder, policy: EditedFlow, s: str, noise: str) -> str:
    """clip(a + scale e), e from (s, a)."""
    sizes = build.sizes
    z, normal = build.split(noise, [sizes.flat, sizes.flat])
    a = flow(build, policy.flow, s, z)
    parts = {"observation": sizes.observation, "action": sizes.flat}
    net = take_net(build, f"{policy.edit}/trunk", "edit/trunk", parts)
    x = part(build, net, "action", a, part(build, net, "observation", s))
    e = _draw(build, policy.edit, "edit", trunk(build, net, x), normal)
    return build.clip(build.add(a, build.mul(e, policy.scale)))


def noise_policy_flow(
    build: Builder, policy: NoisePolicyFlow, s: str, noise: str
) -> str:
    """The flow from scale e, e from s."""
    e = _draw_of_observation(build, policy.actor, s, noise)
    return flow(build, policy.flow, s, build.mul(e, policy.scale))


def _draw_of_observation(build: Builder, prefix: str, s: str, noise: str) -> str:
    parts = {"observation": build.sizes.observation}
    net = take_net(build, f"{prefix}/trunk", "actor/trunk", parts)
    hidden = trunk(build, net, affine(build, net, 0, s))
    return _draw(build, prefix, "actor", hidden, noise)


def _draw(build: Builder, prefix: str, role: str, hidden: str, noise: str) -> str:
    """Tanh(mean + std noise), (R, D), as qam_train.gaussian."""
    width = int(build.nets[f"{prefix}/mean/0/weight"].shape[-2])

    def output(name: str) -> str:
        parts, flat = {"hidden": width}, build.sizes.flat
        net = take_net(build, f"{prefix}/{name}", f"{role}/{name}", parts, flat)
        return affine(build, net, 0, hidden)

    mean, log_std = output("mean"), build.clip(output("log_std"), *LOG_STD_BOUNDS)
    std = build.op("Exp", [log_std])
    return build.op("Tanh", [build.add(mean, build.mul(std, noise))])
