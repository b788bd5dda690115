"""Bottleneck attention, arXiv 1807.06514: x times sigma(Mc + Ms) (compact) or 1 + sigma(Mc + Ms) (paper)."""

from __future__ import annotations

from tests.references.plain import (
    batch_norm,
    convolution,
    linear,
    maximum,
    mean,
    pointwise,
    relu,
    sigmoid,
    volume,
    voxels,
)


def bottleneck_attention(
    x,
    parameters,
    statistics,
    training,
    *,
    variant="compact",
    reduction=16,
    kernel_size="auto",
    dilation="auto",
    combine="sum",
):
    channels, axes = x.shape[1], x.dim() - 2
    hidden = max(1, channels // reduction)
    paper = variant == "paper"
    if kernel_size == "auto":
        kernel_size = 3 if paper else 7
    if dilation == "auto":
        dilation = 4 if paper else 1
    kernel = (kernel_size,) * axes if isinstance(kernel_size, int) else kernel_size
    dilation = (dilation,) * axes if isinstance(dilation, int) else dilation
    forms = _paper if paper else _compact
    values = voxels(x)
    channel, spatial = forms(values, iter(parameters), iter(statistics), training, hidden, kernel, dilation)
    result = {}
    for index, value in values.items():
        energy = channel + spatial[index] if combine == "sum" else channel * spatial[index]
        gate = 1 + sigmoid(energy) if paper else sigmoid(energy)
        result[index] = value * gate
    return volume(result)


def _compact(values, parameters, statistics, training, hidden, kernel, dilation):
    """Mc = W2 relu(W1 GAP x); Ms = BN(conv_7(mean_c x + max_c x))."""
    pooled = mean(values.values())
    channels = pooled.shape[1]
    squeezed = relu(linear(pooled, next(parameters).reshape(hidden, channels)))
    channel = linear(squeezed, next(parameters).reshape(channels, hidden))

    summed = {}
    for index, value in values.items():
        by_channel = value.unbind(1)
        summed[index] = (mean(by_channel) + maximum(by_channel))[:, None]
    spatial = convolution(summed, next(parameters).reshape(1, 1, *kernel), dilation=dilation)
    spatial = batch_norm(spatial, next(parameters), next(parameters), next(statistics), training)
    assert not list(parameters)
    return channel, spatial


def _paper(values, parameters, statistics, training, hidden, kernel, dilation):
    """Mc: GAP, linear, BN, relu, linear. Ms: 1^n conv, BN, relu, twice (dilated conv, BN, relu), 1^n conv."""
    pooled = mean(values.values())
    channels = pooled.shape[1]

    def norm_relu(features):
        normed = batch_norm(features, next(parameters), next(parameters), next(statistics), training)
        return {index: relu(value) for index, value in normed.items()}

    squeezed = linear(pooled, next(parameters).reshape(hidden, channels), next(parameters))
    squeezed = norm_relu({(): squeezed})[()]
    channel = linear(squeezed, next(parameters).reshape(channels, hidden), next(parameters))

    spatial = norm_relu(pointwise(values, next(parameters).reshape(hidden, channels), next(parameters)))
    for _ in range(2):
        weight, bias = next(parameters).reshape(hidden, hidden, *kernel), next(parameters)
        spatial = norm_relu(convolution(spatial, weight, bias, dilation=dilation))
    spatial = pointwise(spatial, next(parameters).reshape(1, hidden), next(parameters))
    assert not list(parameters)
    return channel, spatial
