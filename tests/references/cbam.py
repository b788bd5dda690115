"""Convolutional block attention, arXiv 1807.06521.

x1 = x sigma(MLP(GAP x) + MLP(GMP x)); y = x1 sigma(conv_k[mean_c x1 ; max_c x1]).
"""

from __future__ import annotations

import torch

from tests.references.plain import (
    batch_norm,
    convolution,
    linear,
    maximum,
    mean,
    relu,
    sigmoid,
    volume,
    voxels,
)


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
    hidden = max(1, channels // reduction)
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
