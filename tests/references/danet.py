"""Dual attention, arXiv 1809.02983: y = x + alpha P + beta Q; P attends over voxels, Q over channels."""

from __future__ import annotations

import math

import torch

from tests.references.plain import (
    batch_norm,
    convolution,
    dot,
    maximum,
    pointwise,
    relu,
    softmax,
    volume,
    voxels,
)


def dual_attention(
    x,
    parameters,
    statistics,
    training,
    *,
    variant="compact",
    reduction=8,
    channel_energy="paper",
    scale="none",
):
    alpha, *projections, beta = parameters
    over_voxels = _position(x, projections, reduction)
    over_channels = _channel(x, channel_energy, scale)
    return x + alpha * over_voxels + beta * over_channels


def position_attention(x, parameters, statistics, training, *, reduction=8):
    """PAM = x + alpha P."""
    alpha, *projections = parameters
    return x + alpha * _position(x, projections, reduction)


def channel_attention(x, parameters, statistics, training, *, channel_energy="paper", scale="none"):
    """CAM = x + beta Q."""
    (beta,) = parameters
    return x + beta * _channel(x, channel_energy, scale)


def _position(x, projections, reduction):
    """P = softmax(q k^T) v over voxels, unscaled."""
    channels = x.shape[1]
    inner = max(1, channels // reduction)
    query_weight, query_bias, key_weight, key_bias, value_weight, value_bias = projections
    values = voxels(x)
    queries = pointwise(values, query_weight.reshape(inner, channels), query_bias)
    keys = pointwise(values, key_weight.reshape(inner, channels), key_bias)
    content = pointwise(values, value_weight.reshape(channels, channels), value_bias)
    attended = {}
    for index, query in queries.items():
        shares = softmax([dot(query, key) for key in keys.values()])
        attended[index] = sum(share[:, None] * value for share, value in zip(shares, content.values(), strict=True))
    return volume(attended)


def _channel(x, channel_energy, scale):
    """Q = softmax(A A^T) A, A the channels as rows of N voxels; official: softmax(row max - A A^T) A."""
    rows = x.flatten(2).unbind(1)
    count = rows[0].shape[1]
    factor = {"none": 1, "1/N": 1 / count, "1/sqrt(N)": 1 / math.sqrt(count)}[scale]
    attended = []
    for row in rows:
        energies = [factor * dot(row, other) for other in rows]
        if channel_energy == "official":
            largest = maximum(energies)
            energies = [largest - energy for energy in energies]
        shares = softmax(energies)
        attended.append(sum(share[:, None] * other for share, other in zip(shares, rows, strict=True)))
    return torch.stack(attended, 1).unflatten(2, x.shape[2:])


def dual_attention_head(x, branches, classifiers, training):
    """Two branches conv, BN, relu, attention, conv, BN, relu; classifiers of their sum and of each.

    Args:
        x: (B, C, *S).
        branches: for position, then channel attention: the parameters of the attention, between the (weight,
            norm weight, norm bias, mean, variance) of the convolution before and of that after it.
        classifiers: (weight, bias) for the sum, the position branch and the channel branch.
        training: whether the norms use the statistics of the batch.
    """

    def block(features, weight, norm_weight, norm_bias, average, variance):
        features = convolution(voxels(features), weight)
        normed = batch_norm(features, norm_weight, norm_bias, (average, variance), training)
        return volume({index: relu(value) for index, value in normed.items()})

    results = []
    for attention, (first, parameters, last) in zip((position_attention, channel_attention), branches, strict=True):
        results.append(block(attention(block(x, *first), parameters, [], training), *last))
    position, channel = results
    return tuple(
        volume(pointwise(voxels(features), weight.flatten(1), bias))
        for features, (weight, bias) in zip((position + channel, position, channel), classifiers, strict=True)
    )
