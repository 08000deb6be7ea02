# SPDX-License-Identifier: Apache-2.0
"""Flow policies in a graph: a <- a + h f(s, a, k h), k = 0 .. n-1, unrolled.

The observation product is formed once. Time enters as a change of the first bias: all n biases are
formed together, because two small nodes per step cost 4 % of a chunk with nets of 2 x 256.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qam_train.deployment import FlowPolicy
from qam_train.graphs.builder import Builder
from qam_train.graphs.mlp import part, tail, take_net

Field = Callable[[str, int], str]
"""(a (R, D), k) -> velocity (R, D) at time k / n."""


def velocity_field(build: Builder, policy: FlowPolicy, s: str) -> Field:
    """f(s, ., .) of a flow, its base included."""
    own = _net_field(build, policy.net, "", s, policy.steps)
    if policy.base is None:
        return own
    base = _net_field(build, policy.base, "base", s, policy.steps)
    return lambda a, k: build.add(own(a, k), base(a, k))


def _net_field(build: Builder, prefix: str, role: str, s: str, steps: int) -> Field:
    sizes = build.sizes
    parts = {"observation": sizes.observation, "action": sizes.flat, "time": 1}
    net = take_net(build, prefix, role, parts, sizes.flat)
    of_s = part(build, net, "observation", s)
    times = build.constant((np.arange(steps) / steps).astype(np.float32)[:, None])
    of_t = build.mul(times, net.name(0, "weight_time"))  # (n, width)
    biases = build.split(build.add(of_t, of_s), [1] * steps, axis=0)

    def field(a: str, k: int) -> str:
        return tail(build, net, part(build, net, "action", a, biases[k]))

    return field


def integrate(build: Builder, field: Field, a: str, steps: int) -> str:
    """Euler steps from noise, clipped at the end alone."""
    h = 1.0 / steps
    for k in range(steps):
        # not folded into the Gemm's alpha: ONNX Runtime's one-row kernel takes alpha = 1 only (6 %)
        a = build.add(a, build.mul(field(a, k), h))
    return build.clip(a)


def flow(build: Builder, policy: FlowPolicy, s: str, noise: str) -> str:
    """FlowPolicy: chunks (R, D) from noise (R, D)."""
    return integrate(build, velocity_field(build, policy, s), noise, policy.steps)
