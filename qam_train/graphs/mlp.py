# SPDX-License-Identifier: Apache-2.0
"""MLPs in a graph, as qam_train.networks computes them; an ensemble is a leading axis.

The first layer reads several things, [s, a, t] for instance. Its weight is kept as one tensor for
each, so that the product with s is formed once and not for every step or candidate (exact up to the
order of the sum).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qam_ros.contract.errors import ArtifactError
from qam_train.graphs.builder import Builder

LAYER_NORM_EPSILON = 1e-6  # as qam_train.networks


@dataclass(frozen=True)
class Net:
    """One MLP whose tensors are weight inputs of the graph.

    Attributes:
        role: first part of their names; "" for the velocity net of a flow.
        widths: output width of every layer.
        normed: layers that carry a LayerNorm.
        members: ensemble size E; None: no ensemble.
    """

    role: str
    widths: tuple[int, ...]
    normed: frozenset[int]
    members: int | None

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.widths)

    def name(self, layer: int, kind: str) -> str:
        """Weight input of a layer."""
        return f"{self.role}/{layer}/{kind}" if self.role else f"{layer}/{kind}"


def take_net(
    build: Builder,
    prefix: str,
    role: str,
    parts: Mapping[str, int],
    output: int | None = None,
) -> Net:
    """Make the tensors of a net weight inputs.

    Args:
        build: the graph.
        prefix: name of the net among the arrays.
        role: its name among the inputs; equal policies have equal graphs, whatever nets they read.
        parts: name -> width of each thing the first layer reads, in order; 'weight_NAME' is its
            tensor, or 'weight' where it reads one.
        output: width of the last layer; None: any.

    Raises:
        ArtifactError: a tensor is missing or does not fit.
    """
    tensors = {
        name.removeprefix(f"{prefix}/"): value
        for name, value in build.nets.items()
        if name.startswith(f"{prefix}/")
    }
    net = _check_net(tensors, prefix, role, sum(parts.values()))
    if output not in (None, net.widths[-1]):
        raise ArtifactError(
            f"net '{prefix}': expected an output of {output} numbers, found {net.widths[-1]}; the "
            "sizes are not those of the agent"
        )
    lead = () if net.members is None else (net.members, 1)
    for layer in range(net.depth):
        weight = tensors[f"{layer}/weight"]
        start = 0
        for part, width in parts.items() if layer == 0 else ():
            kind = f"weight_{part}" if len(parts) > 1 else "weight"
            build.weight(net.name(0, kind), weight[..., start : start + width, :])
            start += width
        if layer > 0:
            build.weight(net.name(layer, "weight"), weight)
        for kind in ("bias", "norm_scale", "norm_shift"):
            if f"{layer}/{kind}" in tensors:
                value = tensors[f"{layer}/{kind}"].reshape(*lead, net.widths[layer])
                build.weight(net.name(layer, kind), value)
    return net


def _check_net(
    tensors: Mapping[str, npt.NDArray[np.float32]], prefix: str, role: str, inputs: int
) -> Net:
    if "0/weight" not in tensors:
        raise ArtifactError(
            f"expected a net '{prefix}' with '{prefix}/0/weight', found {sorted(tensors)}"
        )
    members = tensors["0/weight"].shape[:-2]
    widths: list[int] = []
    while f"{len(widths)}/weight" in tensors:
        layer, width_in = len(widths), widths[-1] if widths else inputs
        weight, bias = tensors[f"{layer}/weight"], tensors.get(f"{layer}/bias")
        width = weight.shape[-1]
        found = (weight.shape, None if bias is None else bias.shape)
        expected = ((*members, width_in, width), (*members, width))
        if found != expected:
            raise ArtifactError(
                f"layer {layer} of net '{prefix}': expected weight {expected[0]} and bias "
                f"{expected[1]}, found {found[0]} and {found[1]}; the sizes are not those of the agent"
            )
        widths.append(width)
    normed = {n for n in range(len(widths)) if f"{n}/norm_scale" in tensors}
    ensemble = members[0] if members else None
    return Net(role, tuple(widths), frozenset(normed), ensemble)


def product(build: Builder, net: Net, weight: str, x: str, bias: str) -> str:
    """X W + bias: (R, out), or (E, R, out) of an ensemble, which is float32 in every precision.

    Ensembles are critics: their values are close to each other, and rounding would change the choice.
    """
    if net.members is None:
        return build.affine(x, weight, bias)
    return build.add(build.op("MatMul", [x, weight]), bias)


def part(build: Builder, net: Net, name: str, x: str, bias: str = "") -> str:
    """Share of one thing that the first layer reads; bias "": the layer's own."""
    bias = bias or net.name(0, "bias")
    return product(build, net, net.name(0, f"weight_{name}"), x, bias)


def at_time(build: Builder, net: Net, bias: str, t: float) -> str:
    """The first layer's bias with the share of time t added."""
    if t == 0.0:
        return bias
    return build.add(bias, build.mul(net.name(0, "weight_time"), t))


def affine(build: Builder, net: Net, layer: int, x: str) -> str:
    """One whole layer, x W + b."""
    return product(build, net, net.name(layer, "weight"), x, net.name(layer, "bias"))


def gelu(build: Builder, x: str) -> str:
    """GELU, tanh form."""
    return build.op("Gelu", [x], approximate="tanh")


def mish(build: Builder, x: str) -> str:
    """Z tanh(softplus(z)) = z n / (n + 2), n = e^z (e^z + 2): one exponential, no slow Softplus.

    In float32 the fraction is 1 above 20, and the result 0 below -80.
    """
    power = build.op("Exp", [build.clip(x, -80.0, 20.0)])
    n = build.mul(power, build.add(power, 2.0))
    return build.mul(x, build.div(n, build.add(n, 2.0)))


def activate(
    build: Builder, net: Net, layer: int, x: str, *, smooth: str = "gelu"
) -> str:
    """The activation, then LayerNorm where the layer has one (official order)."""
    x = gelu(build, x) if smooth == "gelu" else mish(build, x)
    if layer not in net.normed:
        return x
    scale, shift = net.name(layer, "norm_scale"), net.name(layer, "norm_shift")
    if net.members is None:
        return _unit(build, x, scale, shift)
    width = net.widths[layer]  # the operator shares scale and shift among members
    one, zero = (build.constant(np.full(width, v, np.float32)) for v in (1, 0))
    return build.add(build.mul(_unit(build, x, one, zero), scale), shift)


def _unit(build: Builder, x: str, scale: str, shift: str) -> str:
    names = [x, scale, shift]
    return build.op("LayerNormalization", names, axis=-1, epsilon=LAYER_NORM_EPSILON)


def tail(build: Builder, net: Net, x: str, *, smooth: str = "gelu") -> str:
    """Finish an MLP from the pre-activation of its first layer."""
    for layer in range(1, net.depth):
        x = affine(build, net, layer, activate(build, net, layer - 1, x, smooth=smooth))
    return x


def trunk(build: Builder, net: Net, x: str) -> str:
    """As tail, with the last layer activated too."""
    return activate(build, net, net.depth - 1, tail(build, net, x))
