"""Convolutional block attention, arXiv 1807.06521.

x1 = x sigma(MLP(GAP x) + MLP(GMP x)); y = x1 sigma(conv_k[mean_c x1 ; max_c x1]).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.mechanisms.case import NORMS, PAPER, REDUCTIONS, Case, Floor, PerAxis, gated, norm_keys
from tests.references.plain import batch_norm, convolution, linear, maximum, mean, relu, sigmoid, volume, voxels


def convolutional_block_attention(
    x,
    parameters,
    statistics,
    training,
    *,
    variant="compact",
    reduction=16,
    kernel_size=7,
    bias="auto",
    norm="auto",
    order="auto",
):
    channels, axes = x.shape[1], x.dim() - 2
    hidden = max(channels // reduction, min(channels, 4))
    paper = variant == "paper"
    if bias == "auto":
        bias = paper
    if norm == "auto":
        norm = "batch" if paper else None
    if order == "auto":
        order = ("max", "mean") if paper else ("mean", "max")
    if isinstance(kernel_size, int):
        kernel_size = (kernel_size,) * axes

    remaining = iter(parameters)
    weight1 = next(remaining).reshape(hidden, channels)
    bias1 = next(remaining) if bias else None
    weight2 = next(remaining).reshape(channels, hidden)
    bias2 = next(remaining) if bias else None
    kernel = next(remaining).reshape(1, 2, *kernel_size)

    def perceptron(pooled):
        return linear(relu(linear(pooled, weight1, bias1)), weight2, bias2)

    values = voxels(x)
    gate = sigmoid(perceptron(mean(values.values())) + perceptron(maximum(values.values())))
    values = {index: value * gate for index, value in values.items()}

    pairs = {}
    for index, value in values.items():
        by_channel = value.unbind(1)
        maps = {"mean": mean(by_channel), "max": maximum(by_channel)}
        pairs[index] = torch.stack([maps[name] for name in order], 1)
    energies = convolution(pairs, kernel)
    if norm == "batch":
        energies = batch_norm(energies, next(remaining), next(remaining), statistics[0], training)
    assert not list(remaining)
    return volume({index: value * sigmoid(energies[index]) for index, value in values.items()})


class PlainCBAM(nn.Module):
    """Channel gate, then spatial gate."""

    def __init__(self, channels: int, reduction: int = 16, kernel_size: int = 7) -> None:
        super().__init__()
        hidden = max(channels // reduction, min(channels, 4))
        self.mean, self.largest = nn.AdaptiveAvgPool3d(1), nn.AdaptiveMaxPool3d(1)
        self.shared = nn.Sequential(
            nn.Conv3d(channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv3d(hidden, channels, 1, bias=False)
        )
        self.spatial = nn.Conv3d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.sigmoid(self.shared(self.mean(x)) + self.shared(self.largest(x)))
        maps = torch.cat([torch.mean(x, 1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], 1)
        return x * self.sigmoid(self.spatial(maps))


def count(c, n, variant):
    h = max(c // 16, min(c, 4))
    return 2 * c * h + 2 * 7**n + (c + h + 2 if variant == "paper" else 0)


def keys(n):
    kernel = f"convolution.weight 1x2{n * 'x7'}"
    layers = "squeeze.weight 4x8, squeeze.bias 4, excite.weight 8x4, excite.bias 8"
    return {
        "default": f"squeeze.weight 4x8, excite.weight 8x4, {kernel}",
        "paper": f"{layers}, {kernel}, {norm_keys('norm', 1)}",
    }


CASE = Case(
    forms={"default": {"reduction": 2}, "paper": {"reduction": 2} | PAPER},
    reference=convolutional_block_attention,
    count=count,
    keys=keys,
    plain=PlainCBAM,
    floor=Floor(
        4, 6, "means and maxima: x; those per voxel: x; gates: x, y", "voxels: dy, x; channels: dy, x; input: dy, dx"
    ),
    saved=0.05,
    time=0.75,
    weights={"channel": (2, 8, 1, 1, 1), "spatial": (2, 1, 4, 3, 5)},
    output=gated,
    published=[(64, 2, PAPER, 680), (64, 3, PAPER, 1_268)],
    values=[
        {"kernel_size": 4},
        {"kernel_size": (3, 4, 3)},
        {"kernel_size": (3, 3)},
        {"order": ("mean", "mean")},
    ],
    kinds=[{"bias": "yes"}, {"kernel_size": 7.0}],
    drawn={
        "reduction": REDUCTIONS,
        "kernel_size": PerAxis([1, 3, 7]),
        "bias": ["auto", True, False],
        "norm": ["auto", *NORMS],
        "order": ["auto", ("mean", "max"), ("max", "mean")],
    },
    smaller={"kernel_size": 3},
)
