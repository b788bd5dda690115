"""Efficient channel attention, arXiv 1910.03151: y = x sigma(conv_k(GAP x)), conv_k along the channels."""

from __future__ import annotations

import math

import torch

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
