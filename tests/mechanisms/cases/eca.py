"""Efficient channel attention, arXiv 1910.03151: y = x sigma(conv_k(GAP x)), conv_k along the channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tests.mechanisms.case import PAPER, Case, Floor, gated
from tests.references.plain import mean, sigmoid, volume, voxels


def efficient_channel_attention(x, parameters, statistics, training, *, variant="compact", kernel_size="auto"):
    channels = x.shape[1]
    if kernel_size == "auto":
        kernel_size = 3 if variant == "compact" else None
    if kernel_size is None:
        t = int((math.log2(channels) + 1) / 2)
        kernel_size = t if t % 2 else t + 1
    (weight,) = parameters
    weight = weight.reshape(kernel_size)

    values = voxels(x)
    pooled = mean(values.values())
    gates = []
    for channel in range(channels):
        total = torch.zeros_like(pooled[:, channel])
        for tap in range(kernel_size):
            neighbour = channel + tap - kernel_size // 2
            if 0 <= neighbour < channels:
                total = total + weight[tap] * pooled[:, neighbour]
        gates.append(sigmoid(total))
    gate = torch.stack(gates, 1)
    return volume({index: value * gate for index, value in values.items()})


class PlainECA(nn.Module):
    """Efficient channel attention."""

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.mix = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(x).flatten(2)
        gate = self.sigmoid(self.mix(pooled.transpose(1, 2)).transpose(1, 2))
        return x * gate[..., None, None].expand_as(x)


def count(c, n, variant):
    if variant == "compact":
        return 3
    t = int((math.log2(c) + 1) / 2)
    return t if t % 2 else t + 1


def keys(n):
    return dict.fromkeys(("default", "paper"), "convolution.weight 1x1x3")


CASE = Case(
    forms={"default": {}, "paper": PAPER},
    reference=efficient_channel_attention,
    count=count,
    keys=keys,
    plain=PlainECA,
    floor=Floor(3, 4, "means: x; gate: x, y", "gate: dy, x; input: dy, dx"),
    saved=0.05,
    time=1.1,
    weights={"channel": (2, 8, 1, 1, 1)},
    output=gated,
    values=[{"kernel_size": 4}, {"kernel_size": 0}],
    kinds=[{"kernel_size": 3.0}],
    drawn={"kernel_size": ["auto", None, 1, 3, 5, 9]},
    is_set=True,
)
