"""Squeeze-and-excitation, arXiv 1709.01507: y = x sigma(W2 relu(W1 GAP x))."""

from __future__ import annotations

from tests.references.plain import linear, mean, relu, sigmoid, volume, voxels


def squeeze_excitation(x, parameters, statistics, training, *, variant="compact", reduction=16, bias="auto"):
    channels = x.shape[1]
    hidden = max(1, channels // reduction)
    if bias == "auto":
        bias = variant == "paper"
    weight1, bias1, weight2, bias2 = parameters if bias else (parameters[0], None, parameters[1], None)

    values = voxels(x)
    pooled = mean(values.values())
    squeezed = relu(linear(pooled, weight1.reshape(hidden, channels), bias1))
    gate = sigmoid(linear(squeezed, weight2.reshape(channels, hidden), bias2))
    return volume({index: value * gate for index, value in values.items()})
