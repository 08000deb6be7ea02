# SPDX-License-Identifier: Apache-2.0
"""Networks as pure functions over a flat dictionary of tensors.

Names are 'net/layer/kind', e.g. 'critic/0/weight'; weights are (in, out) so that a layer is x W + b.
An ensemble is a leading axis of every tensor of its net: (E, in, out); further leading axes
(independent agents) broadcast the same way.

Notation: s observation (normalised), a action chunk (B, H*A), t flow time in [0, 1].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Params = dict[str, Tensor]
Field = Callable[[Tensor, Tensor | float], Tensor]
Pullback = Callable[[int, Tensor], Tensor]
Activation = Callable[[Tensor], Tensor]

LAYER_NORM_EPSILON = 1e-6  # official code; torch's default 1e-5 is visible in parity


def init_mlp(
    prefix: str,
    sizes: Sequence[int],
    generator: torch.Generator,
    *,
    members: int | None = None,
    layer_norm: bool = False,
) -> Params:
    """Draw the parameters of one MLP: Xavier-uniform weights, zero bias, the last layer included.

    Args:
        prefix: name of the net, first part of every tensor name.
        sizes: widths from input to output, e.g. (54, 512, 512, 25).
        generator: source of the draws.
        members: ensemble size E; adds a leading axis, members are drawn independently.
        layer_norm: whether hidden layers carry a LayerNorm (scale one, shift zero).
    """
    lead = () if members is None else (members,)
    params: Params = {}
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        bound = (6.0 / (fan_in + fan_out)) ** 0.5
        uniform = torch.rand(
            (*lead, fan_in, fan_out), generator=generator, device=generator.device
        )
        params[f"{prefix}/{layer}/weight"] = (2.0 * uniform - 1.0) * bound
        params[f"{prefix}/{layer}/bias"] = torch.zeros(
            (*lead, fan_out), device=generator.device
        )
        if layer_norm and layer < len(sizes) - 2:
            params[f"{prefix}/{layer}/norm_scale"] = torch.ones(
                (*lead, fan_out), device=generator.device
            )
            params[f"{prefix}/{layer}/norm_shift"] = torch.zeros(
                (*lead, fan_out), device=generator.device
            )
    return params


def net(params: Params, prefix: str) -> Params:
    """Select the tensors of one net (no copy)."""
    return {
        name: value for name, value in params.items() if name.startswith(prefix + "/")
    }


def depth(params: Params, prefix: str) -> int:
    """Count the layers of one net."""
    layers = 0
    while f"{prefix}/{layers}/weight" in params:
        layers += 1
    return layers


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute x W + b over any leading axes of x and of the parameters."""
    if weight.dim() == 2:
        return functional.linear(x, weight.mT, bias)
    return torch.matmul(x, weight) + bias.unsqueeze(-2)


def gelu(z: Tensor) -> Tensor:
    """GELU, tanh form."""
    return functional.gelu(z, approximate="tanh")


def mish(z: Tensor) -> Tensor:
    """Z tanh(softplus(z))."""
    return functional.mish(z)


def _activate(
    params: Params, name: str, z: Tensor, activation: Activation = gelu
) -> Tensor:
    """Apply the activation, then LayerNorm where the layer has one (official order)."""
    x = activation(z)
    scale = params.get(f"{name}/norm_scale")
    if scale is None:
        return x
    x = functional.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPSILON)
    return x * scale.unsqueeze(-2) + params[f"{name}/norm_shift"].unsqueeze(-2)


def _tail(
    params: Params, prefix: str, z: Tensor, activation: Activation = gelu
) -> Tensor:
    """Finish an MLP from the pre-activation of its first layer."""
    for layer in range(1, depth(params, prefix)):
        x = _activate(params, f"{prefix}/{layer - 1}", z, activation)
        z = affine(
            x, params[f"{prefix}/{layer}/weight"], params[f"{prefix}/{layer}/bias"]
        )
    return z


def mlp(
    params: Params, prefix: str, x: Tensor, activation: Activation = gelu
) -> Tensor:
    """Evaluate one MLP; the last layer has neither activation nor norm.

    Args:
        params: flat dictionary that holds the net.
        prefix: name of the net.
        x: (..., B, in). Without the ensemble axis it is shared by all members.
        activation: of the hidden layers.

    Returns:
        (..., B, out), with the ensemble axis in front where the net has one.
    """
    return _tail(
        params,
        prefix,
        affine(x, params[f"{prefix}/0/weight"], params[f"{prefix}/0/bias"]),
        activation,
    )


def features(params: Params, prefix: str, x: Tensor) -> Tensor:
    """Evaluate a trunk: an MLP whose last layer is activated (and normalised) too."""
    last = f"{prefix}/{depth(params, prefix) - 1}"
    return _activate(params, last, mlp(params, prefix, x))


def init_head(
    prefix: str,
    size: int,
    widths: Sequence[int],
    outputs: Mapping[str, int],
    generator: torch.Generator,
    *,
    layer_norm: bool = False,
) -> Params:
    """Draw a trunk 'prefix/trunk' and one affine output layer 'prefix/name' per output.

    Args:
        prefix: name of the net.
        size: width of the input.
        widths: hidden widths, all activated.
        outputs: width of each output layer by its name.
        generator: source of the draws.
        layer_norm: whether the trunk's layers carry a LayerNorm.
    """
    params = init_mlp(
        f"{prefix}/trunk", (size, *widths), generator, layer_norm=layer_norm
    )
    if layer_norm:  # init_mlp leaves its last layer bare
        last = f"{prefix}/trunk/{len(widths) - 1}"
        params[f"{last}/norm_scale"] = torch.ones_like(params[f"{last}/bias"])
        params[f"{last}/norm_shift"] = torch.zeros_like(params[f"{last}/bias"])
    for name, width in outputs.items():
        params |= init_mlp(f"{prefix}/{name}", (widths[-1], width), generator)
    return params


def detached(params: Params) -> Params:
    """The same tensors as constants: nothing is copied, later in-place changes are seen."""
    return {name: value.detach() for name, value in params.items()}


def velocity_field(params: Params, prefix: str, s: Tensor) -> Field:
    """Bind a velocity net f(s, a, t) to its observations.

    The first layer reads [s, a, t]. Its product with s does not change along the flow, so it is
    formed once and the field costs one observation product however often it is called (exact up
    to the order of the sum).

    Args:
        params: flat dictionary that holds the net.
        prefix: name of the net.
        s: (B, O), normalised.

    Returns:
        field(a, t) -> velocity of the shape of a; a is (..., B, D), t a number or broadcastable
        to (..., B, 1).
    """
    first = _first_layer(params, prefix, s)

    def field(a: Tensor, t: Tensor | float) -> Tensor:
        return _tail(params, prefix, first(a, t))

    return field


def _first_layer(params: Params, prefix: str, s: Tensor) -> Field:
    weight, bias = params[f"{prefix}/0/weight"], params[f"{prefix}/0/bias"]
    size = s.shape[-1]
    of_s = affine(s, weight[..., :size, :], bias)
    of_a, of_t = weight[..., size:-1, :], weight[..., -1:, :]

    def first(a: Tensor, t: Tensor | float) -> Tensor:
        return torch.matmul(a, of_a) + (of_s + t * of_t)

    return first


def velocity_pullback(
    params: Params, prefix: str, s: Tensor, a: Tensor, t: Tensor
) -> Pullback:
    """Linearise a velocity net at stored states: pullback(k, g) = [d f(s, a_k, t_k) / d a]^T g.

    One forward pass over all states at once keeps the slopes of the activations; each pullback is
    then a short chain of products. Equal to automatic differentiation state by state.

    Args:
        params: flat dictionary that holds the net (one flow net, no ensemble axis).
        prefix: name of the net.
        s: (B, O), normalised.
        a: (K, B, D), the states.
        t: (K, 1, 1), the time of each state.

    Returns:
        pullback(k, g) with g (B, D) -> (B, D).
    """
    layers = depth(params, prefix)
    z = _first_layer(params, prefix, s)(a, t)  # (K, B, width)
    reversed_layers: list[Callable[[int, Tensor], Tensor]] = []
    for layer in range(layers - 1):
        name, following = f"{prefix}/{layer}", f"{prefix}/{layer + 1}"
        weight = params[f"{following}/weight"]
        reversed_layers.append(_activation_pullback(params, name, z, weight))
        if layer < layers - 2:
            z = affine(_activate(params, name, z), weight, params[f"{following}/bias"])
    of_a = params[f"{prefix}/0/weight"][s.shape[-1] : -1]

    def pullback(k: int, g: Tensor) -> Tensor:
        for reverse in reversed(reversed_layers):
            g = reverse(k, g)
        return g @ of_a.mT

    return pullback


def _activation_pullback(
    params: Params, name: str, z: Tensor, weight: Tensor
) -> Pullback:
    """Reverse of z -> norm(gelu(z)) W for stored pre-activations z (K, B, width)."""
    slope = torch.ops.aten.gelu_backward(torch.ones_like(z), z, approximate="tanh")
    scale = params.get(f"{name}/norm_scale")
    if scale is None:
        return lambda k, g: (g @ weight.mT) * slope[k]
    x = functional.gelu(z, approximate="tanh")
    inverse_std = torch.rsqrt(
        x.var(-1, correction=0, keepdim=True) + LAYER_NORM_EPSILON
    )
    unit = (x - x.mean(-1, keepdim=True)) * inverse_std

    def reverse(k: int, g: Tensor) -> Tensor:
        g = (g @ weight.mT) * scale
        along = (g * unit[k]).mean(-1, keepdim=True)
        return (
            (g - g.mean(-1, keepdim=True) - unit[k] * along) * inverse_std[k] * slope[k]
        )

    return reverse
