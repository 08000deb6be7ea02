# SPDX-License-Identifier: Apache-2.0
"""Flow policies in a graph: a <- a + h f(s, a, k h), k = 0 .. n-1, unrolled.

The observation product is formed once, time enters as a change of the first bias.
"""

from __future__ import annotations

from collections.abc import Callable

from qam_train.deployment import FlowPolicy
from qam_train.graphs.builder import Builder
from qam_train.graphs.mlp import at_time, part, tail, take_net

Field = Callable[[str, float], str]
"""(a (R, D), t) -> velocity (R, D)."""


def velocity_field(build: Builder, policy: FlowPolicy, s: str) -> Field:
    """f(s, ., .) of a flow, its base included."""
    own = _net_field(build, policy.net, "", s)
    if policy.base is None:
        return own
    base = _net_field(build, policy.base, "base", s)
    return lambda a, t: build.add(own(a, t), base(a, t))


def _net_field(build: Builder, prefix: str, role: str, s: str) -> Field:
    sizes = build.sizes
    parts = {"observation": sizes.observation, "action": sizes.flat, "time": 1}
    net = take_net(build, prefix, role, parts, sizes.flat)
    of_s = part(build, net, "observation", s)

    def field(a: str, t: float) -> str:
        return tail(
            build, net, part(build, net, "action", a, at_time(build, net, of_s, t))
        )

    return field


def integrate(build: Builder, field: Field, a: str, steps: int) -> str:
    """Euler steps from noise, clipped at the end alone."""
    h = 1.0 / steps
    for k in range(steps):
        # not folded into the Gemm's alpha: ONNX Runtime's one-row kernel takes alpha = 1 only (6 %)
        a = build.add(a, build.mul(field(a, k * h), h))
    return build.clip(a)


def flow(build: Builder, policy: FlowPolicy, s: str, noise: str) -> str:
    """FlowPolicy: chunks (R, D) from noise (R, D)."""
    return integrate(build, velocity_field(build, policy, s), noise, policy.steps)
