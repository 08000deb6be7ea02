# SPDX-License-Identifier: Apache-2.0
"""A critic ensemble in a graph: its values at candidates, and its action gradient by hand.

Q_k(s, a) = MLP of [s, a], or of [s, a, t] where the critic takes time. All members run as one: tensors
are (E, R, width), weights (E, in, out). The gradient goes backward through LayerNorm after GELU,
layer by layer, as qam_train.networks.velocity_pullback does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qam_train.graphs.builder import Builder
from qam_train.graphs.mlp import (
    LAYER_NORM_EPSILON,
    Net,
    affine,
    at_time,
    part,
    tail,
    take_net,
)

GELU_SLOPE, GELU_CUBIC = math.sqrt(2.0 / math.pi), 0.044715  # of the tanh form


class Critic:
    """An ensemble bound to its observation.

    Args:
        build: the graph.
        prefix: name of the net.
        s: (1, O).
        timed: whether it takes time.
    """

    def __init__(self, build: Builder, prefix: str, s: str, *, timed: bool) -> None:
        sizes = build.sizes
        parts = {"observation": sizes.observation, "action": sizes.flat}
        parts |= {"time": 1} if timed else {}
        self._build = build
        self._timed = timed
        self._net = take_net(build, prefix, "critic", parts, 1)
        self._of_s = part(build, self._net, "observation", s)  # (E, 1, width)
        self._bias: dict[float, str] = {}
        self._seed = ""

    def values(self, a: str, t: float = 0.0) -> str:
        """Q_k(s, a, t) of chunks (R, D): (E, R, 1); t is not read by a critic without time."""
        return tail(self._build, self._net, self._first(a, t))

    def gradient(self, a: str, t: float) -> str:
        """grad_a mean_k Q_k(s, a, t), (R, D)."""
        build, net = self._build, self._net
        hidden = [_Hidden.forward(build, net, 0, self._first(a, t))]
        for layer in range(1, net.depth - 1):
            z = affine(build, net, layer, hidden[-1].output)
            hidden.append(_Hidden.forward(build, net, layer, z))
        g = self._last_row()
        for layer in range(net.depth - 2, -1, -1):
            g = hidden[layer].backward(build, net, layer, g)
            kind = "weight" if layer else "weight_action"
            g = build.op("MatMul", [g, _transposed(build, net.name(layer, kind))])
        return build.mean(g, 0, keepdims=False)  # (R, D)

    def _first(self, a: str, t: float) -> str:
        t = t if self._timed else 0.0
        if t not in self._bias:
            self._bias[t] = at_time(self._build, self._net, self._of_s, t)
        return part(self._build, self._net, "action", a, self._bias[t])

    def _last_row(self) -> str:
        """Gradient of each value with respect to its last hidden layer, (E, 1, width)."""
        net = self._net
        last = net.name(net.depth - 1, "weight")
        self._seed = self._seed or _transposed(self._build, last)
        return self._seed


@dataclass(frozen=True)
class _Hidden:
    """A hidden layer at one point: what goes on, and what its reverse needs.

    Attributes:
        output: activation after the norm.
        slope: derivative of the GELU.
        unit: normalised activation before scale and shift; "" without a norm.
        std: its divisor.
    """

    output: str
    slope: str
    unit: str = ""
    std: str = ""

    @classmethod
    def forward(cls, build: Builder, net: Net, layer: int, z: str) -> _Hidden:
        """From the pre-activation z (E, R, width)."""
        x, slope = _gelu_with_slope(build, z)
        if layer not in net.normed:
            return cls(x, slope)
        centred = build.sub(x, build.mean(x, -1))
        variance = build.mean(build.mul(centred, centred), -1)
        std = build.op("Sqrt", [build.add(variance, LAYER_NORM_EPSILON)])
        unit = build.div(centred, std)
        scaled = build.mul(unit, net.name(layer, "norm_scale"))
        output = build.add(scaled, net.name(layer, "norm_shift"))
        return cls(output, slope, unit, std)

    def backward(self, build: Builder, net: Net, layer: int, g: str) -> str:
        """Gradient with respect to z from the one with respect to the output."""
        if not self.unit:
            return build.mul(g, self.slope)
        g = build.mul(g, net.name(layer, "norm_scale"))
        along = build.mul(self.unit, build.mean(build.mul(g, self.unit), -1))
        g = build.sub(build.sub(g, build.mean(g, -1)), along)
        return build.mul(build.div(g, self.std), self.slope)


def _gelu_with_slope(build: Builder, z: str) -> tuple[str, str]:
    """GELU z p and its derivative p + z/2 (1 - tanh(u)^2) u', p = (1 + tanh(u))/2, u = b (z + c z^3)."""
    square = build.mul(z, z)
    cubic = GELU_SLOPE * GELU_CUBIC
    inner = build.mul(z, build.add(build.mul(square, cubic), GELU_SLOPE))
    tanh = build.op("Tanh", [inner])
    share = build.mul(build.add(tanh, 1.0), 0.5)
    inner_slope = build.add(build.mul(square, 3.0 * cubic), GELU_SLOPE)
    bend = build.mul(build.sub(1.0, build.mul(tanh, tanh)), inner_slope)
    slope = build.add(share, build.mul(build.mul(z, 0.5), bend))
    return build.mul(z, share), slope


def _transposed(build: Builder, weight: str) -> str:
    order = list(range(len(build.weights[weight].shape)))
    return build.op("Transpose", [weight], perm=[*order[:-2], order[-1], order[-2]])


def choose(
    build: Builder, critic: Critic, candidates: str, count: int, score: str, t: float
) -> str:
    """Of candidates (N, D) the one with the highest score over the ensemble, (1, D).

    Args:
        build: the graph.
        critic: the ensemble.
        candidates: (N, D), clipped.
        count: N.
        score: 'mean' or 'min'.
        t: time the critic is told.
    """
    kind = {"mean": "ReduceMean", "min": "ReduceMin"}[score]
    axes = build.constant(np.asarray([0], np.int64))
    scores = build.op(kind, [critic.values(candidates, t), axes], keepdims=0)
    # TensorRT's ArgMax takes no tensor of rank 1
    row = build.reshape(scores, [1, count])
    best = build.op("ArgMax", [row], axis=1, keepdims=0)  # (1,)
    return build.op("Gather", [candidates, best], axis=0)
