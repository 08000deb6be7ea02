# SPDX-License-Identifier: Apache-2.0
"""A flow guided by its critic, in a graph: as qam_train.guidance, the gradient written out."""

from __future__ import annotations

from qam_train.deployment import GuidedFlow
from qam_train.graphs.builder import Builder
from qam_train.graphs.critic import Critic
from qam_train.graphs.flow import integrate, velocity_field


def guided_flow(build: Builder, policy: GuidedFlow, s: str, noise: str) -> str:
    """clip(n steps of v + theta [tau (1 - t) grad_a Q + a] / t), the first of v alone."""
    velocity = velocity_field(build, policy.flow, s)
    critic = Critic(build, policy.critic, s, timed=True)

    def field(a: str, k: int) -> str:
        v = velocity(a, k)
        if k == 0:
            return v
        t = k * (1.0 / policy.flow.steps)
        pull = build.mul(critic.gradient(a, policy.told[k]), policy.tau * (1.0 - t))
        shift = build.mul(build.add(pull, a), policy.weight)
        return build.add(v, build.div(shift, t))

    return integrate(build, field, noise, policy.steps)
