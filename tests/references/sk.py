"""Selective kernel, arXiv 1903.06586: branches of growing field, a softmax over them per channel."""

from __future__ import annotations

from tests.references.plain import (
    batch_norm,
    convolution,
    largest_divisor,
    linear,
    mean,
    relu,
    softmax,
    volume,
    voxels,
)


def selective_kernel(
    x,
    parameters,
    statistics,
    training,
    *,
    variant="compact",
    branches=2,
    reduction=16,
    min_channels=32,
    groups=32,
):
    channels, axes = x.shape[1], x.dim() - 2
    hidden = max(channels // reduction, min_channels)
    groups = largest_divisor(channels, groups)
    paper = variant == "paper"
    remaining, statistics = iter(parameters), iter(statistics)

    values = voxels(x)
    features = []
    for branch in range(branches):
        size, dilation = (3, 1 + branch) if paper else (3 + 2 * branch, 1)
        weight = next(remaining).reshape(channels, channels // groups, *[size] * axes)
        feature = convolution(values, weight, dilation=[dilation] * axes, groups=groups)
        feature = batch_norm(feature, next(remaining), next(remaining), next(statistics), training)
        features.append({index: relu(value) for index, value in feature.items()})

    pooled = mean(sum(feature[index] for feature in features) for index in values)
    weight = next(remaining).reshape(hidden, channels)
    if paper:
        squeezed = {(): linear(pooled, weight)}
        squeezed = batch_norm(squeezed, next(remaining), next(remaining), next(statistics), training)
        squeezed = relu(squeezed[()])
    else:
        squeezed = linear(pooled, weight, next(remaining))

    energies = []
    for _ in range(branches):
        weight = next(remaining).reshape(channels, hidden)
        energies.append(linear(squeezed, weight, None if paper else next(remaining)))
    shares = softmax(energies)
    assert not list(remaining)

    return volume(
        {
            index: sum(share * feature[index] for share, feature in zip(shares, features, strict=True))
            for index in values
        }
    )
