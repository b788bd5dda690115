"""Channel prior convolutional attention, arXiv 2306.05196: x2 = gelu(W x) times a gate per channel; y = W((W t) x2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attn3d import CPCA
from tests.mechanisms.case import REDUCTIONS, Case, Floor
from tests.references.plain import convolution, linear, maximum, mean, pointwise, relu, sigmoid, volume, voxels


def channel_prior(x, parameters, statistics, training, *, reduction=4):
    channels, axes = x.shape[1], x.dim() - 2
    hidden = max(channels // reduction, min(channels, 4))
    weight, bias, weight1, bias1, weight2, bias2, *kernels = parameters
    weight, kernels = weight.reshape(channels, channels), iter(kernels)

    def depthwise(features, size):
        return convolution(features, next(kernels).reshape(channels, 1, *size), next(kernels), groups=channels)

    def perceptron(pooled):
        squeezed = relu(linear(pooled, weight1.reshape(hidden, channels), bias1))
        return linear(squeezed, weight2.reshape(channels, hidden), bias2)

    values = pointwise(voxels(x), weight, bias)
    values = {index: value * (1 + torch.erf(value / math.sqrt(2))) / 2 for index, value in values.items()}
    gate = sigmoid(perceptron(mean(values.values()))) + sigmoid(perceptron(maximum(values.values())))
    values = {index: value * gate for index, value in values.items()}

    local = depthwise(values, (5,) * axes)
    total = dict(local)
    for size in (7, 11, 21):
        strip = local
        for axis in reversed(range(axes)):
            strip = depthwise(strip, tuple(size if place == axis else 1 for place in range(axes)))
        total = {index: total[index] + strip[index] for index in total}
    weights = pointwise(total, weight, bias)
    assert not list(kernels)
    return volume(pointwise({index: value * weights[index] for index, value in values.items()}, weight, bias))


class PlainCPCA(nn.Module):
    """One pointwise layer used three times, a gate for each channel, strips of three lengths."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(channels // reduction, min(channels, 4))
        self.pointwise = nn.Conv3d(channels, channels, 1)
        self.act = nn.GELU()
        self.mean, self.largest = nn.AdaptiveAvgPool3d(1), nn.AdaptiveMaxPool3d(1)
        self.shared = nn.Sequential(nn.Conv3d(channels, hidden, 1), nn.ReLU(), nn.Conv3d(hidden, channels, 1))

        def depthwise(*kernel):
            return nn.Conv3d(channels, channels, kernel, padding=[size // 2 for size in kernel], groups=channels)

        self.local = depthwise(5, 5, 5)
        self.strips = nn.ModuleList(
            nn.Sequential(depthwise(1, 1, size), depthwise(1, size, 1), depthwise(size, 1, 1)) for size in (7, 11, 21)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.pointwise(x))
        x = x * (torch.sigmoid(self.shared(self.mean(x))) + torch.sigmoid(self.shared(self.largest(x))))
        local = self.local(x)
        total = local
        for strip in self.strips:
            total = total + strip(local)
        return self.pointwise(self.pointwise(total) * x)


def count(c, n, variant):
    h = max(c // 4, min(c, 4))
    return c * c + c + 2 * c * h + c + h + c * (5**n + 1) + n * sum(c * (size + 1) for size in (7, 11, 21))


def keys(n):
    layers = "squeeze.weight 4x8, squeeze.bias 4, excite.weight 8x4, excite.bias 8"
    strips = ", ".join(
        f"strips.{index}.{place}.weight 8x1{''.join(f'x{size if axis == n - 1 - place else 1}' for axis in range(n))}, "
        f"strips.{index}.{place}.bias 8"
        for index, size in enumerate((7, 11, 21))
        for place in range(n)
    )
    pointwise, local = f"pointwise.weight 8x8{n * 'x1'}, pointwise.bias 8", f"local.weight 8x1{n * 'x5'}, local.bias 8"
    return {"default": f"{pointwise}, {layers}, {local}, {strips}"}


def without_axis(parameters, axis):
    """The strips along the axis have no counterpart: they become the identity."""
    dims = parameters[0].dim() - 2
    kept = parameters[:8]
    for place in range(8, len(parameters), 2):
        weight, bias = parameters[place : place + 2]
        if dims - 1 - (place - 8) // 2 % dims == axis:
            middle = torch.arange(weight[0].numel()) == weight[0].numel() // 2
            weight.copy_(middle.view_as(weight[:1]).expand_as(weight))
            bias.zero_()
        else:
            kept += [weight, bias]
    return kept


def the_channel_gate_reaches_up_to_two():
    """The sum of two sigmoids: about one at the start, where other gates are a half."""
    torch.manual_seed(0)
    gate = CPCA(3, 64).attention_weights(torch.randn(1, 64, 8, 8, 8))["channel"]
    assert 0.5 < gate.min() < gate.max() < 1.5
    assert (gate > 1).any()


def the_output_follows_from_the_reported_weights():
    module, x = CPCA(3, 6).double(), torch.randn(2, 6, 4, 2, 3, dtype=torch.float64)
    weights = module.attention_weights(x)
    inner = nn.functional.gelu(module.pointwise(x)) * weights["channel"]
    torch.testing.assert_close(weights["channel_map"], inner.abs())
    torch.testing.assert_close(module(x), module.pointwise(inner * weights["gate"]))


CASE = Case(
    forms={"default": {}},
    reference=channel_prior,
    count=count,
    keys=keys,
    plain=PlainCPCA,
    floor=Floor(4, 6, "means and maxima: x; strips: x; gates: x, y", "weights: dy, x; channels: dy, x; input: dy, dx"),
    time=1.1,
    weights={"channel": (2, 8, 1, 1, 1), "channel_map": (2, 8, 4, 3, 5), "gate": (2, 8, 4, 3, 5)},
    published=[(64, 2, {}, 13_328), (64, 3, {}, 22_416)],
    drawn={"reduction": REDUCTIONS},
    smaller_channels=2,
    in_order=["default"],  # the bias of the first strip is cut off at the border of the second
    without_axis=without_axis,
    faults=[the_channel_gate_reaches_up_to_two, the_output_follows_from_the_reported_weights],
)
