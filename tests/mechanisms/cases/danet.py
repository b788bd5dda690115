"""Dual attention, arXiv 1809.02983: y = x + alpha P + beta Q; P attends over voxels, Q over channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tests.mechanisms.case import REDUCTIONS, Case, Floor
from tests.references.plain import batch_norm, convolution, dot, maximum, pointwise, relu, softmax, volume, voxels


def dual_attention(
    x,
    parameters,
    statistics,
    training,
    *,
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


class PlainDual(nn.Module):
    """Position and channel attention on the same input, with a score for every pair of voxels and of channels."""

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.alpha = nn.Parameter(torch.zeros(()))
        # In a container, because a module lists its own parameters before those of its children: beta comes last.
        self.position = nn.ModuleList([nn.Conv3d(channels, width, 1) for width in (inner, inner, channels)])
        self.scales = nn.ParameterList([torch.zeros(())])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2) for layer in self.position)
        over_voxels = torch.bmm(v, torch.bmm(q.mT, k).softmax(-1).mT)
        flat = x.flatten(2)
        over_channels = torch.bmm(torch.bmm(flat, flat.mT).softmax(-1), flat)
        return x + self.alpha * over_voxels.view_as(x) + self.scales[0] * over_channels.view_as(x)


def count(c, n, variant):
    inner = max(1, c // 8)
    return 2 * (c * inner + inner) + c * c + c + 2


def keys(n):
    every = (
        "position.alpha 1, position.query.weight 4x8, position.query.bias 4, position.key.weight 4x8, "
        "position.key.bias 4, position.value.weight 8x8, position.value.bias 8, channel.beta 1"
    )
    return dict.fromkeys(("default", "official", "scaled", "root_scaled", "window"), every)


CASE = Case(
    forms={
        "default": {"reduction": 2},
        "official": {"reduction": 2, "channel_energy": "official"},
        "scaled": {"reduction": 2, "scale": "1/N"},
        "root_scaled": {"reduction": 2, "scale": "1/sqrt(N)"},
    },
    patterns={"window": {"reduction": 2, "pattern": ("window", {"size": 2})}},
    reference=dual_attention,
    count=count,
    keys=keys,
    plain=PlainDual,
    floor=Floor(3, 5, "keys, values, channel energies: x; the rest: x, y", "all of these: dy, x; input: dy, x, dx"),
    weights={"query": (2, 1, 3, 4, 3, 5), "affinity": (2, 8, 8)},
    identity=["default", "official", "scaled", "root_scaled"],
    values=[{"channel_energy": "offical"}, {"scale": "1/n"}],
    drawn={
        "reduction": REDUCTIONS,
        "channel_energy": ["paper", "official"],
        "scale": ["none", "1/N", "1/sqrt(N)"],
    },
    is_set=True,
)
